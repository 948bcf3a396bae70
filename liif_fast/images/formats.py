"""The formats that are written, and what each can hold."""

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
    """What one output format can hold, and how it is saved.

    Args:
        name: Pillow's name of the format.
        max_side: largest width or height, pixels.
        modes: Pillow's modes that it stores without loss of channels or depth, and `LA;16`, `RGB;16`, `RGBA;16`, which
            Pillow does not have.
        options: arguments of `Image.save`.
        metadata: which entries of `Image.info` are kept.
        streams: written strip by strip; else the whole image is collected in memory first.
        lossless: the `options` with which every pixel is kept; None if none do.
    """

    name: str
    max_side: int
    modes: tuple[str, ...]
    options: dict[str, Any]
    metadata: tuple[str, ...]
    streams: bool
    lossless: dict[str, Any] | None


_EVERY = ("L", "LA", "RGB", "RGBA", "I;16", "LA;16", "RGB;16", "RGBA;16")
PNG = Format("PNG", 2**31 - 1, _EVERY, {}, ("icc_profile", "exif", "dpi", COLOUR), True, {})
# 4:4:4 because the colour detail is just what was computed; subsampling would throw it away.
JPEG = Format(
    "JPEG", 65535, ("L", "RGB"), {"quality": 95, "subsampling": 0}, ("icc_profile", "exif", "dpi"), False, None
)
_LOSSLESS_WEBP = {"lossless": True, "exact": True}  # the latter: with the colours of transparent pixels
WEBP = Format(
    "WEBP", 16383, ("L", "LA", "RGB", "RGBA"), {"quality": 95}, ("icc_profile", "exif"), False, _LOSSLESS_WEBP
)
# Of 10 and 12 bits Pillow writes none, and its quality of 100 is off by up to 3 levels. 90 is about JPEG's 95.
_AVIF = {"quality": 90, "subsampling": "4:4:4"}
AVIF = Format("AVIF", 65535, ("L", "LA", "RGB", "RGBA"), _AVIF, ("icc_profile", "exif"), False, None)
TIFF = Format("TIFF", 2**31 - 1, _EVERY, {}, ("icc_profile", "exif", "dpi"), True, {})
# Alpha could be written, but hardly anything reads it.
BMP = Format("BMP", 2**31 - 1, ("L", "RGB"), {}, ("dpi",), False, {})
PPM = Format("PPM", 2**31 - 1, ("L", "RGB", "I;16", "RGB;16"), {}, (), True, {})

FORMATS = {
    ".png": PNG,
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".webp": WEBP,
    ".avif": AVIF,
    ".tif": TIFF,
    ".tiff": TIFF,
    ".bmp": BMP,
    ".pgm": PPM,
    ".ppm": PPM,
}


def mode_of(channels: int, depth: int) -> str:
    """The mode, as in `Format.modes`, of an image of 1 to 4 channels of 8 or 16 bits."""
    if depth == 8:
        return ("L", "LA", "RGB", "RGBA")[channels - 1]
    return ("I;16", "LA;16", "RGB;16", "RGBA;16")[channels - 1]


def check_format(path: str | os.PathLike[str]) -> Format:
    """Return the format that the ending of `path` names; errors as of `check_output`."""
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
    """Return a format with other options; a logged notice where a quality is of no effect. `path` is for messages.

    Args:
        quality: 1 to 100; None is the format's own.
        lossless: every pixel is kept.

    Raises:
        ValueError: the quality is out of range, or both are given.
        ImageFileError: the format cannot be written without loss.
    """
    if lossless and quality is not None:
        raise ValueError("quality and lossless exclude each other")
    if lossless and kind.lossless is None:
        raise ImageFileError(f"{path}: {kind.name} is not written without loss; write a .png, .tif or .webp file")
    if quality is not None and quality not in range(1, 101):
        raise ValueError(f"quality must be a whole number from 1 to 100, got {quality!r:.80}")
    if quality is not None and "quality" not in kind.options:
        logger.warning("%s: the quality is of no effect, since %s has none", path, kind.name)
    elif quality is not None:
        return kind._replace(options=kind.options | {"quality": int(quality)})
    return kind._replace(options=kind.options | (kind.lossless or {})) if lossless else kind


def ending_of(format: str) -> str:
    """Return the first ending of a format by Pillow's name, or `.png` if none is written."""
    return next((ending for ending, kind in FORMATS.items() if kind.name == format), ".png")


def check_content(path: str | os.PathLike[str], kind: Format, mode: str, size: tuple[int, int]) -> None:
    """Check that a format can hold an image of a mode (see `Format.modes`) and (width, height); `path` is for messages.

    Raises:
        ImageFileError: it cannot.
    """
    if mode not in kind.modes:
        deep = mode.endswith(";16")
        other = "" if deep or mode not in ("LA", "RGBA") else ", or give a background"
        raise ImageFileError(f"{path}: {kind.name} cannot hold {_describe(mode)}; write a .png or .tif file{other}")
    if max(size) > kind.max_side:
        raise ImageFileError(
            f"{path}: {kind.name} holds at most {kind.max_side} pixels a side, the output is {size[0]}x{size[1]}"
        )


def fits(ending: str, mode: str) -> bool:
    """Whether a file of this ending can be written, and holds an image of this mode, as in `Format.modes`."""
    return ending.lower() in FORMATS and mode in FORMATS[ending.lower()].modes


def check_output(path: str | os.PathLike[str]) -> Format:
    """Check before any work that an image can be written to `path`, whose extension names the format that is returned.

    Raises:
        ImageFileError: unknown extension, no such folder, or no permission.
    """
    check_place(path)
    return check_format(path)


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise ImageFileError unless a file can be written to `path`."""
    if obstacle := why_not_writable(path):
        raise ImageFileError(f"{path}: {obstacle}")


def _describe(mode: str) -> str:
    parts = ["16 bits a channel"] if mode.endswith(";16") else []
    parts += ["an alpha channel"] if mode.startswith(("LA", "RGBA")) else []
    return " and ".join(parts) or f"mode {mode}"
