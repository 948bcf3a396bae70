"""Define the output formats and what each can store."""

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from PIL import features

from liif_fast.files import why_not_writable
from liif_fast.images.colour import COLOUR
from liif_fast.images.errors import ImageFileError

logger = logging.getLogger("liif_fast.images")


class Format(NamedTuple):
    """Describe an output format.

    Args:
        name: Pillow's name of the format.
        max_side: largest width or height in pixels.
        modes: Pillow's modes that it stores without loss of channels or depth, and `LA;16`, `RGB;16`, `RGBA;16`, which
            Pillow does not have.
        options: arguments of `Image.save`.
        metadata: the entries of `Image.info` that it stores.
        streams: whether it is written strip by strip; if not, the whole image is collected in memory first.
        lossless: the `options` that keep every pixel; None if there are none.
    """

    name: str
    max_side: int
    modes: tuple[str, ...]
    options: dict[str, Any]
    metadata: tuple[str, ...]
    streams: bool
    lossless: dict[str, Any] | None


_EVERY = ("L", "LA", "RGB", "RGBA", "I;16", "LA;16", "RGB;16", "RGBA;16")
PNG = Format("PNG", 2**31 - 1, _EVERY, {}, ("icc_profile", "exif", "xmp", "dpi", COLOUR), True, {})
# 4:4:4, because subsampling would discard the computed colour detail.
_JPEG = {"quality": 95, "subsampling": 0}
JPEG = Format("JPEG", 65535, ("L", "RGB"), _JPEG, ("icc_profile", "exif", "xmp", "iptc", "dpi"), False, None)
_LOSSLESS_WEBP = {"lossless": True, "exact": True}  # exact keeps the colours of transparent pixels
WEBP = Format(
    "WEBP", 16383, ("L", "LA", "RGB", "RGBA"), {"quality": 95}, ("icc_profile", "exif", "xmp"), False, _LOSSLESS_WEBP
)
# Pillow writes AVIF with 8 bits only, and at quality 100 with errors of up to 3 levels. 90 is about JPEG's 95.
_AVIF = {"quality": 90, "subsampling": "4:4:4"}
AVIF = Format("AVIF", 65535, ("L", "LA", "RGB", "RGBA"), _AVIF, ("icc_profile", "exif", "xmp"), False, None)
TIFF = Format("TIFF", 2**31 - 1, _EVERY, {}, ("icc_profile", "exif", "xmp", "iptc", "dpi"), True, {})
# Without alpha, because hardly any program reads it.
BMP = Format("BMP", 2**31 - 1, ("L", "RGB"), {}, ("dpi",), False, {})
PPM = Format("PPM", 2**31 - 1, ("L", "RGB", "I;16", "RGB;16"), {}, (), True, {})
# For animations: a frame has at most 256 colours, and a pixel is either transparent or opaque.
GIF = Format("GIF", 65535, ("L", "LA", "RGB", "RGBA"), {}, (), False, None)
ANIMATED = (GIF.name, PNG.name, WEBP.name)

FORMATS = {
    ".png": PNG,
    ".apng": PNG,
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".webp": WEBP,
    ".avif": AVIF,
    ".tif": TIFF,
    ".tiff": TIFF,
    ".bmp": BMP,
    ".gif": GIF,
    ".pgm": PPM,
    ".ppm": PPM,
}


def mode_of(channels: int, depth: int) -> str:
    """Return the mode, as in `Format.modes`, of an image of 1 to 4 channels of 8 or 16 bits."""
    if depth == 8:
        return ("L", "LA", "RGB", "RGBA")[channels - 1]
    return ("I;16", "LA;16", "RGB;16", "RGBA;16")[channels - 1]


def check_format(path: str | os.PathLike[str]) -> Format:
    """Return the format of a path's extension; raise ImageFileError if none has it or this Pillow cannot write it."""
    kind = FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        known = ", ".join(FORMATS)
        if not Path(path).suffix:
            raise ImageFileError(f"{path}: has no extension to name the output's format; add one of {known}")
        raise ImageFileError(f"{path}: unknown output format {Path(path).suffix!r}, expected one of {known}")
    if kind is AVIF and not features.check("avif"):
        raise ImageFileError(f"{path}: this Pillow writes no AVIF; pip install --upgrade pillow")
    return kind


def tuned(path: str | os.PathLike[str], kind: Format, quality: int | None = None, lossless: bool = False) -> Format:
    """Return a format with other options; warn if the quality has no effect.

    Args:
        path: the output's path, for messages.
        kind: the format.
        quality: 1 to 100; None means the format's default.
        lossless: keep every pixel.

    Raises:
        ValueError: the quality is out of range, or both are given.
        ImageFileError: the format has no lossless form.
    """
    if lossless and quality is not None:
        raise ValueError("quality and lossless exclude each other")
    if lossless and kind.lossless is None:
        raise ImageFileError(f"{path}: {kind.name} cannot be lossless; write a .png, .tif or .webp file")
    if quality is not None and quality not in range(1, 101):
        raise ValueError(f"quality must be a whole number from 1 to 100, got {quality!r:.80}")
    if quality is not None and "quality" not in kind.options:
        logger.warning("%s: the quality has no effect, because %s has no such setting", path, kind.name)
    elif quality is not None:
        return kind._replace(options=kind.options | {"quality": int(quality)})
    return kind._replace(options=kind.options | (kind.lossless or {})) if lossless else kind


def ending_of(format: str) -> str:
    """Return the extension of a format, given Pillow's name; `.png` if this package does not write the format."""
    return next((ending for ending, kind in FORMATS.items() if kind.name == format), ".png")


def check_content(path: str | os.PathLike[str], kind: Format, mode: str, size: tuple[int, int]) -> None:
    """Raise ImageFileError unless the format can hold an image of this mode and (width, height)."""
    if mode not in kind.modes:
        deep = mode.endswith(";16")
        other = "" if deep or mode not in ("LA", "RGBA") else ", or give a background"
        raise ImageFileError(f"{path}: {kind.name} cannot hold {_describe(mode)}; write a .png or .tif file{other}")
    if max(size) > kind.max_side:
        raise ImageFileError(
            f"{path}: {kind.name} holds at most {kind.max_side} pixels per side, got an output of {size[0]}x{size[1]}"
        )


def fits(ending: str, mode: str) -> bool:
    """Return whether a file with this extension can be written and can hold an image of this mode."""
    return ending.lower() in FORMATS and mode in FORMATS[ending.lower()].modes


def check_output(path: str | os.PathLike[str]) -> Format:
    """Return the format of a path's extension after checking, before any work, that the path can be written.

    Raises:
        ImageFileError: the extension is unknown, the folder does not exist, or permission is missing.
    """
    check_place(path)
    return check_format(path)


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise ImageFileError unless a file can be written to `path`."""
    if obstacle := why_not_writable(path):
        raise ImageFileError(f"{path}: {obstacle}")


def _describe(mode: str) -> str:
    parts = ["16 bits per channel"] if mode.endswith(";16") else []
    parts += ["an alpha channel"] if mode.startswith(("LA", "RGBA")) else []
    return " and ".join(parts) or f"mode {mode}"
