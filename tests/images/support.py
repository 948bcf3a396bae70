"""Make pictures for the tests of image files."""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from liif_fast.images import read_image


def picture(mode: str = "RGB", size: tuple[int, int] = (9, 5)) -> Image.Image:
    """Return random pixels of any mode."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., :2].copy().view(np.uint16)[..., 0])
    image = Image.fromarray(pixels)
    return image.convert("RGB").convert(mode) if mode == "P" else image.convert(mode)


def as_pil(path: str | Path) -> Image.Image:
    """Read a file as a Pillow image, whose modes have 16 bits only in gray."""
    picture = read_image(path)
    image = Image.fromarray(picture.pixels[..., 0] if picture.shape[2] == 1 else picture.pixels)
    image.info = dict(picture.info)
    return image


def gradient(mode: str, height: int = 37, width: int = 53) -> NDArray:
    """Return a smooth picture with some noise, [H, W, C]."""
    deep = mode.endswith(";16")
    channels = {"L": 1, "I;16": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode if mode == "I;16" else mode.removesuffix(";16")]
    y, x = np.mgrid[:height, :width]
    waves = np.stack([0.5 + 0.4 * np.sin(0.1 * x + 0.2 * y + c) for c in range(channels)], -1)
    waves += np.random.default_rng(0).uniform(-0.05, 0.05, waves.shape)
    return (waves * 65535).astype(np.uint16) if deep else (waves * 255).astype(np.uint8)


def png(width: int, height: int, raw: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """Return a PNG file with any header, even a false one."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


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
