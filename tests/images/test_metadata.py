"""Metadata (orientation, colours, resolution, EXIF) is kept, corrected, or reported as lost."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

from liif_fast.images import (
    FORMATS,
    read_image,
    write_image,
    write_strips,
    writing,
)
from liif_fast.images.colour import COLOUR, read_colour
from liif_fast.images.exif import resized

from .support import as_pil, gradient, picture, png


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


def test_exif_of_a_tiff_is_kept(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    exif[ExifTags.IFD.Exif] = {0x9003: "2020:01:02 03:04:05"}
    picture().save(tmp_path / "a.tif", exif=exif.tobytes())
    write_image(as_pil(tmp_path / "a.tif"), tmp_path / "b.png")
    kept = Image.open(tmp_path / "b.png").getexif()
    assert dict(kept.get_ifd(ExifTags.IFD.Exif)) == {0x9003: "2020:01:02 03:04:05"}
    assert set(kept) == {0x010E, ExifTags.IFD.Exif}
    assert kept[0x010E] == "a description"


def camera_exif(order: str, size: tuple[int, int] = (9, 5)) -> bytes:
    """Return a camera's EXIF data: the size twice as SHORT, a note with an offset, a thumbnail with its IFD."""

    def folder(at: int, entries: dict[int, tuple[int, int, bytes]], following: int) -> bytes:
        rest_at = at + 2 + 12 * len(entries) + 4
        packed, rest = struct.pack(f"{order}H", len(entries)), b""
        for tag, (kind, count, value) in sorted(entries.items()):
            packed += struct.pack(f"{order}HHI", tag, kind, count)
            packed += value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(f"{order}I", rest_at + len(rest))
            rest += value if len(value) > 4 else b""
        return packed + struct.pack(f"{order}I", following) + rest

    def short(value: int) -> tuple[int, int, bytes]:
        return 3, 1, struct.pack(f"{order}H", value)

    def long(value: int) -> tuple[int, int, bytes]:
        return 4, 1, struct.pack(f"{order}I", value)

    inner_at, second_at, note = 100, 200, b"a note with an offset: " + struct.pack(f"{order}I", 150)
    first = folder(
        8,
        {0x0100: short(size[0]), 0x0101: short(size[1]), 0x010F: (2, 8, b"a maker\0"), 0x8769: long(inner_at)},
        second_at,
    )
    inner = folder(inner_at, {0xA002: short(size[0]), 0xA003: short(size[1]), 0x927C: (7, len(note), note)}, 0)
    second = folder(second_at, {0x0201: long(second_at + 30), 0x0202: long(11)}, 0) + b"small image"
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8) + first
    return b"Exif\0\0" + (data.ljust(inner_at, b"\0") + inner).ljust(second_at, b"\0") + second


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_exif_says_the_new_size_and_has_no_old_thumbnail(tmp_path: Path, extension: str, order: str) -> None:
    data = camera_exif(order)
    old = Image.Exif()
    old.load(data)
    assert old.get_ifd(ExifTags.IFD.IFD1) == {0x0201: 230, 0x0202: 11}
    path = tmp_path / f"a.{extension}"
    write_strips(path, [np.zeros((70, 90, 3), np.uint8)], (70, 90, 3), 8, {"exif": data})
    assert b"small image" not in path.read_bytes()
    kept = Image.open(path).getexif()
    assert not kept.get_ifd(ExifTags.IFD.IFD1)
    assert (kept[ExifTags.Base.ImageWidth], kept[ExifTags.Base.ImageLength]) == (90, 70)
    assert kept[ExifTags.Base.Make] == "a maker"
    inner = kept.get_ifd(ExifTags.IFD.Exif)
    assert (inner[0xA002], inner[0xA003]) == (90, 70)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_changes_nowhere_else(order: str) -> None:
    """The maker's note stays at its place, so its offsets stay right; sizes grow beyond a SHORT."""
    old, new = camera_exif(order), resized(camera_exif(order), (90_000, 5))
    assert new is not None
    assert new.index(b"a note") == old.index(b"a note")
    kept = Image.Exif()
    kept.load(new)
    assert kept[ExifTags.Base.ImageWidth] == kept.get_ifd(ExifTags.IFD.Exif)[0xA002] == 90_000
    changed = [index for index, (one, other) in enumerate(zip(old, new, strict=False)) if one != other]
    entries = [6 + place + byte for place in (10, 22, 102 + 12, 102 + 24) for byte in range(2, 12)]
    following = [6 + 8 + 2 + 4 * 12 + byte for byte in range(4)]
    assert set(changed) <= {*entries, *following}
    assert len(new) == len(old) - len("small image")
    assert resized(new[6:], (90_000, 5)) == new  # without the header, as in PNG and WebP


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_a_turned_image_changes_in_its_orientation_alone(tmp_path: Path, order: str) -> None:
    """A photograph of a phone held upright is turned; the maker's entry becomes the orientation."""
    maker = struct.pack(f"{order}HHI", 0x010F, 2, 8)
    turned = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 6, 0)
    data = camera_exif(order)
    place = data.index(maker)
    data = data[:place] + turned + data[place + len(turned) :]
    picture().save(tmp_path / "a.jpg", exif=data)
    read = read_image(tmp_path / "a.jpg")
    assert read.size == (5, 9)
    changed = [index for index, (one, other) in enumerate(zip(data, read.info["exif"], strict=True)) if one != other]
    assert changed == [place + (8 if order == "<" else 9)]
    write_strips(tmp_path / "b.jpg", [read.pixels], read.pixels.shape, 8, read.info)
    assert read_image(tmp_path / "b.jpg").size == (5, 9)
    assert Image.open(tmp_path / "b.jpg").info["exif"].index(b"a note") == data.index(b"a note")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_exif_of_a_webp_is_read_by_all(tmp_path: Path, extension: str) -> None:
    """WebP stores EXIF data without the header that JPEG requires."""
    picture().save(tmp_path / "a.webp", exif=camera_exif("<"))
    read = read_image(tmp_path / "a.webp")
    assert not read.info["exif"].startswith(b"Exif")
    write_strips(tmp_path / f"b.{extension}", [read.pixels], read.pixels.shape, 8, read.info)
    assert Image.open(tmp_path / f"b.{extension}").getexif()[ExifTags.Base.Make] == "a maker"


