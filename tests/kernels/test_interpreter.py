"""The shortcuts of tests/interpreter.py change no result."""

import os

import pytest
import torch

from liif_fast.functional import fused_mlp

if "LIIF_FAST_TEST_BACKENDS" in os.environ:
    pytest.skip("tests/conftest.py takes no shortcut here", allow_module_level=True)

from .. import interpreter


def test_shortcuts_change_no_result(monkeypatch):
    torch.manual_seed(0)
    weights, biases = [torch.randn(16, 16), torch.randn(3, 16)], [torch.randn(16), torch.randn(3)]
    x = torch.randn(5, 16)
    short = fused_mlp(x, weights, biases, backend="triton")
    for owner, name, original in interpreter.TAKEN:
        monkeypatch.setattr(owner, name, original)
    assert torch.equal(short, fused_mlp(x, weights, biases, backend="triton"))
