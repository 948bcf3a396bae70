"""Keep the XMP (ISO 16684-1) and IPTC (IIM 4) data that still holds for the upright, resized image."""

import re
import struct

# Signs of XMP about other parts of the file, which the output lacks: a gain map, a video, depth, a panorama, ...
_OF_OTHER_PARTS = re.compile(rb"ns\.google\.com/photos/1\.0|hdr-gain-map|HDRGainMap|HasExtendedXMP|\0", re.IGNORECASE)
MAX_SEGMENT = 65_000  # bytes of XMP or of IPTC in a JPEG, whose segments have 16-bit lengths
_IIM = 0x0404  # the number of IPTC data among Photoshop's image resources


def resized_xmp(xmp: bytes | str, size: tuple[int, int]) -> bytes | None:
    """Return XMP data adapted to the image turned upright and resized to (width, height).

    None means that it describes other parts of its file, or is not in UTF-8.
    """
    xmp = (xmp.encode() if isinstance(xmp, str) else xmp).rstrip(b"\0")  # some writers pad it
    if _OF_OTHER_PARTS.search(xmp):
        return None
    width, height = size
    for names, value in (
        (b"tiff:Orientation", 1),
        (b"tiff:ImageWidth|exif:PixelXDimension", width),
        (b"tiff:ImageLength|exif:PixelYDimension", height),
    ):
        xmp = re.sub(rb"((?:%s)\s*(?:=\s*[\"']|>)\s*)\d+" % names, rb"\g<1>%d" % value, xmp)
    return xmp


def iptc_of(block: bytes | None) -> bytes | None:
    """Return the IPTC data of a JPEG's APP13 segment, None if the segment has none or is damaged."""
    rest = (block or b"").removeprefix(b"Photoshop 3.0\0")
    while rest.startswith(b"8BIM") and len(rest) >= 12:
        number, name = struct.unpack_from(">HB", rest, 4)
        start = 8 + name // 2 * 2  # the name and its length are padded to an even number
        if len(rest) < start + 4:
            return None
        (length,) = struct.unpack_from(">I", rest, start)
        start += 4
        if number == _IIM:
            return rest[start : start + length] if length <= len(rest) - start else None
        rest = rest[start + length + length % 2 :]
    return None


def jpeg_segments(xmp: bytes | None, iptc: bytes | None) -> bytes:
    """Return XMP and IPTC data as segments of a JPEG; each may have up to `MAX_SEGMENT` bytes."""
    segments = b""
    if xmp:
        segments += _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    if iptc:
        resource = b"8BIM" + struct.pack(">HHI", _IIM, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
        segments += _segment(0xED, b"Photoshop 3.0\0" + resource)
    return segments


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data
