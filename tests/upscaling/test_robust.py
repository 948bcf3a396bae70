"""Test exhausted memory, overflow in half precision, interruptions, and the limits of memory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import liif_fast
from liif_fast import upscaling
from liif_fast.models import make
from liif_fast.upscaling import Frame, features, strips, upscale, upscale_file, upscale_strips

ROOT = Path(liif_fast.__file__).parents[1]
MIB = 2**20


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Return a tiny LIIF with random weights."""
    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
    return make({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}).eval()


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)


def failing(whole: Callable[..., Any], when: Callable[..., bool], error: BaseException) -> Callable[..., Any]:
    """Wrap `whole` so that it raises `error` if `when` holds for its arguments."""

    def call(*args: Any, **options: Any) -> Any:
        if when(*args, **options):
            raise error
        return whole(*args, **options)

    return call


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_tile(
    model: nn.Module,
    picture: NDArray,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    """If the encoder fails on all tiles above 40 pixels, the result is unchanged."""
    expected = upscale(picture, model, scale=2)
    tiles: list[int] = []

    def too_large(*args: Any) -> bool:
        tiles.append(args[5])
        return args[5] > 40

    monkeypatch.setattr(features, "encode_window", failing(features.encode_window, too_large, error))
    assert np.abs(upscale(picture, model, scale=2, tile=128).astype(int) - expected).max() <= 1
    assert tiles[:3] == [128, 64, 32]
    assert "continuing with tiles of 64 pixels" in caplog.text
    assert "continuing with tiles of 32 pixels" in caplog.text


def test_out_of_memory_halves_the_strip(model: nn.Module, picture: NDArray, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = upscale(picture, model, scale=2)

    def too_large(self: features.Features, frame: Frame) -> bool:
        return frame.region[2] > 20

    monkeypatch.setattr(features.Features, "render", failing(features.Features.render, too_large, MemoryError()))
    heights = [len(rows) for rows in upscale_strips(picture, model, scale=2)]
    assert sum(heights) == 180
    assert max(heights) <= 20
    assert np.array_equal(upscale(picture, model, scale=2), expected)


def test_out_of_memory_after_the_rendering_halves_the_strip(
    model: nn.Module, picture: NDArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may also run out in quantising, which takes as much again on the device."""
    expected = upscale(picture, model, scale=2)

    def too_large(values: torch.Tensor, dtype: np.dtype) -> bool:
        return len(values) > 20

    monkeypatch.setattr(strips, "_quantise", failing(strips._quantise, too_large, OUT_OF_MEMORY[1]))
    assert np.array_equal(upscale(picture, model, scale=2), expected)


def test_no_memory_at_all_is_an_error(model: nn.Module, picture: NDArray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "encode_window", failing(features.encode_window, lambda *args: True, MemoryError()))
    with pytest.raises(MemoryError):
        upscale(picture, model, scale=2)


def test_another_error_is_not_taken_for_memory(
    model: nn.Module, picture: NDArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("something else")
    monkeypatch.setattr(features, "encode_window", failing(features.encode_window, lambda *args: True, error))
    with pytest.raises(RuntimeError, match="something else"):
        upscale(picture, model, scale=2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close(model: nn.Module, picture: NDArray, precision: str) -> None:
    exact = upscale(picture, model, scale=2).astype(int)
    low = upscale(picture, model, scale=2, precision=precision).astype(int)
    assert 0 < np.abs(low - exact).max() <= 8
    assert np.abs(low - exact).mean() < 0.5


def test_overflow_in_half_precision_goes_on_in_float32(
    model: nn.Module, picture: NDArray, caplog: pytest.LogCaptureFixture
) -> None:
    """Features of 1e6 are infinite in float16; the picture equals float32's, with a notice."""
    large = make(model.spec).eval()
    large.load_state_dict(model.state_dict())
    with torch.no_grad():
        large.encoder.head[0].weight *= 1e6
        large.imnet.layers[0].weight[:, :-4] /= 1e6
    expected = upscale(picture, large, scale=2)
    assert "float32" not in caplog.text
    result = upscale(picture, large, scale=2, precision="fp16")
    assert np.array_equal(result, expected)
    assert caplog.text.count("continuing in float32") == 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_overflow_in_the_decoder_alone_renders_the_strip_again(
    model: nn.Module,
    picture: NDArray,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    """If the decoder overflows in half precision, as on a GPU, that strip and all later ones are in float32."""
    monkeypatch.setattr(strips, "STRIP_QUERIES", 140 * 30)
    decode = features.Features._decode
    used: list[torch.dtype | None] = []

    def overflowing(self: features.Features, frame: Frame, place: Any) -> torch.Tensor:
        used.append(self.dtype)
        out = decode(self, frame, place)
        if self.dtype is not None and frame.region[0] >= 60:
            out[1, -1, -1] = torch.inf
        return out

    monkeypatch.setattr(features.Features, "_decode", overflowing)
    half = getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[precision])
    exact = upscale(picture, model, scale=2)
    used.clear()
    result = upscale(picture, model, scale=2, precision=precision)
    assert used == [half, half, half, None, None, None, None]
    assert caplog.text.count("continuing in float32") == 1
    assert np.abs(result.astype(int) - exact).max() <= 8


def test_the_input_is_left_alone(model: nn.Module) -> None:
    for shape in ((20, 30), (20, 30, 1), (20, 30, 3)):
        image = np.random.default_rng(0).random(shape, np.float32)
        kept = image.copy()
        upscale(image, model, scale=2)
        assert np.array_equal(image, kept)


def test_unknown_precision(model: nn.Module, picture: NDArray) -> None:
    with pytest.raises(ValueError, match="precision must be one of float32, bf16, fp16, got 'int8'"):
        upscale(picture, model, scale=2, precision="int8")


def test_strips(model: nn.Module, picture: NDArray, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = upscale(picture, model, scale=2.5)
    monkeypatch.setattr(strips, "STRIP_QUERIES", 1000)
    made = upscale_strips(picture, model, scale=2.5)
    assert (made.shape, made.dtype) == ((225, 175, 3), np.uint8)
    rows = list(made)
    assert len(rows) > 10
    assert np.array_equal(np.concatenate(rows), expected)
    for bad in ({"scale": 0.5}, {"scale": 2, "region": (0, 0, 500, 2)}, {"scale": 2, "tile": 1}):
        with pytest.raises(ValueError, match=r"scale|region|tile"):  # at once, not during iteration
            upscale_strips(picture, model, **bad)


@pytest.mark.parametrize("region", [(0, 0, 1, 1), (100, 20, 57, 101), (224, 174, 1, 1), (0, 0, 225, 175)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_region_is_a_part_of_the_whole(
    model: nn.Module, picture: NDArray, monkeypatch: pytest.MonkeyPatch, region: tuple, channels: int
) -> None:
    pixels = np.concatenate((picture, picture[..., :1]), 2)[..., :channels]
    top, left, height, width = region
    whole = upscale(pixels, model, scale=2.5)
    part = upscale(pixels, model, scale=2.5, region=region)
    assert part.shape == (height, width, channels)
    assert np.array_equal(part, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("size", [(225, 175), (270, 210)])
def test_rows_of_features_change_no_bit(
    model: nn.Module, picture: NDArray, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """Features held row by row give the bits of the whole map, also at odd ratios."""
    results = []
    for budget in (0, 1 << 16, 1 << 20):
        monkeypatch.setattr(features, "FEATURE_BYTES", budget)
        results.append(upscale((picture / 255).astype(np.float32), model, size=size[::-1], tile=32))
    assert np.array_equal(results[0], results[2])
    assert np.array_equal(results[1], results[2])


@pytest.mark.parametrize("extension", ["png", "tif", "ppm", "jpg", "webp", "bmp"])
def test_interruption_at_any_strip_leaves_nothing(
    model: nn.Module, picture: NDArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    source, target = tmp_path / "in.png", tmp_path / f"out.{extension}"
    liif_fast.images.write_strips(source, [picture[:20]], (20, 70, 3), 8, {})
    monkeypatch.setattr(strips, "STRIP_QUERIES", 140 * 8)
    whole = features.Features.render
    for last in range(5):
        left = last

        def render(self: features.Features, frame: Frame) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return whole(self, frame)

        monkeypatch.setattr(features.Features, "render", render)
        target.write_bytes(b"old")
        with pytest.raises(KeyboardInterrupt):
            upscale_file(source, target, model, scale=2)
        assert target.read_bytes() == b"old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", target.name]


# In a process of its own: by how much its peak exceeds that of a small image run before.
CHILD = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from liif_fast.models import make
from liif_fast.upscaling import features, upscale_file
from liif_fast.images import write_strips
features.FEATURE_BYTES = 8 << 20
torch.manual_seed(0)
encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 32, "no_upsampling": True}}
imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
model = make({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}).eval()
def run(height, width, scale):
    source, target = f"{sys.argv[1]}/in.png", f"{sys.argv[1]}/out.{sys.argv[2]}"
    write_strips(source, (np.full((1, width, 3), i % 256, np.uint8) for i in range(height)), (height, width, 3), 8, {})
    upscale_file(source, target, model, scale=scale, tile=128)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small = run(300, 300, 1.2)
print(run(1200, 1000, 1.2) - small)
"""


@pytest.mark.parametrize(("extension", "ceiling"), [("png", 60), ("tif", 60)])
def test_memory_stays_below_the_features_of_the_whole(tmp_path: Path, extension: str, ceiling: int) -> None:
    """1.2 million latents of 32 channels would take 146 MiB; the input takes 3 to 8 bytes per pixel, 10 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path, extension], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert int(done.stdout) < ceiling * MIB


def test_every_name_is_public() -> None:
    assert liif_fast.upscale_file is upscaling.upscale_file
    assert liif_fast.upscale_strips is upscaling.upscale_strips
