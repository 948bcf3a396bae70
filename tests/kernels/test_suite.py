"""The tests that benchmarks/gpu_check.py runs on a GPU work, as far as that shows without one."""

from functools import partial

import torch

from ..gpu import test_operator
from ..ops.support import run_python


def test_what_the_kernels_do_not_take_is_skipped():
    """A backend's refusal, e.g. of float64, skips a test."""
    run_python(
        "import sys, pytest; sys.exit(pytest.main(['tests/ops/test_same_bits.py', '-q', '-p', 'no:cacheprovider', "
        "'-k', 'dtype1 and (few or repeat)']))",
        TRITON_INTERPRET="1", LIIF_FAST_TEST_BACKENDS="triton",
    )  # fmt: skip


def test_one_backend_after_another_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    for backend in ("torch", "reference"):
        test_operator.test_compiled(backend, "cpu", lambda *_: None)
