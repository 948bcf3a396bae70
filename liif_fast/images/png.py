"""Write PNG row by row (ISO/IEC 15948), so that an image may be larger than memory.

Pillow needs the whole image. pypng streams, but does not filter rows, so its files of photographs are larger by half.
"""

import io
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from liif_fast.images.colour import COLOUR

_METRES_PER_INCH = 0.0254
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> gray, gray with alpha, RGB, RGBA
_LEVEL = 6
_HEADER = 33  # bytes of the signature and IHDR


def write_png(
    file: IO[bytes], strips: Iterable[NDArray], shape: tuple[int, int, int], depth: int, metadata: dict[str, Any]
) -> None:
    """Write an image whose rows come in strips.

    Args:
        strips: [rows, width, channels] each, uint8 or uint16, from top to bottom, with `height` rows in total.
        shape: (height, width, channels) of the image, 1 to 4 channels.
        metadata: may hold `icc_profile`, `exif` and `xmp` (bytes), `dpi`, and under `COLOUR` the result of
            `read_colour`.
    """
    height, width, channels = shape
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, depth, _COLOUR_TYPES[channels], 0, 0, 0))
    if profile := metadata.get("icc_profile"):
        _chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))
    for name, data in metadata.get(COLOUR, {}).items():
        _chunk(file, name, data)
    if dpi := metadata.get("dpi"):
        _chunk(file, b"pHYs", struct.pack(">IIB", *(round(each / _METRES_PER_INCH) for each in dpi), 1))
    if exif := metadata.get("exif"):
        _chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    if xmp := metadata.get("xmp"):
        _chunk(file, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    pack = zlib.compressobj(_LEVEL)
    step = channels * depth // 8
    above = np.zeros(width * step, np.uint8)
    for strip in strips:
        rows = np.ascontiguousarray(strip, np.uint8 if depth == 8 else ">u2").reshape(len(strip), -1).view(np.uint8)
        if data := pack.compress(_filter(rows, above, step).tobytes()):
            _chunk(file, b"IDAT", data)
        above = rows[-1]
    _chunk(file, b"IDAT", pack.flush())
    _chunk(file, b"IEND", b"")


def with_colour(data: bytes, colour: Mapping[bytes, bytes]) -> bytes:
    """Return a PNG file with the chunks of `read_colour`, some of which Pillow does not write."""
    head = io.BytesIO()
    for name, chunk in colour.items():
        _chunk(head, name, chunk)
    return data[:_HEADER] + head.getvalue() + data[_HEADER:]


def _chunk(file: IO[bytes], name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name)
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def _filter(rows: NDArray[np.uint8], above: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Filter each row of bytes [h, n] by the filter with the smallest sum, and put its number in front (12.8)."""
    up = np.concatenate((above[None], rows[:-1]))
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, step:], corner[:, step:] = rows[:, :-step], up[:, :-step]
    a, b, c = left.astype(np.int16), up.astype(np.int16), corner.astype(np.int16)
    to_a, to_b, to_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    paeth = np.where((to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, up, corner))
    predictions = (None, left, up, ((a + b) // 2).astype(np.uint8), paeth)
    out = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
    best = np.full(len(rows), np.iinfo(np.int64).max)
    for number, prediction in enumerate(predictions):
        differences = rows if prediction is None else rows - prediction
        cost = np.minimum(differences, 0 - differences).sum(1, dtype=np.int64)  # |d| of a signed byte
        better = cost < best
        out[better, 0], out[better, 1:], best[better] = number, differences[better], cost[better]
    return out