def test_a_thumbnail_that_is_not_last_is_wiped_out() -> None:
    new = resized(camera_exif("<") + b"more", (90, 70))
    assert new is not None
    assert new.endswith(bytes(11) + b"more")


def test_a_link_to_no_thumbnail_costs_nothing() -> None:
    """The link to the next IFD dangles, or is a value because a writer has omitted the link."""
    data = bytearray(camera_exif("<"))
    struct.pack_into("<I", data, data.index(struct.pack("<I", 200)), 0x41414141)
    new = resized(bytes(data), (90, 70))
    assert new is not None
    assert len(new) == len(data)
    assert b"AAAA" in new


def test_a_thumbnail_that_takes_a_folder_along_is_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The thumbnail's length covers the next IFD, which must not be lost without a notice."""

    def folder(entries: dict[int, int], following: int) -> bytes:
        packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
        return struct.pack("<H", len(entries)) + packed + struct.pack("<I", following)

    for count in (40, 5000):
        data = b"II*\0" + struct.pack("<I", 8) + folder({0x0100: 9, 0x8769: 120}, 60)
        data = data.ljust(60, b"\0") + folder({0x0201: 90, 0x0202: count}, 0)
        data = data.ljust(120, b"\0") + folder({0xA002: 9}, 0)
        assert resized(data, (90, 70)) is None
        write_strips(tmp_path / "a.png", [np.zeros((1, 1, 3), np.uint8)], (1, 1, 3), 8, {"exif": data})
        assert "EXIF data is damaged and is dropped" in caplog.text


