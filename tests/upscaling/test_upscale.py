"""Compare liif_fast.upscale on every kind of image with the model's render of the whole image in floating point."""

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor, nn

from liif_fast import upscaling
from liif_fast.images import Picture, read_image
from liif_fast.models.catalogue import shipped_model
from liif_fast.upscaling import strips

SCALE = 2.3
upscale = functools.partial(upscaling.upscale, tile=8)


pytestmark = pytest.mark.usefixtures("small_pieces")


def photo(height: int = 13, width: int = 19, channels: int = 3) -> NDArray[np.uint8]:
    """Return smooth colours with some noise."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(0.3 * x + 0.2 * y + c) for c in range(channels)], -1)
    noise = np.random.default_rng(0).uniform(-20, 20, waves.shape)
    return (127 + 100 * waves + noise).round().astype(np.uint8)


@torch.no_grad()
def whole_render(model: nn.Module, planes: NDArray, size: tuple[int, int]) -> NDArray:
    """Enlarge [H, W, 3] in [0, 1] to [*size, 3] by the plain formula, untiled and not clamped."""
    inp = torch.from_numpy(planes).float().permute(2, 0, 1)[None]
    model.backend = "reference"
    try:
        out: Tensor = model.render((inp - 0.5) / 0.5, size)
    finally:
        model.backend = "auto"
    return (out[0].permute(1, 2, 0) * 0.5 + 0.5).numpy()


def sides(array: NDArray) -> tuple[int, int]:
    return round(array.shape[0] * SCALE), round(array.shape[1] * SCALE)


def assert_within_one_level(result: NDArray, expected: NDArray, top: int = 255) -> None:
    """Allow one level, because rounding may fall on either side; most values must be equal."""
    difference = np.abs(result.astype(float) - np.clip(expected, 0, 1) * top)
    assert difference.max() <= 1
    assert (difference <= 0.5 + 1e-2).mean() > 0.99


def test_rgb(model: nn.Module) -> None:
    pixels = photo()
    result = upscale(Image.fromarray(pixels), model, scale=SCALE)
    assert (result.mode, result.size) == ("RGB", sides(pixels)[::-1])
    assert_within_one_level(np.asarray(result), whole_render(model, pixels / 255, sides(pixels)))
    assert np.array_equal(upscale(pixels, model, scale=SCALE), np.asarray(result))


def test_gray(model: nn.Module) -> None:
    pixels = photo()[..., 0]
    result = upscale(Image.fromarray(pixels), model, scale=SCALE)
    assert result.mode == "L"
    expected = whole_render(model, np.repeat(pixels[..., None], 3, 2) / 255, sides(pixels)).mean(2)
    assert_within_one_level(np.asarray(result), expected)
    assert np.array_equal(upscale(pixels, model, scale=SCALE), np.asarray(result))
    assert np.array_equal(upscale(pixels[..., None], model, scale=SCALE)[..., 0], np.asarray(result))


def test_16_bit(model: nn.Module) -> None:
    gray = photo()[..., 0].astype(np.uint16) * 257 - 77
    result = upscale(Image.fromarray(gray), model, scale=SCALE)
    assert result.mode == "I;16"
    expected = whole_render(model, np.repeat(gray[..., None], 3, 2) / 65535, sides(gray)).mean(2)
    assert_within_one_level(np.asarray(result), expected, 65535)
    colour = photo().astype(np.uint16) * 257
    for dtype in ("<u2", ">u2"):
        wide = upscale(colour.astype(dtype), model, scale=SCALE)
        assert wide.dtype == np.dtype(dtype)
        assert_within_one_level(wide, whole_render(model, colour / 65535, sides(colour)), 65535)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays(model: nn.Module, dtype: type) -> None:
    pixels = (photo() / 255).astype(dtype)
    result = upscale(pixels, model, scale=SCALE)
    assert result.dtype == dtype
    expected = np.clip(whole_render(model, pixels, sides(pixels)), 0, 1)
    np.testing.assert_allclose(result, expected, atol=1e-3 if dtype == np.float16 else 1e-5)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha(model: nn.Module, mode: str) -> None:
    """If alpha has no 0, colour and alpha are rendered independently."""
    pixels = photo(channels=len(mode))
    pixels[..., -1] |= 1
    result = upscale(Image.fromarray(pixels), model, scale=SCALE)
    assert result.mode == mode
    out = np.asarray(result)
    colour = np.ascontiguousarray(pixels[..., :-1])
    assert np.array_equal(out[..., :-1], upscale(colour, model, scale=SCALE))
    alone = upscale(np.ascontiguousarray(pixels[..., -1]), model, scale=SCALE)
    assert (out[..., -1] == alone).mean() > 0.5  # the others are clamped to the neighbourhood
    assert np.array_equal(upscale(pixels, model, scale=SCALE), out)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_self_ensemble(model: nn.Module, channels: int) -> None:
    """The result is the mean over all turns of the model's output for the turned image, rounded once."""
    pixels = photo(channels=channels)
    pixels[..., -1] |= channels == 4
    result = upscale(pixels, model, scale=SCALE, self_ensemble=True)
    colour = np.repeat(pixels, 3, 2) if channels == 1 else np.ascontiguousarray(pixels[..., :3])
    made = []
    for mirror in (False, True):
        for quarters in range(4):
            turned = np.rot90(colour[:, ::-1] if mirror else colour, quarters)
            out = np.rot90(whole_render(model, turned / 255, sides(turned)), -quarters)
            made.append(out[:, ::-1] if mirror else out)
    expected = np.mean(made, 0)
    assert np.std(made, 0).max() * 255 > 1
    expected = expected.mean(2, keepdims=True) if channels == 1 else expected
    assert_within_one_level(result[..., :3], expected)
    window = result[3:14, 5:26]
    assert np.array_equal(upscale(pixels, model, scale=SCALE, self_ensemble=True, region=(3, 5, 11, 21)), window)


