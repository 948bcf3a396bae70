"""Test damaged, renamed, foreign and changed files: the content decides, and messages name what cannot be read."""

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from liif_fast.images import ImageFileError, open_picture, read_image, read_rgb


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif", "gif", "avif", "bmp", "ppm", "tga", "jp2"])
def test_a_truncated_file_is_no_gray_one(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)).save(path)
    data = path.read_bytes()
    for part in (0.3, 0.6, 0.95):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(ImageFileError, match=f"a.{extension}: ") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif", "gif", "avif", "bmp"])
def test_a_rewritten_file_is_read_anew(tmp_path: Path, extension: str) -> None:
    """A rewritten file of the same size and time is read again, although libvips's cache cannot tell it apart."""
    path = tmp_path / f"a.{extension}"
    for value in (10, 200, 90):
        Image.new("RGB", (16, 16), (value,) * 3).save(path)
        os.utime(path, (1, 1))
        assert abs(int(read_rgb(path)[8, 8, 0]) - value) <= 2


@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
def test_a_huge_header_is_refused_before_any_pixel(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.new("L", (5, 5)).save(path)
    data = bytearray(path.read_bytes())
    if extension == "png":
        data[16:24] = struct.pack(">II", 60_000, 60_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif extension == "jpg":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    else:
        for tag in (256, 257):
            at = next(
                data.index(struct.pack("<HHI", tag, kind, 1))
                for kind in (3, 4)
                if struct.pack("<HHI", tag, kind, 1) in data
            )
            data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 60_000)
    path.write_bytes(data)
    with pytest.raises(ImageFileError, match="decompression bomb"):
        open_picture(path)


@pytest.mark.parametrize("name", ["a.png", "a.txt", "a"])
def test_the_content_decides(tmp_path: Path, name: str) -> None:
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "TGA", "AVIF"):
        Image.new("RGB", (20, 10), (90, 90, 90)).save(tmp_path / name, kind)
        read = read_image(tmp_path / name)
        assert (read.format, read.size) == (kind, (20, 10))


UNREAD: list[tuple[bytes, str]] = [
    (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    (b"1,2,3\n4,5,6\n", "not an image in a known format"),
    (b"%PDF-1.7", "a PDF document"),
    (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "a video"),
    (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", r"a raw camera file \(CR3\): develop it to a TIFF first"),
    (b"II*\0\x10\0\0\0CR\2\0", r"a raw camera file \(CR2\)"),
    (b"8BPS\0\1", "a Photoshop document"),
    (b"v/1\1", "an OpenEXR image"),
    (b"<!DOCTYPE html><html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    (b"\xff\xd8", "not an image"),
    (b"\0" * 200, "not an image"),
]


@pytest.mark.parametrize(("content", "message"), UNREAD, ids=lambda value: value if isinstance(value, str) else None)
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageFileError, match=message) as caught:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_a_dng_is_a_raw_camera_file(tmp_path: Path) -> None:
    extra = [(50706, 1, 4, b"\1\4\0\0", True)]
    tifffile.imwrite(tmp_path / "a.dng", np.zeros((5, 5), np.uint16), metadata=None, extratags=extra)
    with pytest.raises(ImageFileError, match=r"raw camera file \(DNG\): develop it"):
        read_image(tmp_path / "a.dng")


@pytest.mark.parametrize(("extension", "extra"), [("heic", "heif"), ("jxl", "jxl")])
def test_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str, extra: str) -> None:
    """Optional plugins are used if installed, and named by the error otherwise."""
    plugin = pytest.importorskip({"heic": "pillow_heif", "jxl": "pillow_jxl"}[extension])
    if extension == "heic":
        plugin.register_heif_opener()
    path = tmp_path / f"a.{extension}"
    Image.new("RGB", (32, 16), (200, 100, 50)).save(path)
    pixels = read_image(path).pixels
    assert pixels.shape == (16, 32, 3)
    assert np.abs(pixels[8, 16].astype(int) - (200, 100, 50)).max() <= 4
    monkeypatch.setitem(sys.modules, plugin.__name__, None)
    with pytest.raises(ImageFileError, match=rf"pip install 'liif-fast\[{extra}\]'"):
        read_image(path)
