"""Read the colour space of a PNG from its chunks other than an ICC profile (ISO/IEC 15948, 11.3.2)."""

import os
import struct
from collections.abc import Mapping

COLOUR = "png_colour"  # the key in `info` of the chunks, {name: data}

_CHUNKS = (b"cICP", b"mDCV", b"cLLI", b"sRGB", b"gAMA", b"cHRM")
_OTHERS = (b"IHDR", b"pHYs", b"acTL", b"tRNS")
_BOXES = 1 << 16  # bytes of an AVIF or HEIC file that are searched for the boxes of its properties
_UNSPECIFIED = 2
_LARGEST = 32  # bytes of the largest chunk, cHRM
_SRGB = {
    b"cICP": bytes((1, 13, 0, 1)),
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}


def read_chunks(path: str | os.PathLike[str]) -> dict[bytes, bytes]:
    """Read the small chunks before a PNG file's pixels: header, colours, resolution, transparency."""
    found = {}
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == b"IDAT":
                break
            if name in _CHUNKS + _OTHERS and length <= _LARGEST:
                found[name] = file.read(length)
                length = 0
            elif name == b"iCCP":
                found[name] = b""
            file.seek(length + 4, os.SEEK_CUR)
    return found


def read_colour(path: str | os.PathLike[str]) -> dict[bytes, bytes]:
    """Read the chunks of a PNG file that define its colours; see `read_chunks`."""
    return {name: data for name, data in read_chunks(path).items() if name in _CHUNKS}


def read_cicp(path: str | os.PathLike[str]) -> dict[bytes, bytes]:
    """Read the colours of an AVIF or HEIC file as the equivalent PNG chunk (ITU-T H.273); empty if unspecified."""
    with open(path, "rb") as file:
        head = file.read(_BOXES)
    at = head.find(b"colrnclx") + 8
    if at < 8 or len(head) < at + 7:
        return {}
    primaries, transfer = struct.unpack_from(">HH", head, at)
    if _UNSPECIFIED in (primaries, transfer) or max(primaries, transfer) > 255:
        return {}
    return {b"cICP": bytes((primaries, transfer, 0, 1))}  # RGB of full range, because that is how pixels are decoded


def looks_like_srgb(chunks: Mapping[bytes, bytes], profile: bytes | None) -> bool:
    """Return whether an image looks the same without these chunks, since untagged images are shown as sRGB."""
    if b"cICP" in chunks:
        return chunks[b"cICP"] == _SRGB[b"cICP"]
    if profile or b"sRGB" in chunks:
        return True
    return all(chunks.get(name, _SRGB[name]) == _SRGB[name] for name in (b"gAMA", b"cHRM"))