def test_self_ensemble_of_a_file(model: nn.Module, tmp_path: Path) -> None:
    """A window reads only a part of the input; opaque stays opaque; progress covers all turns."""
    pixels = photo(80, 120)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    seen: list[float] = []
    options: dict[str, Any] = {"scale": 1.5, "self_ensemble": True, "region": (20, 30, 9, 13)}
    read = []
    whole = Picture.window
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Picture, "window", lambda self, window: read.append(window) or whole(self, window))
        upscaling.upscale_file(
            tmp_path / "in.png", tmp_path / "out.png", model, **options,
            progress=lambda stage, done, total: seen.append(done / total) if stage == "render" else None,
        )  # fmt: skip
    assert len(read) == 1 and read[0][2] * read[0][3] < 80 * 120
    assert np.array_equal(read_image(tmp_path / "out.png").pixels, upscale(pixels, model, **options))
    assert seen == sorted(seen) and seen[-1] == 1
    with pytest.raises(ValueError, match="has more than 1073741824 pixels, which a self-ensemble holds"):
        upscaling.upscale_strips(pixels, model, size=(40_000, 30_000), self_ensemble=True)


def disc(colour: int, hidden: int) -> NDArray[np.uint8]:
    """Return an antialiased disc of one colour; `hidden` is the colour where nothing is visible."""
    y, x = np.mgrid[:24, :24]
    alpha = np.clip(8.5 - np.hypot(x - 11.5, y - 11.5), 0, 1)
    pixels = np.full((24, 24, 4), colour, np.uint8)
    pixels[..., 3] = (alpha * 255).round()
    pixels[alpha == 0, :3] = hidden
    return pixels


