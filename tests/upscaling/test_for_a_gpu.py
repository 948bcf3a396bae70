"""Test the code for GPUs, as far as a CPU can show it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from liif_fast.cli.upscale import _device
from liif_fast.devices import pick_device
from liif_fast.models import make
from liif_fast.upscaling import Options, features


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
    return make({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}).eval()


def test_the_encoder_for_a_gpu_is_a_copy_in_channels_last(model: nn.Module) -> None:
    weight = model.encoder.head[0].weight
    assert features.encoder_for(model, torch.device("cpu")) is model.encoder
    encoder: Any = features.encoder_for(model, torch.device("cuda"))
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 6
    assert all(each.weight.is_contiguous(memory_format=torch.channels_last) for each in convolutions)
    assert torch.equal(encoder.head[0].weight, weight)
    assert not weight.is_contiguous(memory_format=torch.channels_last)


def test_an_encoder_that_cannot_be_copied_is_used_as_it_is(model: nn.Module) -> None:
    """An encoder cannot be copied if a weight has a graph, which PyTorch's old weight_norm leaves."""
    encoder = nn.Conv2d(3, 4, 1)
    encoder.product = encoder.weight * 2  # type: ignore[assignment]
    model.encoder = encoder
    assert features.encoder_for(model, torch.device("cuda")) is encoder


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_pixels_are_channels_last(model: nn.Module, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions are faster in this layout, on a CPU, too."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    part = features.Features(model, model.encoder, pixels, 255, (0, 0, 9, 7), Options(), lambda: None)
    part.device = torch.device(kind)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **options: self)
    found = part._read((2, 8), (1, 6))
    assert found.is_contiguous(memory_format=torch.channels_last)
    plain = torch.from_numpy(pixels[2:8, 1:6] / np.float32(255)).permute(2, 0, 1)[None]
    assert torch.equal(found, model.norm().inp(plain))


def test_features_may_take_a_quarter_of_the_free_memory(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of tiles fit into it; tiles are never larger than the option says, nor lower than 64 pixels."""
    pixels, row = np.zeros((4000, 3000, 3), np.uint8), 3000 * 4 * 4  # bytes: width, channels, float32

    def made(budget: int, tile: int = 512) -> features.Features:
        monkeypatch.setattr(features, "FEATURE_BYTES", budget)
        window = (0, 0, 4000, 3000)
        return features.Features(model, model.encoder, pixels, 255, window, Options(tile=tile), lambda: None)

    for budget, height in ((row * 300, 149), (row, 64), (row * 3000, 500)):
        part = made(budget)
        assert max(last - first for first, last in part.rows) == height
        assert part.kept.budget >= 2 * height * row
    part.device = torch.device("cuda")
    for free, expected in ((0, 3000), (4 * 2999, 3000), (4 * 4000, 4000)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * row, 1 << 40))
        assert part._budget() == expected * row


def test_devices_of_a_machine_with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any GPU can be named; otherwise each process of torchrun takes its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("cpu:0") == torch.device("cpu")
    with pytest.raises(ValueError, match="'cuda:2' is not available: there are 2 GPUs"):
        pick_device("cuda:2")
    assert [_device(name) for name in ("auto", "cuda", "cpu")] == ["auto", "cuda", "cpu"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [_device(name) for name in ("auto", "cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