def full_exif() -> Image.Exif:
    """Return a file with every IFD and every layout of values: short and long ones, bytes, fractions, an odd length."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "a description"
    exif[ExifTags.Base.Make] = "abc"
    exif[ExifTags.Base.Software] = "a program"
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.XPTitle] = "title".encode("utf-16-le")
    exif[ExifTags.Base.ImageWidth] = exif[ExifTags.Base.XResolution] = 9  # of the file
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.ExposureTime: 0.004,
        ExifTags.Base.ExifVersion: b"0232",
        ExifTags.Base.DateTimeOriginal: "2020:01:02 03:04:05",
        ExifTags.Base.ExifImageWidth: 9,
        ExifTags.Base.MakerNote: b"with offsets",
    }
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (51.0, 30.0, 7.5)}
    return exif


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_in_a_tiff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, order: str, big: bool
) -> None:
    """Pillow reads the picture's tags back from a file of several strips, and they go on into a PNG."""
    if big:
        monkeypatch.setattr(writing, "_CLASSIC_TIFF", 1000)
    monkeypatch.setattr(writing, "_TIFF_STRIP", 1000)
    exif, pixels, path = full_exif(), gradient("RGB"), tmp_path / "a.tif"
    exif.endian = order
    write_strips(path, [pixels[:30], pixels[30:]], pixels.shape, 8, {"exif": exif.tobytes(), "dpi": (300, 300)})
    assert path.read_bytes()[2:4].strip(b"\0") == (b"+" if big else b"*")
    with Image.open(path) as image:
        assert len(image.tag_v2[ExifTags.Base.StripOffsets]) > 1
        found = image.getexif()
        first = {tag: found[tag] for tag in (*FIRST, ExifTags.Base.Orientation)}
        assert first == {tag: exif[tag] for tag in (*FIRST, ExifTags.Base.Orientation)}
        assert (found[ExifTags.Base.ImageWidth], found[ExifTags.Base.XResolution]) == (53, 300)
        assert not found.get_ifd(ExifTags.IFD.Exif)
    assert "exposure and place are lost" in caplog.text
    read = read_image(path)  # turned, as other formats are
    assert np.array_equal(read.pixels, np.rot90(pixels, -1))
    write_strips(tmp_path / "b.png", [read.pixels], read.pixels.shape, 8, read.info)
    kept = Image.open(tmp_path / "b.png").getexif()
    assert kept[ExifTags.Base.Make] == "abc"
    assert kept.get(ExifTags.Base.Orientation, 1) == 1


FIRST = (ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Software, ExifTags.Base.XPTitle)


def test_exposure_and_place_are_read_out_of_a_tiff(tmp_path: Path) -> None:
    """All tags of the Exif IFD are read except the maker's note."""
    exif = full_exif()
    picture().save(tmp_path / "a.tif", exif=exif.tobytes())
    read = read_image(tmp_path / "a.tif")
    write_strips(tmp_path / "b.png", [read.pixels], read.pixels.shape, 8, read.info)
    kept = Image.open(tmp_path / "b.png").getexif()
    assert kept.get_ifd(ExifTags.IFD.Exif) == {
        ExifTags.Base.ExposureTime: 0.004,
        ExifTags.Base.ExifVersion: b"0232",
        ExifTags.Base.DateTimeOriginal: "2020:01:02 03:04:05",
        ExifTags.Base.ExifImageWidth: 5,
    }
    assert kept.get_ifd(ExifTags.IFD.GPSInfo) == {1: "N", 2: (51.0, 30.0, 7.5)}


@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "a.png"])
def test_text_beyond_ascii_keeps_its_bytes(tmp_path: Path, name: str) -> None:
    """Text goes from a JPEG through a TIFF into any file; Pillow would write question marks or encode twice."""
    text = "\u00a9 J\u00f6rg".encode()
    exif = Image.Exif()
    exif[ExifTags.Base.Copyright] = text
    picture().save(tmp_path / "a.jpg", exif=exif.tobytes())
    for source, target in (("a.jpg", "b.tif"), ("b.tif", name)):
        read = read_image(tmp_path / source)
        write_strips(tmp_path / target, [read.pixels], read.pixels.shape, 8, read.info)
        assert text in (tmp_path / target).read_bytes()


def test_exif_of_a_deep_tiff(tmp_path: Path) -> None:
    """A BigTIFF's EXIF data is read, which Pillow does not read."""
    pixels, exif = gradient("LA;16"), full_exif()
    write_strips(tmp_path / "a.tif", [pixels], pixels.shape, 16, {"exif": exif.tobytes()})
    read = read_image(tmp_path / "a.tif")
    assert np.array_equal(read.pixels, np.rot90(pixels, -1))
    kept = Image.Exif()
    kept.load(read.info["exif"])
    assert kept[ExifTags.Base.ImageDescription] == "a description"
    assert ExifTags.Base.Orientation not in kept


@pytest.mark.parametrize("order", ["<", ">"])
def test_damaged_exif_costs_no_tiff(tmp_path: Path, order: str) -> None:
    """If EXIF data is cut anywhere or any byte changes, the pixels are read, and all tags read can be written."""
    data, rng = camera_exif(order), np.random.default_rng(0)
    pixels, path = gradient("L"), tmp_path / "a.tif"
    damaged = [data[:cut] for cut in range(6, len(data), 9)]
    for place in range(6, 200, 3):
        damaged.append(data[:place] + rng.bytes(1) + data[place + 1 :])
    for exif in damaged:
        write_strips(path, [pixels], pixels.shape, 8, {"exif": exif})
        assert np.array_equal(read_image(path).pixels, pixels)


