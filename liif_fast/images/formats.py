"""The formats that are written, and what each can hold."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from PIL import features

from liif_fast.files import why_not_writable
from liif_fast.images.colour import COLOUR
from liif_fast.images.errors import ImageFileError


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
    """

    name: str
    max_side: int
    modes: tuple[str, ...]
    options: dict[str, Any]
    metadata: tuple[str, ...]
    streams: bool


_EVERY = ("L", "LA", "RGB", "RGBA", "I;16", "LA;16", "RGB;16", "RGBA;16")
PNG = Format("PNG", 2**31 - 1, _EVERY, {}, ("icc_profile", "exif", "dpi", COLOUR), True)
# 4:4:4 because the colour detail is just what was computed; subsampling would throw it away.
JPEG = Format("JPEG", 65535, ("L", "RGB"), {"quality": 95, "subsampling": 0}, ("icc_profile", "exif", "dpi"), False)
WEBP = Format("WEBP", 16383, ("L", "LA", "RGB", "RGBA"), {"quality": 95}, ("icc_profile", "exif"), False)
# Of 10 and 12 bits Pillow writes none. A quality of 90 is about JPEG's 95.
AVIF = Format(
    "AVIF", 65535, ("L", "LA", "RGB", "RGBA"), {"quality": 90, "subsampling": "4:4:4"}, ("icc_profile", "exif"), False
)
TIFF = Format("TIFF", 2**31 - 1, _EVERY, {}, ("icc_profile", "exif", "dpi"), True)
# Alpha could be written, but hardly anything reads it.
BMP = Format("BMP", 2**31 - 1, ("L", "RGB"), {}, ("dpi",), False)
PPM = Format("PPM", 2**31 - 1, ("L", "RGB", "I;16", "RGB;16"), {}, (), True)

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


def check_content(path: str | os.PathLike[str], kind: Format, mode: str, size: tuple[int, int]) -> None:
    """Check that a format can hold an image of a mode (see `Format.modes`) and (width, height); `path` is for messages.

    Raises:
        ImageFileError: it cannot.
    """
    if mode not in kind.modes:
        raise ImageFileError(f"{path}: {kind.name} cannot hold {_describe(mode)}; write a .png or .tif file")
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
    path = Path(path)
    if path.is_dir():
        raise ImageFileError(f"{path}: is a folder, expected the name of an image file")
    kind = check_format(path)
    if obstacle := why_not_writable(path):
        raise ImageFileError(f"{path}: {obstacle}")
    return kind


def _describe(mode: str) -> str:
    parts = ["16 bits a channel"] if mode.endswith(";16") else []
    parts += ["an alpha channel"] if mode.startswith(("LA", "RGBA")) else []
    return " and ".join(parts) or f"mode {mode}"
