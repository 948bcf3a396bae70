"""Recognise a file's kind by its content, not by its name."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from liif_fast.images.errors import ImageFileError

# Pillow's names of raster formats. Drawings are left out, because libvips or Ghostscript would render them.
READABLE = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "TGA", "JPEG2000")
LOSSY = ("JPEG", "MPO", "HEIF", "AVIF")  # Pillow's names of formats that lose detail, whatever their settings
HEAD = 4096  # bytes that are examined


class Kind(NamedTuple):
    """Name a kind of file, and say what to do with it."""

    name: str
    advice: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, self))


UNKNOWN, TEXT = Kind("an unknown file"), Kind("a text file")
HEIC = Kind("a HEIC image", "pip install 'liif-fast[heif]'")
JXL = Kind("a JPEG XL image", "pip install 'liif-fast[jxl]'")
_VIDEO = Kind("a video", "pipe it through ffmpeg, as docs/upscaling.md shows")
_RAW = "develop it to a TIFF first"
_PNG, _DEEP = "save it as PNG", "save it as a 16-bit PNG or TIFF"
_DRAWN = "render it to a PNG first"

# How files begin; the first match counts.
_KINDS = (
    (rb"\x89PNG\r\n\x1a\n", Kind("PNG")),
    (rb"\xff\xd8\xff\xf7", Kind("a JPEG-LS image", _PNG)),
    (rb"\xff\xd8\xff", Kind("JPEG")),
    (rb"GIF8[79]a", Kind("GIF")),
    (rb"RIFF.{4}WEBP", Kind("WEBP")),
    (rb"IIR[OS]", Kind("a raw camera file (ORF)", _RAW)),
    (rb"IIU\0", Kind("a raw camera file (RW2)", _RAW)),
    (rb"FUJIFILMCCD-RAW", Kind("a raw camera file (RAF)", _RAW)),
    (rb"FOVb", Kind("a raw camera file (X3F)", _RAW)),
    (rb"(II\*\0|MM\0\*).{4}CR", Kind("a raw camera file (CR2)", _RAW)),
    (rb"II[*+]\0|MM\0[*+]", Kind("TIFF")),
    (rb"BM", Kind("BMP")),
    (rb"P[1-6][ \t\r\n#]", Kind("PPM")),
    (rb"P7\n", Kind("a PAM image", _PNG)),
    (rb"P[Ff]\n", Kind("a PFM image of floating-point samples", _DEEP)),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", Kind("JPEG2000")),
    (rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a", JXL),
    (rb"II\xbc", Kind("a JPEG XR image", _PNG)),
    # Brands of an ISO base media file (ISO/IEC 14496-12, 4.3)
    (rb".{4}ftyp(.{4})*?avi[fs]", Kind("AVIF")),
    (rb".{4}ftyp(.{4})*?(hei[cxms]|hev[cx]|mif1|msf1)", HEIC),
    (rb".{4}ftyp(.{4})*?crx ", Kind("a raw camera file (CR3)", _RAW)),
    (rb".{4}ftyp|RIFF.{4}AVI |\x1a\x45\xdf\xa3|\0\0\x01[\xba\xb3]|FLV\x01|YUV4MPEG2", _VIDEO),
    (rb"OggS", Kind("a sound or a video")),
    (rb"%PDF", Kind("a PDF document", "render its pages to PNG first")),
    (rb"%!PS|\xc5\xd0\xd3\xc6", Kind("a PostScript drawing", _DRAWN)),
    (rb"8BPS", Kind("a Photoshop document", "export it as PNG or TIFF")),
    (rb"gimp xcf", Kind("a GIMP document", "export it as PNG or TIFF")),
    (rb"\x76\x2f\x31\x01", Kind("an OpenEXR image of floating-point samples", _DEEP)),
    (rb"#\?RADIANCE|#\?RGBE", Kind("a Radiance HDR image", _DEEP)),
    (rb"DDS ", Kind("a DDS texture", _PNG)),
    (rb"qoif", Kind("a QOI image", _PNG)),
    (rb"BPG\xfb", Kind("a BPG image", _PNG)),
    (rb"\0\0\x01\0", Kind("an icon (ICO)", _PNG)),
    (rb"SIMPLE  =", Kind("a FITS image", _DEEP)),
    (rb".{128}DICM", Kind("a DICOM image", _DEEP)),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", Kind("an archive", "unpack it first")),
    (rb"\x93NUMPY", Kind("a NumPy array", "give it to liif_fast.upscale in Python")),
    (rb"version https://git-lfs", Kind("a Git LFS pointer", "git lfs pull fetches the image itself")),
    # No signature, but a plausible header: colour map, type, size, bits per pixel
    (rb".[\0\x01][\x01-\x03\x09-\x0b].{13}[\x01\x08\x0f\x10\x18\x20]", Kind("TGA")),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<svg|(<\?xml|<!--|<!doctype svg).*<svg)", Kind("an SVG drawing", _DRAWN)),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<!doctype html|<html)", Kind("a web page", "the download gave no image")),
    (rb"[\t-\r\x1b -\xff]+\Z", TEXT),
    (rb"", UNKNOWN),
)


def readable(path: str | os.PathLike[str]) -> str:
    """Return Pillow's name of an image file's format; raise ImageFileError for other files."""
    kind = _sniff(path)
    if name := kind.name if kind.name in READABLE else _plugin(kind):
        return name
    if kind not in (UNKNOWN, TEXT):
        raise ImageFileError(f"{path}: is {kind}")
    if Path(path).stat().st_size == 0:  # e.g. after a failed copy or download
        raise ImageFileError(f"{path}: is empty")
    raise ImageFileError(f"{path}: not an image in a known format ({', '.join(READABLE)})")


def describe(path: str | os.PathLike[str]) -> str:
    """Name the kind of a file that is skipped or has another format's extension, as a noun with its article."""
    try:
        kind = _sniff(path)
    except OSError:
        return "a file that cannot be read"
    if kind.name in READABLE:
        return f"{kind.name} with another extension"
    return str(kind) if kind in (HEIC, JXL) else kind.name


