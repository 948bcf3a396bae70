import math

import pytest
import torch

from liif_fast.metrics import psnr, ssim


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


def window_of_ssim():
    """Return an 11 x 11 Gaussian of sigma 1.5 with sum 1."""
    x = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(x**2) / (2 * 1.5**2))
    return (line[:, None] * line / line.sum() ** 2)[None, None]


def plain_ssim(a, b):
    """Return the mean SSIM over the windows inside one channel [H, W] (Wang et al., equation 13)."""

    def mean(x):
        return torch.nn.functional.conv2d(x[None, None].double(), window_of_ssim())[0, 0]

    c1, c2 = 0.01**2, 0.03**2
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    return ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()


def test_ssim_is_that_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 3, 40, 50, generator=generator)
    pred = (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    expected = [sum(plain_ssim(a, b) for a, b in zip(x, y, strict=True)) / 3 for x, y in zip(pred, target, strict=True)]
    assert ssim(pred, target).tolist() == pytest.approx([e.item() for e in expected], abs=1e-6)
    inside = [
        sum(plain_ssim(a[8:-8, 8:-8], b[8:-8, 8:-8]) for a, b in zip(x, y, strict=True)) / 3
        for x, y in [(pred[0], target[0])]
    ]
    assert ssim(pred[:1], target[:1], "div2k-2").item() == pytest.approx(inside[0].item(), abs=1e-6)
    weights = torch.tensor([65.738, 129.057, 25.064], dtype=torch.float64).view(3, 1, 1) / 256
    y = [(x[0].double() * weights).sum(0)[4:-4, 4:-4] + 16 / 255 for x in (pred, target)]
    assert ssim(pred[:1], target[:1], "benchmark-4").item() == pytest.approx(plain_ssim(*y).item(), abs=1e-6)
    assert ssim(target, target).tolist() == [1, 1]


def test_ssim_needs_a_window():
    x = torch.zeros(1, 3, 26, 30)
    with pytest.raises(ValueError, match=r"11 x 11 pixels to compare, got \[1, 3, 10, 14\]"):
        ssim(x, x, "div2k-2")
    with pytest.raises(ValueError, match="equal shapes"):
        ssim(x, x[:, :1])
