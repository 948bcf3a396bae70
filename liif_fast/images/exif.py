"""Update EXIF data when an image's size or orientation changes (CIPA DC-008, section 4)."""

import struct

from PIL import ExifTags

_HEADER = b"Exif\0\0"
_SHORT, _LONG = 3, 4  # types of an entry
_ENTRY = 12  # bytes: tag, type, count, value or its offset


def resized(exif: bytes, size: tuple[int, int]) -> bytes | None:
    """Return EXIF data with a new size (width, height) and without the thumbnail; None if the data is damaged.

    No entry moves, because a maker's note may hold offsets. Pillow's writer would break them.
    """
    try:
        data, order, tags, next_at = _first(exif)
        _set(data, order, tags, (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength), size)
        if ExifTags.IFD.Exif in tags:
            inner, _ = _folder(data, order, _value(data, order, tags[ExifTags.IFD.Exif]))
            _set(data, order, inner, (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight), size)
        _drop_thumbnail(data, order, tags, next_at)
    except (KeyError, struct.error):
        return None
    return _HEADER + bytes(data)


def upright(exif: bytes) -> bytes | None:
    """Return EXIF data with the orientation set to upright and no entry moved; None if the data is damaged."""
    try:
        data, order, tags, _ = _first(exif)
        if ExifTags.Base.Orientation in tags:
            struct.pack_into(f"{order}HIHH", data, tags[ExifTags.Base.Orientation] + 2, _SHORT, 1, 1, 0)
    except (KeyError, struct.error):
        return None
    return _HEADER + bytes(data)


def _first(exif: bytes) -> tuple[bytearray, str, dict[int, int], int]:
    """Return the data without its header, the byte order, and `_folder` of the first IFD."""
    data = bytearray(exif.removeprefix(_HEADER))
    order = {b"II": "<", b"MM": ">"}[bytes(data[:2])]
    (first,) = struct.unpack_from(f"{order}I", data, 4)
    return data, order, *_folder(data, order, first)


def _folder(data: bytearray, order: str, at: int) -> tuple[dict[int, int], int]:
    """Return the offset of each entry of an IFD by tag, and the offset of its link to the next IFD."""
    (count,) = struct.unpack_from(f"{order}H", data, at)
    places = [at + 2 + _ENTRY * index for index in range(count)]
    tags = {struct.unpack_from(f"{order}H", data, place)[0]: place for place in places}
    return tags, at + 2 + _ENTRY * count


def _value(data: bytearray, order: str, place: int) -> int:
    """Return the value of an entry of type LONG, or the offset of a longer value."""
    return struct.unpack_from(f"{order}I", data, place + 8)[0]


def _set(data: bytearray, order: str, tags: dict[int, int], names: tuple[int, int], size: tuple[int, int]) -> None:
    for name, side in zip(names, size, strict=True):
        if name in tags:  # as LONG, because a SHORT may be too small
            struct.pack_into(f"{order}HII", data, tags[name] + 2, _LONG, 1, side)


def _drop_thumbnail(data: bytearray, order: str, first: dict[int, int], next_at: int) -> None:
    """Unlink the second IFD, if there is one, and erase the image that it names."""
    if next_at + 4 > len(data):  # some writers omit the link
        return
    (second,) = struct.unpack_from(f"{order}I", data, next_at)
    if second == 0:
        return
    try:
        tags, _ = _folder(data, order, second)
    except struct.error:  # a dangling link, or a value in the place of an omitted link
        return
    struct.pack_into(f"{order}I", data, next_at, 0)
    if ExifTags.Base.JpegIFOffset in tags and ExifTags.Base.JpegIFByteCount in tags:
        start = _value(data, order, tags[ExifTags.Base.JpegIFOffset])
        end = start + _value(data, order, tags[ExifTags.Base.JpegIFByteCount])
        others = [_value(data, order, first[tag]) for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) if tag in first]
        if start < next_at or any(start <= other < end for other in others):  # another IFD lies inside
            raise KeyError
        if end >= len(data):
            del data[start:]
        else:
            data[start:end] = bytes(end - start)