def test_no_halo_and_no_holes(model: nn.Module) -> None:
    """Hidden colour does not matter, opaque stays opaque, and nothing stays nothing."""
    black, white = (upscale(disc(200, hidden), model, scale=4) for hidden in (0, 255))
    visible = black[..., 3] > 0
    assert np.array_equal(black, white)
    plain = upscale(np.full((24, 24, 3), 200, np.uint8), model, scale=4)
    assert np.abs(black[visible][:, :3].astype(int) - plain[visible]).max() <= 1  # no darker at the edge
    y, x = np.mgrid[:96, :96] / 4 + 0.125
    radius = np.hypot(x - 12, y - 12)
    assert (black[radius < 5, 3] == 255).all()
    assert (black[radius > 12, 3] == 0).all()


@pytest.mark.parametrize("size", [(61, 52), (48, 48), (97, 75)])
@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_no_specks_outside_an_outline_and_no_holes_inside(
    model: nn.Module, size: tuple[int, int], invert: bool, dtype: type
) -> None:
    """If the nearest alpha and Pillow's bicubic are both empty or both full, the result is, in any strip or region."""
    ringing = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in ringing.imnet.layers[-1].parameters():
            parameter.mul_(20)
    icon = disc(200, 0)
    icon[::5, 3:7, 3] = 255
    icon[..., 3] ^= 255 * invert
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    pixels = (icon / 255 * top).astype(dtype)
    alpha = upscale(pixels, ringing, size=size)[..., 3]
    low = Image.fromarray(icon[..., 3].astype(np.float32) / 255)
    nearest = np.asarray(low.resize(size, Image.Resampling.NEAREST))
    for sides in ((size[0], 24), size):  # as for 8 bits, clipped after each axis
        low = Image.fromarray(np.asarray(low.resize(sides, Image.Resampling.BICUBIC)).clip(0, 1))
    empty, full = (np.maximum(nearest, low) < 1e-6), (np.minimum(nearest, low) > 1 - 1e-6)
    assert (alpha[empty] == 0).all()
    assert (alpha[full] == top).all()
    assert empty.sum() > 500 and full.sum() > 500
    window = upscale(pixels.astype(dtype), ringing, size=size, region=(11, 7, 30, 31))[..., 3]
    assert np.array_equal(window == 0, (alpha == 0)[11:41, 7:38])
    assert np.array_equal(window == top, (alpha == top)[11:41, 7:38])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [3, 4])
def test_equal_channels_stay_equal(model: nn.Module, dtype: type, channels: int) -> None:
    """RGB that is gray where visible gives the gray picture's result, in every region."""
    gray = photo(channels=1)
    pixels = np.concatenate([gray] * 3 + [photo(channels=2)[..., 1:]] * (channels - 3), 2)
    if channels == 4:
        pixels[2:5, 3:8] = (255, 0, 7, 0)  # hidden
    pixels = pixels.astype(dtype) * dtype(257) if dtype is np.uint16 else pixels
    pixels = pixels / dtype(255) if dtype is np.float32 else pixels
    out = upscale(pixels, model, scale=SCALE)
    assert (out[..., :3] == out[..., :1]).all()
    assert np.array_equal(out[..., ::3], upscale(pixels[..., ::3], model, scale=SCALE).reshape(out[..., ::3].shape))
    window = upscale(pixels, model, scale=SCALE, region=(9, 8, 12, 20))
    assert (window[..., :3] == window[..., :1]).all()
    if dtype is np.uint8:
        assert np.array_equal(np.asarray(upscale(Image.fromarray(pixels), model, scale=SCALE)), out)
    pixels[-1, -1] = (1, 0, 0, 1)[:channels]
    coloured = upscale(pixels, model, scale=SCALE)
    assert (
        coloured[:20, :20, 0] != coloured[:20, :20, 1]
    ).any()  # one distant coloured pixel makes it a colour picture


