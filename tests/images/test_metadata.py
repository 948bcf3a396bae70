"""Metadata (orientation, colours, resolution, EXIF) is kept, corrected, or reported as lost."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

from liif_fast.images import (
    FORMATS,
    read_image,
    write_image,
    write_strips,
)
from liif_fast.images.colour import COLOUR, read_colour

from .support import as_pil, camera_exif, gradient, picture, png


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_not_kept(tmp_path: Path, orientation: int) -> None:
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a description"
    image.save(tmp_path / "a.png", exif=exif)
    result = as_pil(tmp_path / "a.png")
    turned = {5, 6, 7, 8}
    assert result.size == (image.size[::-1] if orientation in turned else image.size)
    if orientation == 6:  # a quarter turn clockwise
        assert np.array_equal(np.asarray(result), np.rot90(np.asarray(image), -1))
    write_image(result, tmp_path / "b.jpg")
    kept = Image.open(tmp_path / "b.jpg").getexif()
    assert kept.get(0x0112, 1) == 1
    assert kept[0x010E] == "a description"


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif"])
def test_profile_is_kept(tmp_path: Path, extension: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = picture()
    image.info["icc_profile"] = profile
    path = tmp_path / f"a.{extension}"
    write_image(image, path)
    assert as_pil(path).info["icc_profile"] == profile


@pytest.mark.parametrize("extension", ["webp", "avif", "png", "jpg", "tif"])
def test_a_gray_profile_never_lands_in_an_rgb_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, extension: str
) -> None:
    """WebP and AVIF store gray as RGB."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    gray = profile[:16] + b"GRAY" + profile[20:]
    path = tmp_path / f"a.{extension}"
    kept = {1: extension not in ("webp", "avif"), 3: False}
    for channels in (1, 3):
        caplog.clear()
        pixels = np.zeros((8, 8, channels), np.uint8)
        write_strips(path, [pixels], pixels.shape, 8, {"icc_profile": gray})
        with Image.open(path) as image:
            assert ("icc_profile" in image.info) == kept[channels]
        assert ("the ICC profile describes GRAY, but the file holds RGB" in caplog.text) != kept[channels]


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_the_colours_of_an_avif_are_kept_or_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, extension: str
) -> None:
    picture(size=(32, 32)).save(tmp_path / "a.avif")
    data = (tmp_path / "a.avif").read_bytes()
    at = data.index(b"colrnclx") + 8
    (tmp_path / "a.avif").write_bytes(data[:at] + struct.pack(">HH", 9, 16) + data[at + 4 :])
    read = read_image(tmp_path / "a.avif")
    write_strips(tmp_path / f"b.{extension}", [read.pixels], read.pixels.shape, 8, read.info)
    if extension == "png":
        assert read_colour(tmp_path / "b.png") == {b"cICP": bytes((9, 16, 0, 1))}
    assert ("the description of the colours (cICP) is lost in JPEG" in caplog.text) == (extension == "jpg")


