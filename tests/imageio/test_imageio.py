"""Reading and writing image files: what is kept, what is refused, and that a failure leaves nothing behind."""

import errno
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from liif_fast import imageio
from liif_fast.files import atomic_file
from liif_fast.imageio import (
    ImageFileError,
    check_output,
    mode_of,
    normalise,
    open_image,
    read_image,
    write_image,
    write_strips,
    writing,
)
from liif_fast.imageio import png as png_writer
from liif_fast.imageio.colour import COLOUR, read_colour
from liif_fast.imageio.exif import resized


def picture(mode: str = "RGB", size: tuple[int, int] = (9, 5)) -> Image.Image:
    """Random pixels of any mode."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., :2].copy().view(np.uint16)[..., 0])
    image = Image.fromarray(pixels)
    return image.convert("RGB").convert(mode) if mode == "P" else image.convert(mode)


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
    assert np.asarray(open_image(tmp_path / "p.png")).tolist() == [[[255, 0, 0, 255], [0, 255, 0, 0]]]
    for mode, key, expected in (("RGB", (1, 2, 3), "RGBA"), ("L", 7, "LA")):
        Image.new(mode, (3, 3), key).save(tmp_path / "key.png", transparency=key)
        result = open_image(tmp_path / "key.png")
        assert result.mode == expected
        assert np.asarray(result)[..., -1].max() == 0


def test_16_bit_gray_keeps_its_values(tmp_path: Path) -> None:
    values = np.array([[0, 1, 256], [40000, 65534, 65535]], np.uint16)
    image = Image.fromarray(values)
    for name in ("a.png", "a.tif", "a.pgm"):
        write_image(image, tmp_path / name)
        result = open_image(tmp_path / name)
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_not_kept(tmp_path: Path, orientation: int) -> None:
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a description"
    image.save(tmp_path / "a.png", exif=exif)
    result = open_image(tmp_path / "a.png")
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
    assert open_image(path).info["icc_profile"] == profile


def test_cmyk_profile_is_dropped(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    picture("CMYK").save(tmp_path / "a.jpg", icc_profile=b"describes ink")
    result = open_image(tmp_path / "a.jpg")
    assert result.mode == "RGB"
    assert "icc_profile" not in result.info
    assert "CMYK" in caplog.text


def test_what_is_lost_on_reading_is_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    frames = [picture("P"), picture("P").rotate(180)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "a.gif").mode == "RGB"
    assert "first of 2 frames" in caplog.text
    caplog.clear()
    (tmp_path / "deep.png").write_bytes(png(3, 2, b"\0" + bytes(18) + b"\0" + bytes(18), depth=16, colour=2))
    assert open_image(tmp_path / "deep.png").mode == "RGB"
    assert "16 bits" in caplog.text
    caplog.clear()
    assert read_image(tmp_path / "deep.png").depth == 16
    assert caplog.text == ""
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 65535 " + bytes(6))
    assert read_image(tmp_path / "a.ppm").depth == 8
    assert "16 bits" in caplog.text


def test_missing_folder_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match=r"nothing\.png: No such file"):
        open_image(tmp_path / "nothing.png")
    with pytest.raises(ImageFileError, match="is a folder"):
        open_image(tmp_path)
    for name, content in (("empty.png", b""), ("text.jpg", b"not a picture"), ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageFileError, match="not an image"):
            open_image(tmp_path / name)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif", "bmp", "ppm"])
def test_truncated_files(tmp_path: Path, extension: str) -> None:
    whole = tmp_path / f"whole.{extension}"
    write_image(picture(size=(64, 48)), whole)
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{extension}"
    for length in (len(data) // 4, len(data) // 2, len(data) * 9 // 10):
        cut.write_bytes(data[:length])
        with pytest.raises(ImageFileError) as caught:
            open_image(cut)
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
                open_image(path)
            except ImageFileError:
                pass


def test_tiffs_that_are_no_picture_to_enlarge(tmp_path: Path) -> None:
    """Floating point, and the preview that a raw camera file begins with."""
    pixels = gradient("RGB")
    for dtype in (np.float16, np.float32, np.float64):
        tifffile.imwrite(tmp_path / "a.tif", (pixels / 255).astype(dtype), photometric="rgb")
        with pytest.raises(ImageFileError, match=f"a TIFF of {np.dtype(dtype)} samples"):
            read_image(tmp_path / "a.tif")
    with tifffile.TiffWriter(tmp_path / "raw.dng") as tiff:
        tiff.write(pixels, photometric="rgb", subfiletype=1)
        tiff.write(pixels[..., 0].astype(np.uint16))
    with pytest.raises(ImageFileError, match=r"raw\.dng: cannot be read: its first image is a preview"):
        read_image(tmp_path / "raw.dng")


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    """255 bytes, and characters of three; the temporary name beside it must not be longer."""
    for name in ("x" * 251, "\u597d" * 83):
        write_image(picture(), tmp_path / f"{name}.png")
        assert open_image(tmp_path / f"{name}.png").size == (9, 5)


def test_decompression_bomb(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(100_000, 100_000, b"\0"))
    with pytest.raises(ImageFileError, match=r"decompression bomb, since it has more than 178956970 pixels"):
        open_image(tmp_path / "bomb.png")


def test_output_is_checked_before_any_work(tmp_path: Path) -> None:
    check_output(tmp_path / "a.PNG", "RGBA", (100_000, 1))
    cases = [
        ("a.xyz", None, None, "unknown output format '.xyz'"),
        ("a", None, None, "unknown output format ''"),
        ("no/a.png", None, None, "does not exist"),
        ("a.jpg", "RGBA", None, "JPEG cannot hold an alpha channel"),
        ("a.jpg", "I;16", None, "JPEG cannot hold 16 bits"),
        ("a.webp", "I;16", None, "WEBP cannot hold 16 bits"),
        ("a.jpg", "RGB", (65536, 10), "at most 65535 pixels a side"),
        ("a.webp", "RGB", (10, 16384), "at most 16383 pixels a side"),
    ]
    for name, mode, size, message in cases:
        with pytest.raises(ImageFileError, match=message):
            check_output(tmp_path / name, mode, size)
    with pytest.raises(ImageFileError, match="is a folder"):
        check_output(tmp_path)
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (("loop.png", "leads back to itself"), ("loop/a.png", "does not exist")):
        with pytest.raises(ImageFileError, match=message):
            check_output(tmp_path / name)
    with pytest.raises(ImageFileError, match="Too many levels of symbolic links"):
        open_image(tmp_path / "loop.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ImageFileError, match="not a regular file"):
            check_output(tmp_path / "pipe.png")
        with pytest.raises(ImageFileError, match="not a regular file"):
            open_image(tmp_path / "pipe.png")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, whom nothing stops
    with pytest.raises(ImageFileError, match="no permission to write into"):
        check_output(tmp_path / "a.png")
    (tmp_path / "a.png").touch()
    with pytest.raises(ImageFileError, match="no permission to overwrite"):
        check_output(tmp_path / "a.png")


def gradient(mode: str, height: int = 37, width: int = 53) -> NDArray:
    """A smooth picture with some noise, [H, W, C]."""
    deep = mode.endswith(";16")
    channels = {"L": 1, "I;16": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode if mode == "I;16" else mode.removesuffix(";16")]
    y, x = np.mgrid[:height, :width]
    waves = np.stack([0.5 + 0.4 * np.sin(0.1 * x + 0.2 * y + c) for c in range(channels)], -1)
    waves += np.random.default_rng(0).uniform(-0.05, 0.05, waves.shape)
    return (waves * 65535).astype(np.uint16) if deep else (waves * 255).astype(np.uint8)


@pytest.mark.parametrize("rows", [1, 5, 37])
@pytest.mark.parametrize("extension", [key[1:] for key in imageio.FORMATS])
def test_every_format_is_written(tmp_path: Path, extension: str, rows: int) -> None:
    """In strips of any height, bit for bit where the format is lossless."""
    path = tmp_path / f"a.{extension}"
    for mode in check_output(path).modes:
        pixels = gradient(mode)
        depth = 16 if mode.endswith(";16") else 8
        assert mode_of(pixels.shape[2], depth) == mode
        strips = (pixels[top : top + rows] for top in range(0, len(pixels), rows))
        write_strips(path, strips, pixels.shape, depth, {})
        if (extension, mode) in (("ppm", "RGB;16"), ("pgm", "RGB;16")):
            with Image.open(path) as result:  # Pillow keeps 8 bits of these
                assert np.abs(np.asarray(result) - pixels / 257).max() <= 1
            continue
        result = read_image(path)
        if extension in ("jpg", "jpeg", "webp"):
            assert result.size == (53, 37)
        else:
            assert result.depth == depth
            assert np.array_equal(result.pixels, pixels)


@pytest.mark.parametrize("mode", ["RGB", "LA;16"])
def test_png_rows_are_filtered(tmp_path: Path, mode: str) -> None:
    """Pillow filters rows as well; what comes out must not be larger than its file by much."""
    pixels = gradient(mode, 200, 200)
    write_strips(tmp_path / "a.png", [pixels[:77], pixels[77:]], pixels.shape, 16 if ";16" in mode else 8, {})
    size = (tmp_path / "a.png").stat().st_size
    raw = zlib.compress(pixels.tobytes(), 9)
    assert size < 0.95 * len(raw)
    if mode == "RGB":
        Image.fromarray(pixels).save(tmp_path / "b.png")
        assert size < 1.1 * (tmp_path / "b.png").stat().st_size


def test_a_large_tiff_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = gradient("RGB;16")
    path = tmp_path / "a.tif"
    write_strips(path, [pixels], pixels.shape, 16, {})
    assert path.read_bytes()[:4] == b"II*\0"
    monkeypatch.setattr(writing, "_CLASSIC_TIFF", 1000)
    write_strips(path, [pixels], pixels.shape, 16, {})
    assert path.read_bytes()[:4] == b"II+\0"
    assert np.array_equal(read_image(path).pixels, pixels)


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


@pytest.mark.parametrize("mode", ["RGB;16", "RGBA;16", "LA;16"])
def test_16_bit_png_is_turned_and_keeps_its_profile(tmp_path: Path, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = gradient(mode)
    write_strips(tmp_path / "a.png", [pixels], pixels.shape, 16, {"icc_profile": b"icc", "exif": exif.tobytes()})
    result = read_image(tmp_path / "a.png")
    assert np.array_equal(result.pixels, np.rot90(pixels, -1))
    assert result.info["icc_profile"] == b"icc"


def test_an_iterator_that_fails_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    def strips() -> Iterator[NDArray]:
        yield np.zeros((2, 4, 3), np.uint8)
        raise ValueError("the model has a cold")

    for name in ("a.png", "a.tif", "a.jpg", "a.ppm"):
        with pytest.raises(ValueError, match=r"^the model has a cold$"):
            write_strips(tmp_path / name, strips(), (4, 4, 3), 8, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", ["png", "tif", "ppm"])
def test_a_strip_is_written_while_the_next_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    """The writer holds the first strip until the second is there; without a thread that would never be."""
    second = threading.Event()

    def strips() -> Iterator[NDArray]:
        yield np.zeros((2, 4, 3), np.uint8)
        second.set()
        yield np.ones((2, 4, 3), np.uint8)

    write = writing._write

    def slow(kind: object, file: object, made: Iterator[NDArray], *args: object) -> None:
        def held() -> Iterator[NDArray]:
            for strip in made:
                assert second.wait(30)
                yield strip

        write(kind, file, held(), *args)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "_write", slow)
    write_strips(tmp_path / f"a.{extension}", strips(), (4, 4, 3), 8, {})
    assert read_image(tmp_path / f"a.{extension}").pixels[:, 0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_full_disk_ends_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """No more is made than a strip or two, however many there would be."""
    made = 0

    def strips() -> Iterator[NDArray]:
        nonlocal made
        for made in range(10_000):  # noqa: B007 - counted
            yield np.zeros((1, 4, 3), np.uint8)

    def full(kind: object, file: object, strips: Iterator[NDArray], *args: object) -> None:
        for _ in range(after):
            next(strips)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "_write", full)
    with pytest.raises(ImageFileError, match=r"a\.png: cannot be written: No space left on device"):
        write_strips(tmp_path / "a.png", strips(), (10_000, 4, 3), 8, {})
    assert made < after + 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, OSError, MemoryError])
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    def compress(data: bytes) -> bytes:
        raise failure("No space left on device")

    monkeypatch.setattr(png_writer.zlib, "compressobj", lambda level: SimpleNamespace(compress=compress))
    old = tmp_path / "old.png"
    old.write_bytes(b"old")
    for path in (old, tmp_path / "new.png"):
        with pytest.raises((failure, ImageFileError)):
            write_image(picture(), path)
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert old.read_bytes() == b"old"


def test_atomic_file_keeps_permissions_and_follows_links(tmp_path: Path) -> None:
    target, link, fresh = tmp_path / "target.png", tmp_path / "link.png", tmp_path / "fresh.png"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    with atomic_file(link) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    with atomic_file(fresh):
        pass
    (tmp_path / "plain").touch()
    assert fresh.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_exif_of_a_tiff_is_kept(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    exif[ExifTags.IFD.Exif] = {0x9003: "2020:01:02 03:04:05"}
    picture().save(tmp_path / "a.tif", exif=exif.tobytes())
    write_image(open_image(tmp_path / "a.tif"), tmp_path / "b.png")
    kept = Image.open(tmp_path / "b.png").getexif()
    assert dict(kept.get_ifd(ExifTags.IFD.Exif)) == {0x9003: "2020:01:02 03:04:05"}
    assert set(kept) == {0x010E, ExifTags.IFD.Exif}
    assert kept[0x010E] == "a description"


def camera_exif() -> bytes:
    """As a camera writes it: the size twice, and a thumbnail with a folder of its own."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a maker"
    exif[ExifTags.Base.ImageWidth], exif[ExifTags.Base.ImageLength] = 9, 5
    exif[ExifTags.IFD.Exif] = {0x9003: "2020:01:02 03:04:05", 0xA002: 9, 0xA003: 5, 0x927C: b"private notes"}
    exif[ExifTags.IFD.GPSInfo] = {1: "N"}
    data = exif.tobytes()
    header = len("Exif\0\0")
    order = "<" if data[header:].startswith(b"II") else ">"
    start = header + struct.unpack_from(f"{order}I", data, header + 4)[0]
    next_folder = start + 2 + 12 * struct.unpack_from(f"{order}H", data, start)[0]
    thumbnail = struct.pack(f"{order}HHHIIHHIII", 2, 0x0201, 4, 1, len(data) - header + 30, 0x0202, 4, 1, 11, 0)
    offset = struct.pack(f"{order}I", len(data) - header)
    return data[:next_folder] + offset + data[next_folder + 4 :] + thumbnail + b"small image"


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_exif_says_the_new_size_and_has_no_old_thumbnail(tmp_path: Path, extension: str) -> None:
    data = camera_exif()
    old = Image.Exif()
    old.load(data)
    assert old.get_ifd(ExifTags.IFD.IFD1)
    path = tmp_path / f"a.{extension}"
    write_strips(path, [np.zeros((70, 90, 3), np.uint8)], (70, 90, 3), 8, {"exif": data})
    assert b"small image" not in path.read_bytes()
    kept = Image.open(path).getexif()
    assert not kept.get_ifd(ExifTags.IFD.IFD1)
    assert (kept[ExifTags.Base.ImageWidth], kept[ExifTags.Base.ImageLength]) == (90, 70)
    assert kept[ExifTags.Base.Make] == "a maker"
    assert kept.get_ifd(ExifTags.IFD.GPSInfo) == {1: "N"}
    inner = kept.get_ifd(ExifTags.IFD.Exif)
    assert (inner[0xA002], inner[0xA003], inner[0x927C]) == (90, 70, b"private notes")


