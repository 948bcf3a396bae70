"""The tests that benchmarks/gpu_check.py runs on a GPU work, as far as a CPU can show."""

from functools import partial

import pytest
import torch

from liif_fast import functional

from ..gpu import test_operator
from ..ops.support import Problem, is_limit


def refusal(problem):
    with pytest.raises(RuntimeError) as caught:
        functional.liif_decode(*problem.arguments, backend="triton")
    return caught.value


def test_what_the_kernels_do_not_take_is_skipped(monkeypatch):
    """A refusal of float64 skips a test; a backend that takes nothing at all fails it."""
    assert is_limit(refusal(Problem(dtype=torch.float64)))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not is_limit(refusal(Problem()))


def test_one_backend_after_another_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    for backend in ("torch", "reference"):
        test_operator.test_compiled(backend, "cpu", lambda *_: None)