@pytest.mark.parametrize("value", [0, 77, 255])
def test_constant_alpha_stays(model: nn.Module, value: int) -> None:
    pixels = photo(channels=4)
    pixels[..., 3] = value
    out = upscale(pixels, model, scale=SCALE)
    assert (out[..., 3] == value).all()
    colour = np.ascontiguousarray(pixels[..., :3])
    assert np.array_equal(out[..., :3], upscale(colour, model, scale=SCALE))


def test_palette_and_1_bit(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    image = Image.fromarray(photo())
    palette = image.quantize(16)
    assert np.array_equal(
        np.asarray(upscale(palette, model, scale=2)), np.asarray(upscale(palette.convert("RGB"), model, scale=2))
    )
    assert caplog.messages[0].startswith("image: has a palette; the models are made for photographs")
    caplog.clear()
    bits = image.convert("1")
    result = upscale(bits, model, scale=2)
    assert caplog.messages[0].startswith("image: has 1 bit per pixel; the models")
    caplog.clear()
    assert result.mode == "L"
    assert np.array_equal(np.asarray(result), np.asarray(upscale(bits.convert("L"), model, scale=2)))
    assert not caplog.messages


def test_orientation_and_profile(model: nn.Module) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x0100] = 19
    exif[ExifTags.IFD.Exif] = {0xA002: 19, 0xA003: 13}
    image = Image.fromarray(photo())
    image.info["icc_profile"] = b"some profile"
    image.info["exif"] = exif.tobytes()
    result = upscale(image, model, scale=2)
    assert result.size == (26, 38)
    assert result.getexif().get(0x0112, 1) == 1
    assert result.getexif()[0x0100] == 26
    assert dict(result.getexif().get_ifd(ExifTags.IFD.Exif)) == {0xA002: 26, 0xA003: 38}
    assert result.info["icc_profile"] == b"some profile"
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(photo(), -1)))
    assert np.array_equal(np.asarray(result), np.asarray(upscale(turned, model, scale=2)))


def test_the_pieces_do_not_show(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size of strip gives the same bytes."""
    pixels = photo(21, 17)
    results = []
    for queries in (1, 57, 10**6):
        monkeypatch.setattr(strips, "STRIP_QUERIES", queries)
        results.append(upscale(pixels, model, scale=3))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_layouts(model: nn.Module) -> None:
    pixels = photo(20, 20)
    expected = upscale(np.ascontiguousarray(pixels[::-1, ::2]), model, scale=2)
    assert np.array_equal(upscale(pixels[::-1, ::2], model, scale=2), expected)
    read_only = photo()
    read_only.flags.writeable = False
    upscale(read_only, model, scale=1)


def test_one_pixel(model: nn.Module) -> None:
    assert upscale(np.full((1, 1), 9, np.uint8), model, size=(5, 3)).shape == (3, 5)


def test_progress(model: nn.Module) -> None:
    seen: list[tuple[str, int, int]] = []
    upscale(photo(), model, scale=2, progress=lambda *step: seen.append(step))
    encoded = [step[1:] for step in seen if step[0] == "encode"]
    # Three tiles a row, two rows, as equal as can be; none is encoded again.
    assert encoded == [(done, 19 * 13) for done in (0, 36, 72, 114, 156, 198, 247)]
    rows = [step for step in seen if step[0] == "render"]
    assert rows[0] == ("render", 0, 26)
    assert rows[-1] == ("render", 26, 26)
    assert [step[1] for step in rows] == sorted({step[1] for step in rows})


def test_the_shipped_model_beats_bicubic() -> None:
    """The model beats bicubic on a photograph outside its training set, reduced as in training."""
    with Image.open(shipped_model().parent / "chelsea.png") as opened:
        original = opened.crop((40, 30, 140, 110))
    small = original.resize((50, 40), Image.Resampling.BICUBIC)

    def error(image: Image.Image) -> float:
        return float(np.square(np.asarray(image, float) - np.asarray(original, float)).mean())

    bicubic = small.resize(original.size, Image.Resampling.BICUBIC)
    assert error(upscale(small, size=original.size)) < error(bicubic) * 0.95
