"""An image that is opened once gives any window at any time, with the bits of `upscale`."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import liif_fast
from liif_fast import Upscaler
from liif_fast.coord import make_cell, make_coord
from liif_fast.images import read_image, write_strips
from liif_fast.upscaling import features, upscale, upscale_file
from liif_fast.upscaling.cache import Cache
from liif_fast.upscaling.sizes import Frame, frame_over


def picture(kind: str) -> NDArray:
    rng = np.random.default_rng(0)
    height, width = 103, 131  # above the size at which PyTorch's convolutions round otherwise
    pixels = rng.integers(0, 65536, (height, width, 4), np.uint16)
    pixels[..., 3] = np.clip(np.linspace(-30000, 90000, width), 0, 65535)  # hidden, half and fully visible
    if kind.startswith("gray"):
        pixels = pixels[..., ::3]
    pixels = pixels if kind.endswith("alpha") else pixels[..., :-1]
    return pixels if "16" in kind else (pixels >> 8).astype(np.uint8)


@pytest.mark.parametrize("kind", ["rgb", "rgb 16", "gray", "gray alpha", "rgb 16 alpha"])
@pytest.mark.parametrize("size", [(393, 309), (483, 381)])
def test_windows_at_random_have_the_bits_of_the_whole(model: nn.Module, kind: str, size: tuple[int, int]) -> None:
    """Neither their order nor the tiles in which they are encoded change a bit."""
    pixels = picture(kind)
    whole = upscale(pixels, model, size=size)
    opened = Upscaler(pixels, model, tile=40)
    for row, column in np.random.default_rng(1).integers(0, (size[1] - 57, size[0] - 64), (12, 2)).tolist():
        part = opened.render(size=size, region=(row, column, 57, 64))
        assert np.array_equal(part, whole[row : row + 57, column : column + 64])


def test_a_small_cache_changes_no_bit_and_stays_small(model: nn.Module) -> None:
    pixels = picture("rgb")
    whole = upscale(pixels, model, scale=3)
    cache: Cache[torch.Tensor] = Cache(40 * 40 * 8 * 4 * 3)
    opened = Upscaler(pixels, model, tile=40, memory=cache)
    for row in (0, 150, 40, 200, 0):
        assert np.array_equal(opened.render(scale=3, region=(row, 20, 50, 300)), whole[row : row + 50, 20:320])
        assert 0 < cache.used <= cache.budget
    assert len(cache) < 3 * 4  # of the tiles of the image


def test_a_tile_is_encoded_once(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    encode = features.encode_window

    def counted(*args: object) -> torch.Tensor:
        nonlocal count
        count += 1
        return encode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "encode_window", counted)
    opened = Upscaler(picture("rgb"), model, tile=40)
    for _ in range(2):
        opened.render(scale=4, region=(0, 0, 20, 20))
    assert count == 1
    opened.render(scale=4)
    assert count == 3 * 4


def test_a_fraction_of_the_image(model: nn.Module) -> None:
    pixels, extent, size = picture("rgb"), (20.3, 31.7, 33.4, 41.9), (150, 121)
    result = Upscaler(pixels, model, tile=40).render(size=size, extent=extent)
    assert result.shape == (121, 150, 3)
    inp = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    grid = {"extent": extent, "of": pixels.shape[:2]}
    with torch.no_grad():
        pred = model((inp - 0.5) / 0.5, make_coord(size[::-1], **grid)[None], make_cell(size[::-1], **grid)[None])
    expected = ((pred[0] * 0.5 + 0.5).clamp(0, 1) * 255).round().view(121, 150, 3).numpy()
    assert np.abs(result - expected).max() <= 1
    assert (result == expected).mean() > 0.999  # the decoder is called in another way


@pytest.mark.parametrize("kind", ["rgb 16 alpha", "gray alpha"])
def test_a_fraction_beside_whole_pixels_is_nearly_the_same(model: nn.Module, kind: str) -> None:
    """This holds for alpha, too, whose neighbours and bicubic interpolation are computed at fractions."""
    opened = Upscaler(picture(kind), model, tile=40)
    near = opened.render(size=(150, 121), extent=(20.3 + 1e-7, 31.7, 33.4, 41.9)).astype(float)
    far = opened.render(size=(150, 121), extent=(20.4, 31.7, 33.4, 41.9)).astype(float)
    here = opened.render(size=(150, 121), extent=(20.3, 31.7, 33.4, 41.9))
    top = np.iinfo(here.dtype).max
    assert np.abs(near - here).mean() < 1e-4 * top < np.abs(far - here).mean()


def test_a_fraction_that_is_a_window_of_a_whole_output_has_its_bits(model: nn.Module) -> None:
    pixels = picture("rgb 16 alpha")
    whole = upscale(pixels, model, scale=3.7)
    height, width = whole.shape[:2]
    opened = Upscaler(pixels, model, tile=40)
    for top, left, h, w in ((0, 0, 30, 41), (101, 77, 30, 41), (height - 30, width - 41, 30, 41)):
        extent = (top * 103 / height, left * 131 / width, h * 103 / height, w * 131 / width)
        assert np.array_equal(opened.render(size=(w, h), extent=extent), whole[top : top + h, left : left + w])
    assert frame_over((131, 103), None, (262, 206), None, (0, 0, 103, 131), 1 << 20) == Frame(
        (206, 262), (0, 0, 206, 262)
    )


@pytest.mark.parametrize("kind", ["rgb 16", "gray"])
def test_a_region_of_a_file_has_the_bits_of_the_whole(model: nn.Module, tmp_path, kind: str) -> None:
    """Only a part of the input is read, but its interpolation, to which the model adds, is that of the whole."""
    pixels = picture(kind)
    write_strips(tmp_path / "in.png", [pixels], pixels.shape, 8 * pixels.dtype.itemsize, {})
    whole = upscale(pixels, model, scale=3.7)
    for top, left in ((0, 0), (101, 77), (350, 450)):
        upscale_file(tmp_path / "in.png", tmp_path / "out.png", model, scale=3.7, region=(top, left, 31, 30))
        part = read_image(tmp_path / "out.png").pixels
        assert np.array_equal(part, whole[top : top + 31, left : left + 30])


def test_what_is_opened_comes_back(model: nn.Module, tmp_path) -> None:
    image = Image.fromarray(picture("rgb")[:20, :30])
    assert np.array_equal(Upscaler(image, model).render(scale=2), upscale(image, model, scale=2))
    assert isinstance(Upscaler(image, model).render(scale=2), Image.Image)
    image.save(tmp_path / "in.png")
    opened = Upscaler(tmp_path / "in.png", model)
    assert opened.size == (30, 20)
    assert np.array_equal(opened.render(scale=2), np.asarray(upscale(image, model, scale=2)))
    assert liif_fast.Upscaler is Upscaler


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.5}, "at least 1"),
        ({"scale": 2, "region": (0, 0, 500, 2)}, "region must lie in the output"),
        ({"scale": 2, "extent": (0, 0, 104, 5)}, "inside the map of 103x131"),
        ({"size": (4, 4), "extent": (0, 0, 5.5, 5.5)}, "smaller than the input 5.5x5.5"),
        ({"extent": (0, 0, 5, 5)}, "exactly one of scale and size"),
    ],
)
def test_bad_windows(model: nn.Module, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Upscaler(picture("rgb"), model).render(**arguments)


def test_a_cache_forgets_what_was_used_last() -> None:
    cache: Cache[str] = Cache(10)
    for key in "abc":
        cache.put(key, key.upper(), 4)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.used, len(cache)) == (None, "B", "C", 8, 2)
    cache.get("b")
    cache.put("d", "D", 4)
    assert (cache.get("b"), cache.get("c")) == ("B", None)
    cache.put("b", "BB", 6)  # in the place of the other
    assert (cache.get("b"), cache.used) == ("BB", 10)
    cache.put("large", "L", 99)  # the newest stays
    assert (cache.get("large"), cache.used, len(cache)) == ("L", 99, 1)
    cache.drop("nothing")
