"""Read image files of every mode and depth; refuse others; report damage in one line."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from liif_fast.images import (
    ImageFileError,
    normalise,
    read_image,
    write_image,
    write_strips,
)

from .support import as_pil, gradient, picture, png


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", "L"),
        ("LA", "LA"),
        ("RGB", "RGB"),
        ("RGBA", "RGBA"),
        ("I;16", "I;16"),
        ("1", "L"),
        ("P", "RGB"),
        ("CMYK", "RGB"),
        ("YCbCr", "RGB"),
        ("HSV", "RGB"),
        ("RGBX", "RGB"),
        ("RGBa", "RGBA"),
    ],
)
def test_modes(mode: str, expected: str) -> None:
    image = picture(mode)
    result = normalise(image)
    assert (result.mode, result.size) == (expected, image.size)
    if mode == expected:
        assert np.array_equal(np.asarray(result), np.asarray(image))


def test_palette_and_colour_key_transparency_become_alpha(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert np.asarray(as_pil(tmp_path / "p.png")).tolist() == [[[255, 0, 0, 255], [0, 255, 0, 0]]]
    for mode, key, expected in (("RGB", (1, 2, 3), "RGBA"), ("L", 7, "LA")):
        Image.new(mode, (3, 3), key).save(tmp_path / "key.png", transparency=key)
        result = as_pil(tmp_path / "key.png")
        assert result.mode == expected
        assert np.asarray(result)[..., -1].max() == 0


def test_16_bit_gray_keeps_its_values(tmp_path: Path) -> None:
    values = np.array([[0, 1, 256], [40000, 65534, 65535]], np.uint16)
    image = Image.fromarray(values)
    for name in ("a.png", "a.tif", "a.pgm"):
        write_image(image, tmp_path / name)
        result = as_pil(tmp_path / name)
        assert result.mode == "I;16"
        assert np.array_equal(np.asarray(result), values)
    assert np.array_equal(np.asarray(normalise(Image.fromarray(values.astype(">u2")))), values)
    assert np.array_equal(np.asarray(normalise(Image.fromarray(values.astype(np.int32)))), values)
    with pytest.raises(ImageFileError, match="0 to 65535"):
        normalise(Image.fromarray(np.array([[70000]], np.int32)))


def test_modes_that_are_no_picture_are_refused() -> None:
    with pytest.raises(ImageFileError, match="mode F"):
        normalise(Image.new("F", (2, 2)))
    with pytest.raises(ImageFileError, match="mode LAB"):
        normalise(Image.new("LAB", (2, 2)))


def test_what_is_lost_on_reading_is_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    frames = [picture("P"), picture("P").rotate(180)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert as_pil(tmp_path / "a.gif").mode == "RGB"
    assert "first of 2 frames" in caplog.text
    caplog.clear()
    (tmp_path / "deep.png").write_bytes(png(3, 2, b"\0" + bytes(18) + b"\0" + bytes(18), depth=16, colour=2))
    assert read_image(tmp_path / "deep.png").depth == 16
    assert caplog.text == ""
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 65535 " + bytes(6))
    assert read_image(tmp_path / "a.ppm").depth == 8
    assert "read as 8 bits" in caplog.text


def test_missing_folder_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match=r"nothing\.png: No such file"):
        as_pil(tmp_path / "nothing.png")
    with pytest.raises(ImageFileError, match="is a folder"):
        as_pil(tmp_path)
    (tmp_path / "text.jpg").write_bytes(b"not a picture")
    with pytest.raises(ImageFileError, match="not an image"):
        as_pil(tmp_path / "text.jpg")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif", "bmp", "ppm"])
def test_truncated_files(tmp_path: Path, extension: str) -> None:
    whole = tmp_path / f"whole.{extension}"
    write_image(picture(size=(64, 48)), whole)
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{extension}"
    for length in (len(data) // 4, len(data) // 2, len(data) * 9 // 10):
        cut.write_bytes(data[:length])
        with pytest.raises(ImageFileError) as caught:
            as_pil(cut)
        assert str(cut) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for extension in ("png", "jpg", "tif", "gif", "bmp"):
        path = tmp_path / f"a.{extension}"
        picture("L", (32, 32)).save(path)
        data = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(20):
            bad = data.copy()
            bad[random.integers(0, len(bad), 8)] = random.integers(0, 256, 8)
            path.write_bytes(bad.tobytes())
            try:
                as_pil(path)
            except ImageFileError:
                pass


def test_tiffs_that_are_no_picture_to_enlarge(tmp_path: Path) -> None:
    """Floating-point samples, and the preview at the start of a raw camera file, are refused."""
    pixels = gradient("RGB")
    for dtype in (np.float16, np.float32, np.float64):
        tifffile.imwrite(tmp_path / "a.tif", (pixels / 255).astype(dtype), photometric="rgb")
        with pytest.raises(
            ImageFileError, match=f"a TIFF of {np.dtype(dtype).itemsize * 8}-bit floating-point numbers; supported"
        ):
            read_image(tmp_path / "a.tif")
    with tifffile.TiffWriter(tmp_path / "raw.dng") as tiff:
        tiff.write(pixels, photometric="rgb", subfiletype=1)
        tiff.write(pixels[..., 0].astype(np.uint16))
    with pytest.raises(ImageFileError, match=r"raw\.dng: cannot be read: its first image is a preview"):
        read_image(tmp_path / "raw.dng")


def test_decompression_bomb(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(100_000, 100_000, b"\0"))
    with pytest.raises(ImageFileError, match=r"decompression bomb, because it has more than 178956970 pixels"):
        as_pil(tmp_path / "bomb.png")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16_bit_tiff_of_every_kind(tmp_path: Path, planar: str, order: str, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    pixels = gradient("RGB;16")
    stored = np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
    extra = [(274, 3, 1, 6, True), (34675, 7, 3, b"icc", True)]
    tifffile.imwrite(
        path, stored, photometric="rgb", planarconfig=planar, byteorder=order, compression=compression, extratags=extra,
        metadata=None,
    )  # fmt: skip
    result = read_image(path)
    assert result.depth == 16
    assert np.array_equal(result.pixels, np.rot90(pixels, -1))
    assert result.info["icc_profile"] == b"icc"


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("mode", ["RGB;16", "RGBA;16"])
def test_16_bit_png_is_turned_and_keeps_its_profile(tmp_path: Path, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = gradient(mode)
    write_strips(tmp_path / "a.png", [pixels], pixels.shape, 16, {"icc_profile": PROFILE, "exif": exif.tobytes()})
    result = read_image(tmp_path / "a.png")
    assert np.array_equal(result.pixels, np.rot90(pixels, -1))
    assert result.info["icc_profile"] == PROFILE


@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
def test_an_empty_file_is_called_empty(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    path.touch()
    with pytest.raises(ImageFileError, match=f"a.{extension}: is empty$"):
        read_image(path)
    path.write_text("text")
    with pytest.raises(ImageFileError, match="not an image in a known format"):
        read_image(path)
