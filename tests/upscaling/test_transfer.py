"""What a GPU does beside its work, with streams that only note who waits for whom: on a CPU there are no real ones."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from liif_fast.cli.upscale import _device
from liif_fast.devices import pick_device
from liif_fast.models import make
from liif_fast.upscaling import Options, features, strips, upscale
from liif_fast.upscaling.transfer import Transfers

Log = list[tuple[str, ...]]


class Event:
    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log

    def synchronize(self) -> None:
        self.log.append(("host waits for", self.name))


class Stream:
    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log
        self.events = 0

    def wait_stream(self, other: "Stream") -> None:
        self.log.append((self.name, "waits for", other.name))

    def record_event(self) -> Event:
        self.events += 1
        return Event(f"{self.name} {self.events}", self.log)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """CUDA's streams replaced by ones that write into this log; `copy` and pinned memory are noted as well."""
    seen: Log = []
    names = iter(("there", "back", *map(str, range(1000))))
    work = Stream("work", seen)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(next(names), seen))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)

    @contextlib.contextmanager
    def inside(stream: Stream) -> Iterator[None]:
        seen.append(("begin", stream.name))
        yield
        seen.append(("end", stream.name))

    monkeypatch.setattr(torch.cuda, "stream", inside)
    empty, copy = torch.empty, torch.Tensor.copy_

    def pinned(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory:
            seen.append(("pinned memory",))
        return empty(*args, **options)

    def copy_(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if non_blocking:
            seen.append(("copy",))
        return copy(self, source)

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, stream: seen.append(("memory kept for", stream.name))
    )
    return seen


def on_a_gpu(device: torch.device) -> Transfers:
    """Transfers as for a GPU whose memory is the CPU's."""
    transfers = Transfers(torch.device("cuda"))
    transfers.device = torch.device("cpu")
    return transfers


def test_on_a_cpu_nothing_is_copied_or_queued(log: Log) -> None:
    transfers = Transfers(torch.device("cpu"))
    tensor = torch.rand(2, 3)
    assert transfers.to_device(tensor) is tensor
    assert transfers.to_host(tensor)() is tensor
    assert log == []


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
    return make({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}).eval()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_strip_travels_while_the_next_is_rendered(
    log: Log, model: nn.Module, monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    """Rendering of strip n + 1 is queued before anybody waits for strip n; the values are those of the CPU."""
    values = np.random.default_rng(0).random((20, 30, 3))
    pixels = (values * 255).astype(dtype) if dtype != np.float32 else values.astype(dtype)
    monkeypatch.setattr(strips, "STRIP_QUERIES", 600)
    expected = upscale(pixels, model, scale=2)
    assert log == []

    render = features.Features.render

    def noting(self: features.Features, region: tuple[int, int, int, int]) -> torch.Tensor:
        log.append(("rendered", str(region[0] // 10)))
        return render(self, region)

    monkeypatch.setattr(features.Features, "render", noting)
    monkeypatch.setattr(strips, "Transfers", on_a_gpu)
    result = upscale(pixels, model, scale=2)
    assert result.dtype == dtype
    assert np.array_equal(result, expected)
    order = [entry for entry in log if entry[0] in ("rendered", "host waits for")]
    assert order == [
        ("rendered", "0"),
        ("rendered", "1"),
        ("host waits for", "back 1"),
        ("rendered", "2"),
        ("host waits for", "back 2"),
        ("rendered", "3"),
        ("host waits for", "back 3"),
        ("host waits for", "back 4"),
    ]
    assert log.index(("copy",)) < log.index(("rendered", "1"))


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
    """As with a weight that has a graph, which PyTorch's old weight_norm leaves behind."""
    encoder = nn.Conv2d(3, 4, 1)
    encoder.product = encoder.weight * 2  # type: ignore[assignment]
    model.encoder = encoder
    assert features.encoder_for(model, torch.device("cuda")) is encoder


def test_pixels_for_a_gpu_are_channels_last(model: nn.Module) -> None:
    seen = []

    class Encoder(nn.Module):
        receptive_radius = 1
        out_dim = 4

        def forward(self, inp: torch.Tensor) -> torch.Tensor:
            seen.append(inp)
            return model.encoder(inp)

    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    cpu = torch.device("cpu")
    part = features.Features(
        model, Encoder(), pixels, 255, (18, 14), (0, 0, 18, 14), Options(), Transfers(cpu), lambda: None
    )
    plain = part._read((2, 8), (1, 6))
    part.device = torch.device("cuda")
    part.transfers = Transfers(cpu)
    last = part._read((2, 8), (1, 6))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, plain)


def test_features_may_take_a_quarter_of_the_free_memory(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whole rows of tiles, and never less than on a CPU."""
    pixels = np.zeros((4000, 3000, 3), np.uint8)
    cpu = torch.device("cpu")
    part = features.Features(
        model,
        model.encoder,
        pixels,
        255,
        (8000, 6000),
        (0, 0, 8000, 6000),
        Options(tile=512),
        Transfers(cpu),
        lambda: 0,
    )
    row = 3000 * 4 * 4  # bytes: width, channels, float32
    assert part._band() == features.FEATURE_BYTES // row // 512 * 512
    part.device = torch.device("cuda")
    monkeypatch.setattr(features, "FEATURE_BYTES", row * 1500)
    for rows_free, rows in ((0, 1024), (4 * 1500, 1024), (4 * 3000, 2560), (4 * 3071, 2560), (4 * 3072, 3072)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=rows_free * row: (free, 1 << 40))
        assert part._band() == rows


def test_devices_of_a_machine_with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any of them can be named; of the processes of torchrun each takes its own unless one is named."""
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