def is_lossy(path: str | os.PathLike[str], name: str) -> bool:
    """Return whether a file of the format `name`, as `readable` names it, was compressed with loss.

    JPEG, HEIC and AVIF count as lossy. The first image chunk of a WebP tells.
    """
    if name != "WEBP":
        return name in LOSSY
    with open(path, "rb") as file:
        place = 12  # behind RIFF, its length, WEBP
        while len(head := (file.seek(place), file.read(8))[1]) == 8:
            chunk, length = head[:4], int.from_bytes(head[4:], "little")
            if chunk in (b"VP8 ", b"VP8L"):
                return chunk == b"VP8 "
            # A frame of an animation begins with 16 bytes and then holds chunks itself.
            place += 8 + (16 if chunk == b"ANMF" else length + length % 2)
    return False


def endings() -> set[str]:
    """Return the extensions of readable image files, lower case and with their dot."""
    Image.init()
    names = {*READABLE, _plugin(HEIC), _plugin(JXL)}
    return {ending for ending, name in Image.EXTENSION.items() if name in names}


def _sniff(path: str | os.PathLike[str]) -> Kind:
    with open(path, "rb") as file:
        head = file.read(HEAD)
    return next(kind for pattern, kind in _KINDS if re.match(pattern, head, re.DOTALL))


def _plugin(kind: Kind) -> str:
    """Register the optional plugin for a kind and return the plugin's name of the format; "" without a plugin."""
    try:
        if kind == HEIC:
            from pillow_heif import HeifImagePlugin  # noqa: F401

            return "HEIF"
        if kind == JXL:
            import pillow_jxl  # noqa: F401

            return "JXL"
    except ImportError:
        pass
    return ""
