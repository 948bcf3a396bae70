"""A second derivative through the fused kernels is refused, not silently incomplete."""

import pytest
import torch

from liif_fast import functional


def test_second_derivative_is_refused() -> None:
    weights = [torch.randn(8, 76, requires_grad=True), torch.randn(3, 8, requires_grad=True)]
    biases = [torch.randn(8, requires_grad=True), torch.randn(3, requires_grad=True)]
    feat = torch.randn(1, 8, 4, 4, requires_grad=True)
    coord, cell = torch.rand(1, 9, 2), torch.rand(1, 9, 2)
    out = functional.liif_decode(feat, coord, cell, weights, biases, backend="cpu")
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(out.square().sum(), feat, create_graph=True)
