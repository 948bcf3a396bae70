"""Run the main jobs on a GPU: upscale a photograph, train a model."""

import numpy as np
import pytest
import torch

import liif_fast
from liif_fast.train import train

from ..train.conftest import TINY, write  # noqa: F401 - a fixture


@pytest.fixture
def photograph():
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 3, 12, 9)))
    smooth = torch.nn.functional.interpolate(coarse, size=(61, 45), mode="bicubic").clamp(0, 1)[0]
    return (smooth.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


@pytest.mark.parametrize(("precision", "levels"), [("float32", 1), ("fp16", 2), ("bf16", 6)])
def test_upscale(device, photograph, precision, levels):
    """Pixels are within one level of the CPU's; in half precision within the error of 11 or 8 bits at 255."""
    expected = liif_fast.upscale(photograph, scale=3.7, device="cpu").astype(int)
    result = liif_fast.upscale(photograph, scale=3.7, device=device, precision=precision).astype(int)
    assert np.abs(result - expected).max() <= levels


@pytest.mark.parametrize("options", [{}, {"amp": "bfloat16"}, {"amp": "fp16"}])
def test_training(device, tmp_path, write, options):  # noqa: F811
    if options and device == "cpu":
        pytest.skip("half precision on a CPU is tests/train's")
    path = write({**TINY, **options, "data_device": device})
    folder = train(path, name="run", save_root=tmp_path, device=device)
    model = liif_fast.load_model(folder / "epoch-last.pth")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