def test_exif_without_a_size_gets_none() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a maker"
    kept = Image.Exif()
    kept.load(resized(exif.tobytes(), (3, 4)) or b"")
    assert dict(kept) == {ExifTags.Base.Make: "a maker"}


@pytest.mark.parametrize("data", [b"Exif\0\0", b"Exif\0\0" + bytes(90), b"\xff" * 90, camera_exif()[:60]])
def test_damaged_exif_does_not_cost_the_image(tmp_path: Path, data: bytes) -> None:
    """Neither when it is written nor when it is read; what of it can be read may stay."""
    picture().save(tmp_path / "a.jpg", exif=data)
    read = read_image(tmp_path / "a.jpg")
    write_strips(tmp_path / "b.png", [read.pixels], read.pixels.shape, 8, {"exif": data})
    assert read_image(tmp_path / "b.png").size == (9, 5)


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
    assert read.info[COLOUR] == chunks
    write_strips(tmp_path / "b.png", [read.pixels], read.pixels.shape, 16, read.info)
    assert read_image(tmp_path / "b.png").info[COLOUR] == chunks
    assert np.array_equal(read_image(tmp_path / "b.png").pixels, pixels)
    assert caplog.text == ""
    write_strips(tmp_path / "c.tif", [read.pixels], read.pixels.shape, 16, read.info)
    assert ("the description of the colours" in caplog.text) == (chunks not in ({}, SRGB))


def test_colours_of_a_damaged_png(tmp_path: Path) -> None:
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
    image.info.update(icc_profile=b"profile", exif=b"Exif\0\0")
    write_image(image, tmp_path / f"a.{extension}")
    assert [word for word in ("ICC", "EXIF") if word in caplog.text] == lost


def test_transparent_value_of_16_bit_gray_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(np.full((3, 4), 5, np.uint16)).save(tmp_path / "a.png", transparency=5)
    assert open_image(tmp_path / "a.png").mode == "I;16"
    assert "read as opaque" in caplog.text


def test_exif_too_long_for_jpeg_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = picture()
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 70_000
    image.info["exif"] = exif.tobytes()
    write_image(image, tmp_path / "a.jpg")
    assert "too long" in caplog.text
    assert not Image.open(tmp_path / "a.jpg").getexif()


def png(width: int, height: int, raw: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG file with any header, however untrue."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
