"""Each form of the map's projection equals PyTorch's convolution, forward and backward."""

import pytest
import torch

from liif_fast.backends import projection


def assert_near(got, expected, tolerance=1e-5):
    error = (got - expected).abs().max() / expected.abs().max().clamp(min=1e-30) if expected.numel() else 0
    assert got.shape == expected.shape
    assert error <= tolerance


@pytest.mark.parametrize("unfold", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (1, 4, 1, 1), (3, 2, 7, 1), (0, 2, 3, 3)])
def test_projection_by_taps(shape, unfold):
    """The form for GPUs, run on the CPU, equals the convolution, and a NaN spreads no further."""
    torch.manual_seed(0)
    feat = torch.randn(shape, dtype=torch.float64)
    weight, bias = torch.randn(8, shape[1] * (9 if unfold else 1), dtype=torch.float64), torch.randn(8).double()
    inputs = [t.requires_grad_() for t in (feat, weight, bias)]
    kernel = weight.view(8, shape[1], *((3, 3) if unfold else (1, 1)))
    got, expected = projection.project_by_taps(feat, kernel, bias), projection.project(feat, weight, bias, unfold)
    assert_near(got, expected, 1e-13)
    grads = [torch.autograd.grad(rows.square().sum(), inputs) for rows in (got, expected)]
    for one, other in zip(*grads, strict=True):
        assert_near(one, other, 1e-13)
    if feat.numel():
        with torch.no_grad():
            feat[0, 0, 0, 0] = float("nan")
            rows = projection.project_by_taps(feat, kernel, bias).isnan()
        assert torch.equal(rows, projection.project(feat, weight, bias, unfold).isnan())


def test_convolution_operator():
    feat, kernel, bias = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    inputs = [t.requires_grad_() for t in (feat, kernel, bias)]
    torch.library.opcheck(torch.ops.liif_fast.convolve.default, inputs)
    grads = [
        torch.autograd.grad(convolve(*inputs).square().sum(), inputs)
        for convolve in (torch.ops.liif_fast.convolve, lambda *t: torch.nn.functional.conv2d(*t, padding=1))
    ]
    for got, expected in zip(*grads, strict=True):
        assert_near(got, expected)
