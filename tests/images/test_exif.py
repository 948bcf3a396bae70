"""EXIF data is kept where the format can hold it, and corrected; it never costs an image."""

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from liif_fast.images import (
    read_image,
    write_image,
    write_strips,
    writing,
)
from liif_fast.images.exif import resized

from .support import as_pil, camera_exif, gradient, picture


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
    """A BigTIFF's EXIF data is read, though Pillow does not read it."""
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


def test_exif_too_long_for_jpeg_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = picture()
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 70_000
    image.info["exif"] = exif.tobytes()
    write_image(image, tmp_path / "a.jpg")
    assert "too long" in caplog.text
    assert not Image.open(tmp_path / "a.jpg").getexif()
