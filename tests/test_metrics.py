import math

import pytest
import torch

from liif_fast.metrics import psnr


def test_by_hand():
    target = torch.zeros(2, 3, 4, 4)
    pred = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.2)])
    assert psnr(pred, target).item() == pytest.approx(-10 * math.log10((0.01 + 0.04) / 2), abs=1e-4)
    assert psnr(pred, target, per_image=True).tolist() == pytest.approx([20, -10 * math.log10(0.04)], abs=1e-4)


def test_shaved_borders():
    """div2k-2 leaves out 8 pixels, benchmark-2 leaves out 2."""
    target = torch.zeros(1, 1, 20, 20)
    pred = torch.ones(1, 1, 20, 20)
    pred[..., 2:-2, 2:-2] = 0.5
    pred[..., 8:-8, 8:-8] = 0.1
    assert psnr(pred, target, "div2k-2").item() == pytest.approx(20, abs=1e-4)
    inside = (0.01 * 16 + 0.25 * (256 - 16)) / 256
    assert psnr(pred, target, "benchmark-2").item() == pytest.approx(-10 * math.log10(inside), abs=1e-4)


def test_luma_of_benchmarks():
    pred = torch.tensor([0.1, -0.2, 0.3]).view(1, 3, 1, 1).expand(1, 3, 9, 9)
    y = (0.1 * 65.738 - 0.2 * 129.057 + 0.3 * 25.064) / 256
    assert psnr(pred, torch.zeros(1, 3, 9, 9), "benchmark-4").item() == pytest.approx(
        -20 * math.log10(abs(y)), abs=1e-4
    )


def test_wrong_arguments():
    x = torch.zeros(1, 3, 10, 10)
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(x, x[0])
    for kind in ("div2k", "div2k-2.5", "set5-2", "benchmark-0"):
        with pytest.raises(ValueError, match="eval_type must be"):
            psnr(x, x, kind)
    with pytest.raises(ValueError, match="larger than the 8 pixels"):
        psnr(x, x, "div2k-2")
    with pytest.raises(ValueError, match="must be images"):
        psnr(x[0, 0], x[0, 0], "div2k-2")
