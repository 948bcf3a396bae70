"""The shortcut of tests/conftest.py through Triton's interpreter changes no result."""

import pytest
import torch

from liif_fast.functional import fused_mlp


def test_patching_once_a_launch_changes_no_result(monkeypatch):
    interpreter = pytest.importorskip("triton.runtime.interpreter", reason="triton is not installed")
    patch, executor = getattr(interpreter, "_patch_lang", None), getattr(interpreter, "GridExecutor", None)
    if not hasattr(patch, "__wrapped__"):
        pytest.skip("tests/conftest.py takes no shortcut here")
    torch.manual_seed(0)
    x, weights, biases = (
        torch.randn(5, 16),
        [torch.randn(16, 16), torch.randn(3, 16)],
        [torch.randn(16), torch.randn(3)],
    )
    short = fused_mlp(x, weights, biases, backend="triton")
    monkeypatch.setattr(interpreter, "_patch_lang", patch.__wrapped__)
    monkeypatch.setattr(executor, "__call__", executor.__call__.__wrapped__)
    assert torch.equal(short, fused_mlp(x, weights, biases, backend="triton"))