def test_cmyk_profile_is_dropped(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    picture("CMYK").save(tmp_path / "a.jpg", icc_profile=b"describes ink")
    result = as_pil(tmp_path / "a.jpg")
    assert result.mode == "RGB"
    assert "icc_profile" not in result.info
    assert "CMYK" in caplog.text


GAMMA = {b"gAMA": struct.pack(">I", 100_000)}


SRGB = {b"sRGB": b"\0", b"gAMA": struct.pack(">I", 45455)}


HDR = {b"cICP": bytes((9, 16, 0, 1)), b"cLLI": bytes(8)}


@pytest.mark.parametrize("chunks", [{}, GAMMA, SRGB, HDR, GAMMA | HDR])
def test_the_colours_of_a_png_are_kept_in_a_png(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, chunks: dict[bytes, bytes]
) -> None:
    pixels = gradient("RGB;16")
    write_strips(tmp_path / "a.png", [pixels], pixels.shape, 16, {COLOUR: chunks})
    read = read_image(tmp_path / "a.png")
    assert read.info.get(COLOUR, {}) == chunks
    write_strips(tmp_path / "b.png", [read.pixels], read.pixels.shape, 16, read.info)
    assert read_image(tmp_path / "b.png").info.get(COLOUR, {}) == chunks
    assert np.array_equal(read_image(tmp_path / "b.png").pixels, pixels)
    assert caplog.text == ""
    write_strips(tmp_path / "c.tif", [read.pixels], read.pixels.shape, 16, read.info)
    assert ("the description of the colours" in caplog.text) == (chunks not in ({}, SRGB))


def test_colours_of_a_damaged_png(tmp_path: Path) -> None:
    """A chunk that is too long is ignored."""
    write_strips(tmp_path / "a.png", [np.zeros((1, 1, 3), np.uint8)], (1, 1, 3), 8, {COLOUR: {b"gAMA": bytes(1000)}})
    assert read_colour(tmp_path / "a.png") == {}
    data = png(1, 1, b"\0\0")
    for cut in range(8, len(data)):
        (tmp_path / "a.png").write_bytes(data[:cut])
        assert read_colour(tmp_path / "a.png") == {}


@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize(("dpi", "kept"), [((300, 150), True), ((0.0, 96.0), False), ((float("nan"), 1e9), False)])
def test_resolution_is_kept_if_there_can_be_such(tmp_path: Path, extension: str, dpi: tuple, kept: bool) -> None:
    path = tmp_path / f"a.{extension}"
    write_strips(path, [gradient("RGB")], (37, 53, 3), 8, {"dpi": dpi})
    found = read_image(path).info.get("dpi")
    if kept:
        assert [round(float(each)) for each in found] == list(dpi)
    else:
        assert found is None or {round(float(each)) for each in found} <= {1, 96}  # the format's own


NO_RESOLUTIONS = [
    0, 300, -1, float("nan"), "72", b"ab", "", (), (300,), (300, 300, 300), ("a", "b"), ("72", None), (-72, -72),
    (10**400, 72), (1e308, 1e308), (float("inf"), 72), (0, 0), ((300, 1), (300, 1)), (IFDRational(1, 0), 72),
    (IFDRational(0, 0), IFDRational(0, 0)), (2j, 2j), np.zeros(2), np.array([[72, 72], [72, 72]]), {}, object(),
]  # fmt: skip


@pytest.mark.parametrize("extension", [key[1:] for key in FORMATS])
def test_odd_resolution_is_left_out(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    for dpi in NO_RESOLUTIONS:
        write_strips(path, [gradient("RGB")], (37, 53, 3), 8, {"dpi": dpi})
        found = read_image(path).info.get("dpi", (1, 1))
        assert {round(float(each)) for each in found} <= {1, 96}, dpi  # the format's own


@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize("kind", [str, Fraction, IFDRational, np.float32, np.array], ids=lambda kind: kind.__name__)
def test_resolution_in_numbers_of_any_kind(tmp_path: Path, extension: str, kind: Callable[[int], object]) -> None:
    path = tmp_path / f"a.{extension}"
    write_strips(path, [gradient("RGB")], (37, 53, 3), 8, {"dpi": [kind(300), kind(150)]})
    assert [round(float(each)) for each in read_image(path).info["dpi"]] == [300, 150]


@pytest.mark.parametrize("value", [(0, 0), (1, 0), (0, 1)])
def test_odd_resolution_of_a_deep_tiff(tmp_path: Path, value: tuple[int, int]) -> None:
    """A damaged profile spoils neither this image nor the next."""
    pixels, path = gradient("LA;16"), tmp_path / "a.tif"
    write_strips(path, [pixels], pixels.shape, 16, {"dpi": (300, 300)})
    data = path.read_bytes()
    assert data.count(struct.pack("<II", 300, 1)) == 2
    path.write_bytes(data.replace(struct.pack("<II", 300, 1), struct.pack("<II", *value)))
    read = read_image(path)
    assert np.array_equal(read.pixels, pixels)
    write_strips(path, [read.pixels], pixels.shape, 16, read.info)
    assert "dpi" not in read_image(path).info


def test_resolution_of_a_deep_tiff(tmp_path: Path) -> None:
    pixels = gradient("LA;16")
    write_strips(tmp_path / "a.tif", [pixels], pixels.shape, 16, {"dpi": (300, 150)})
    assert read_image(tmp_path / "a.tif").info["dpi"] == (300, 150)
    write_strips(tmp_path / "a.tif", [pixels], pixels.shape, 16, {})
    assert "dpi" not in read_image(tmp_path / "a.tif").info


@pytest.mark.parametrize(
    ("extension", "lost"), [("bmp", ["ICC", "EXIF"]), ("ppm", ["ICC", "EXIF"]), ("tif", ["EXIF"]), ("png", [])]
)
def test_metadata_that_a_format_does_not_keep_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, extension: str, lost: list[str]
) -> None:
    image = picture()
    image.info.update(icc_profile=b"profile", exif=camera_exif("<"))
    write_image(image, tmp_path / f"a.{extension}")
    assert [word for word in ("ICC", "EXIF") if word in caplog.text] == lost