@pytest.mark.parametrize("at", [2**32 - 2, 2**50, 2**63 - 1, 2**64 - 1])
def test_a_tiff_whose_exif_leads_nowhere_is_read(tmp_path: Path, at: int) -> None:
    pixels = gradient("L")
    extra = [(0x8769, 16, 1, at, True), (0x010F, 2, 4, b"abc\0", True)]
    tifffile.imwrite(tmp_path / "a.tif", pixels[..., 0], bigtiff=True, metadata=None, extratags=extra)
    read = read_image(tmp_path / "a.tif")
    assert np.array_equal(read.pixels, pixels)
    kept = Image.Exif()
    kept.load(read.info["exif"])
    assert dict(kept) == {ExifTags.Base.Make: "abc"}


def test_exif_that_shares_its_bytes_does_not_grow(tmp_path: Path) -> None:
    """A thousand entries that share one megabyte are read quickly."""
    entries = b"".join(struct.pack("<HHII", tag, 7, 1 << 20, 8) for tag in (*range(0x9000, 0x9400),))
    inner = struct.pack("<H", 0x400) + entries + bytes(4)
    data = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, 4, 1, 26, 0) + inner
    write_strips(tmp_path / "a.tif", [gradient("L")], (37, 53, 1), 8, {"exif": data.ljust(2 << 20, b"\0")})
    assert (tmp_path / "a.tif").stat().st_size < 5 << 20


def test_a_tiff_whose_folders_share_their_bytes_does_not_grow(tmp_path: Path) -> None:
    """Exif, GPS and Interop share an IFD of 1,900 entries that each cover nearly the whole file."""
    Image.fromarray(gradient("L")[:, :, 0]).save(tmp_path / "a.tif")
    data = (tmp_path / "a.tif").read_bytes()
    first = struct.unpack_from("<I", data, 4)[0]
    number = struct.unpack_from("<H", data, first)[0]
    old = [data[first + 2 + 12 * i : first + 14 + 12 * i] for i in range(number)]
    data += bytes(len(data) % 2)
    at = len(data)
    inner_at = at + 2 + 12 * (number + 2) + 4
    pointers = [struct.pack("<HHII", tag, 4, 1, inner_at) for tag in (0x8769, 0x8825)]
    data += struct.pack("<H", number + 2) + b"".join(old + pointers) + bytes(4)
    inner = [struct.pack("<HHII", tag, 7, 20_000, 8) for tag in range(0x9000, 0x9000 + 1900)]
    inner.append(struct.pack("<HHII", 0xA005, 4, 1, inner_at))
    data += struct.pack("<H", len(inner)) + b"".join(inner) + bytes(4)
    (tmp_path / "a.tif").write_bytes(data[:4] + struct.pack("<I", at) + data[8:])
    assert len(read_image(tmp_path / "a.tif").info["exif"]) < 4 * len(data)


@pytest.mark.parametrize("count", [17 << 20, 0x7FFFFFFF])
def test_a_large_or_cut_value_costs_no_other(tmp_path: Path, count: int) -> None:
    """A large Photoshop block or a damaged count does not lose the rest."""
    entries = [(0x0109, 7, count, 56), (0x010F, 2, 4, int.from_bytes(b"abc\0", "little")), (0x8769, 4, 1, 50)]
    data = b"II*\0" + struct.pack("<IH", 8, 3) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    data = data.ljust(50, b"\0") + struct.pack("<HHHII", 1, 0x9000, 7, 4, 0x30323330) + bytes(4)
    data = data.ljust(18 << 20, b"\0")
    write_strips(tmp_path / "a.tif", [gradient("L")], (37, 53, 1), 8, {"exif": data})
    with Image.open(tmp_path / "a.tif") as image:
        assert image.getexif()[ExifTags.Base.Make] == "abc"


def test_exif_without_a_size_gets_none() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a maker"
    kept = Image.Exif()
    kept.load(resized(exif.tobytes(), (3, 4)) or b"")
    assert dict(kept) == {ExifTags.Base.Make: "a maker"}


@pytest.mark.parametrize(
    "data",
    [b"Exif\0\0", b"Exif\0\0" + bytes(90), b"\xff" * 90, *(camera_exif("<")[:length] for length in (9, 60, 120))],
)
def test_damaged_exif_does_not_cost_the_image(tmp_path: Path, data: bytes) -> None:
    """Damaged EXIF data does no harm, neither in reading nor in writing; its readable part may stay."""
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


def test_exif_too_long_for_jpeg_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = picture()
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 70_000
    image.info["exif"] = exif.tobytes()
    write_image(image, tmp_path / "a.jpg")
    assert "too long" in caplog.text
    assert not Image.open(tmp_path / "a.jpg").getexif()
