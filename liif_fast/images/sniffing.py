"""Which kind of file this is, by its content; its name is not asked."""

import os
from typing import NamedTuple

HEAD = 4096  # bytes that are looked at


class Kind(NamedTuple):
    """A kind of file.

    Args:
        name: of a format that may be read, as Pillow names it (`reading.READABLE`); else a noun with its article.
        advice: what to do about a file that is not read.
    """

    name: str
    advice: str = ""


UNKNOWN = Kind("an unknown file")
HEIC = Kind("HEIF", "a HEIC image: pip install 'liif-fast[heif]'")
JXL = Kind("JXL", "a JPEG XL image: pip install 'liif-fast[jxl]'")
_VIDEO = Kind("a video", "extract its frames first")
_RAW = "develop it to a TIFF first"

_STARTS = (
    (b"\x89PNG\r\n\x1a\n", Kind("PNG")),
    (b"\xff\xd8\xff\xf7", Kind("a JPEG-LS image", "save it as PNG")),
    (b"\xff\xd8\xff", Kind("JPEG")),
    (b"GIF87a", Kind("GIF")),
    (b"GIF89a", Kind("GIF")),
    (b"IIRO", Kind("a raw camera file (ORF)", _RAW)),
    (b"IIRS", Kind("a raw camera file (ORF)", _RAW)),
    (b"IIU\0", Kind("a raw camera file (RW2)", _RAW)),
    (b"FUJIFILMCCD-RAW", Kind("a raw camera file (RAF)", _RAW)),
    (b"FOVb", Kind("a raw camera file (X3F)", _RAW)),
    (b"II*\0", Kind("TIFF")),
    (b"MM\0*", Kind("TIFF")),
    (b"II+\0", Kind("TIFF")),
    (b"MM\0+", Kind("TIFF")),
    (b"BM", Kind("BMP")),
    *((b"P%d%c" % (digit, space), Kind("PPM")) for digit in range(1, 7) for space in b" \t\r\n#"),
    (b"P7\n", Kind("a PAM image", "save it as PNG")),
    (b"PF\n", Kind("a PFM image of floating-point samples", "save it as a 16-bit PNG or TIFF")),
    (b"Pf\n", Kind("a PFM image of floating-point samples", "save it as a 16-bit PNG or TIFF")),
    (b"\0\0\0\x0cjP  \r\n\x87\n", Kind("JPEG2000")),
    (b"\xff\x4f\xff\x51", Kind("JPEG2000")),
    (b"\0\0\0\x0cJXL \r\n\x87\n", JXL),
    (b"\xff\x0a", JXL),
    (b"II\xbc", Kind("a JPEG XR image", "save it as PNG")),
    (b"%PDF", Kind("a PDF document", "render its pages to PNG first")),
    (b"%!PS", Kind("a PostScript drawing", "render it to a PNG first")),
    (b"\xc5\xd0\xd3\xc6", Kind("a PostScript drawing", "render it to a PNG first")),
    (b"8BPS", Kind("a Photoshop document", "export it as PNG or TIFF")),
    (b"gimp xcf", Kind("a GIMP document", "export it as PNG or TIFF")),
    (b"\x76\x2f\x31\x01", Kind("an OpenEXR image of floating-point samples", "save it as a 16-bit PNG or TIFF")),
    (b"#?RADIANCE", Kind("a Radiance HDR image", "save it as a 16-bit PNG or TIFF")),
    (b"#?RGBE", Kind("a Radiance HDR image", "save it as a 16-bit PNG or TIFF")),
    (b"DDS ", Kind("a DDS texture", "save it as PNG")),
    (b"qoif", Kind("a QOI image", "save it as PNG")),
    (b"BPG\xfb", Kind("a BPG image", "save it as PNG")),
    (b"\0\0\1\0", Kind("an icon (ICO)", "save it as PNG")),
    (b"SIMPLE  =", Kind("a FITS image", "save it as a 16-bit PNG or TIFF")),
    (b"\x1a\x45\xdf\xa3", _VIDEO),
    (b"\0\0\1\xba", _VIDEO),
    (b"\0\0\1\xb3", _VIDEO),
    (b"OggS", Kind("a sound or a video")),
    (b"FLV\1", _VIDEO),
    (b"YUV4MPEG2", _VIDEO),
    (b"PK\3\4", Kind("an archive", "unpack it first")),
    (b"\x1f\x8b", Kind("an archive", "unpack it first")),
    (b"7z\xbc\xaf", Kind("an archive", "unpack it first")),
    (b"Rar!", Kind("an archive", "unpack it first")),
    (b"\x93NUMPY", Kind("a NumPy array", "give it to liif_fast.upscale in Python")),
    (b"version https://git-lfs", Kind("a Git LFS pointer", "git lfs pull fetches the image itself")),
)  # fmt: skip


def sniff(path: str | os.PathLike[str]) -> Kind:
    """Say which kind of file this is.

    Args:
        path: a file that can be opened.

    Returns:
        The kind, `UNKNOWN` where its content does not show it (as in TGA).

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
    for start, kind in _STARTS:
        if head.startswith(start):
            return _raw_of(head) or kind if kind.name == "TIFF" else kind
    if head[:4] == b"RIFF":
        return {b"WEBP": Kind("WEBP"), b"AVI ": _VIDEO}.get(head[8:12], UNKNOWN)
    if head[4:8] == b"ftyp":
        return _by_brands(head)
    if head[128:132] == b"DICM":
        return Kind("a DICOM image", "save it as a 16-bit PNG or TIFF")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text:
        return Kind("an SVG drawing", "render it to a PNG first")
    if text.startswith((b"<!doctype html", b"<html")):
        return Kind("a web page", "the download gave no image")
    return UNKNOWN if b"\0" in head or not head else _text(head)


def _text(head: bytes) -> Kind:
    try:
        head[:-3].decode()  # a character may be cut at the end
    except UnicodeDecodeError:
        return UNKNOWN
    return Kind("a text file")


def _raw_of(head: bytes) -> Kind | None:
    """A camera's raw file that is a TIFF, as far as its first bytes show that."""
    return Kind("a raw camera file (CR2)", _RAW) if head[8:10] == b"CR" else None


def _by_brands(head: bytes) -> Kind:
    """The kind of an ISO base media file (ISO/IEC 14496-12, 4.3)."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size, 4))}
    if brands & {b"avif", b"avis"}:
        return Kind("AVIF")
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return HEIC
    return Kind("a raw camera file (CR3)", _RAW) if b"crx " in brands else _VIDEO
