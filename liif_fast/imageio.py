"""Opening and writing image files safely: one clear error, one atomic write.

Nothing here imports torch, so that a bad path is reported before anything heavy is loaded.
"""

import logging
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image, ImageOps

from liif_fast.files import atomic_file

logger = logging.getLogger(__name__)

# Only raster formats that Pillow decodes itself: an .eps, for one, would start Ghostscript.
READABLE = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "TGA", "JPEG2000")

# What upscale() works on; every other mode of Pillow is first converted to one of these, or refused.
SUPPORTED_MODES = ("L", "LA", "RGB", "RGBA", "I;16")

# Why it does not reduce; here, since the command line says so before torch is loaded.
WHY_NOT_SMALLER = "the model interpolates without a low-pass filter, so it would alias; use an ordinary resize"


class ImageFileError(ValueError):
    """An image file cannot be read or written; the message is one line that names the file and the reason."""


class Format(NamedTuple):
    """What one output format can hold, and how it is saved.

    Args:
        name: Pillow's name of the format.
        max_side: largest width or height, pixels.
        modes: Pillow modes that it stores without loss of channels or depth.
        options: arguments of `Image.save`.
        metadata: which entries of `Image.info` are kept.
    """

    name: str
    max_side: int
    modes: tuple[str, ...]
    options: dict[str, Any]
    metadata: tuple[str, ...]


_PNG = Format("PNG", 2**31 - 1, ("L", "LA", "RGB", "RGBA", "I;16"), {}, ("icc_profile", "exif"))
# 4:4:4 because the colour detail is just what was computed; subsampling would throw it away.
_JPEG = Format("JPEG", 65535, ("L", "RGB"), {"quality": 95, "subsampling": 0}, ("icc_profile", "exif"))
_WEBP = Format("WEBP", 16383, ("L", "LA", "RGB", "RGBA"), {"quality": 95}, ("icc_profile", "exif"))
_TIFF = Format("TIFF", 2**31 - 1, ("L", "LA", "RGB", "RGBA", "I;16"), {"compression": "tiff_adobe_deflate"},
               ("icc_profile",))  # fmt: skip
_BMP = Format("BMP", 2**31 - 1, ("L", "RGB"), {}, ())  # alpha could be written, but hardly anything reads it
_PPM = Format("PPM", 2**31 - 1, ("L", "RGB", "I;16"), {}, ())

FORMATS = {
    ".png": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": _WEBP,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": _BMP,
    ".pgm": _PPM,
    ".ppm": _PPM,
}

_METADATA = {"icc_profile": "ICC profile", "exif": "EXIF data"}
# Tags of a TIFF's first folder: description, make, model, software, date, artist, copyright.
_TIFF_EXIF = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
_MAX_JPEG_EXIF = 65_000  # an APP1 segment has a 16-bit length


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a whole image file, turned upright and in one of `SUPPORTED_MODES`.

    Args:
        path: an image file. Of an animation or a multi-page file the first frame is taken, with a logged notice.

    Returns:
        The image, its pixels loaded; `info` holds the ICC profile and EXIF data if there are any.

    Raises:
        ImageFileError: the file is missing, is no image, is truncated, is a decompression bomb
            (Pillow's limit, twice `Image.MAX_IMAGE_PIXELS`), or has a mode that cannot be upscaled.
    """
    path = Path(path)
    check_input(path)
    Image.init()
    formats = [name for name in READABLE if name in Image.OPEN]  # AVIF and JPEG 2000 may not be built in
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images (the error at twice the limit stays), of odd metadata
            with Image.open(path, formats=formats) as image:
                _notice(path, image)
                image.load()
                if image.format == "TIFF":
                    _exif_of_tiff(image)
                return normalise(image)
    except Image.UnidentifiedImageError:
        raise ImageFileError(f"{path}: not an image in a known format ({', '.join(formats)})") from None
    except Image.DecompressionBombError as error:
        raise ImageFileError(f"{path}: refused as a possible decompression bomb: {error}") from None
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        raise ImageFileError(f"{path}: cannot be read: {_reason(error)}") from error


def check_input(path: str | os.PathLike[str]) -> None:
    """Raise ImageFileError unless `path` is a file that can be opened for reading."""
    path = Path(path)
    if path.is_dir():
        raise ImageFileError(f"{path}: is a folder, expected an image file")
    if path.exists() and not path.is_file():
        raise ImageFileError(f"{path}: is not a regular file")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ImageFileError(f"{path}: {_reason(error)}") from None


def normalise(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation and convert to one of `SUPPORTED_MODES`.

    Palette images become RGB, or RGBA where the palette has transparency, 1-bit images L, CMYK, YCbCr and HSV
    images RGB, premultiplied alpha straight alpha, and 16-bit gray of either byte order I;16. A CMYK profile is
    dropped, since it does not describe the RGB that comes out.

    Args:
        image: any image of Pillow.

    Returns:
        The image itself where nothing had to be done, else a new one with the same profile and EXIF data.

    Raises:
        ImageFileError: the mode holds no image that can be upscaled (LAB; 32-bit values beyond 16 bits).
    """
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    transparent = image.has_transparency_data
    if mode in SUPPORTED_MODES and not (transparent and mode in ("L", "RGB")):
        return image
    if mode.startswith("I;16") or mode == "I":
        return _to_16_bit(image)
    if mode in ("1", "L", "La"):
        result = image.convert("LA" if transparent else "L")
    elif mode in ("P", "PA", "RGB", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"):
        result = image.convert("RGBA" if transparent else "RGB")
    else:
        raise ImageFileError(f"images of mode {mode} are not supported; expected gray or RGB, with or without alpha")
    if mode == "CMYK":
        result.info.pop("icc_profile", None)
    result.info.pop("transparency", None)  # now the alpha channel
    return result


def check_output(path: str | os.PathLike[str], mode: str | None = None, size: tuple[int, int] | None = None) -> Format:
    """Check before any work that an image can be written to `path`.

    Args:
        path: where the image is to go; the extension names the format.
        mode: Pillow mode of the image, if already known.
        size: (width, height) of the image in pixels, if already known.

    Returns:
        The format.

    Raises:
        ImageFileError: unknown extension, no such folder, no permission, or the format cannot hold the image.
    """
    path = Path(path)
    if path.is_dir():
        raise ImageFileError(f"{path}: is a folder, expected the name of an image file")
    known = ", ".join(FORMATS)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ImageFileError(f"{path}: unknown output format {path.suffix!r}, expected one of {known}")
    if path.exists() and not path.is_file():
        raise ImageFileError(f"{path}: is not a regular file")
    if path.exists() and not os.access(path, os.W_OK):
        raise ImageFileError(f"{path}: no permission to overwrite it")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise ImageFileError(f"{path}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ImageFileError(f"{path}: no permission to write into {folder}")
    if mode is not None and mode not in kind.modes:
        raise ImageFileError(f"{path}: {kind.name} cannot hold {_describe(mode)}; write a .png or .tif file")
    if size is not None and max(size) > kind.max_side:
        raise ImageFileError(
            f"{path}: {kind.name} holds at most {kind.max_side} pixels a side, the output is {size[0]}x{size[1]}"
        )
    return kind


def write_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write an image atomically: `path` is either the complete new file or what it was before.

    Args:
        image: the image; the ICC profile and EXIF data in its `info` are kept where the format stores them,
            else there is a logged notice.
        path: where to write; the extension names the format. An existing file is replaced.

    Raises:
        ImageFileError: see `check_output`; or the disk is full or not writable.
    """
    kind = check_output(path, image.mode, image.size)
    metadata = {key: image.info[key] for key in kind.metadata if image.info.get(key)}
    for key, what in _METADATA.items():
        if image.info.get(key) and key not in kind.metadata:
            logger.warning("%s: the %s is not kept in %s", path, what, kind.name)
    if kind is _JPEG and len(metadata.get("exif", b"")) > _MAX_JPEG_EXIF:
        logger.warning("%s: the EXIF data is too long for JPEG and is left out", path)
        del metadata["exif"]
    try:
        with atomic_file(path) as file:
            image.save(file, format=kind.name, **kind.options, **metadata)
    except (OSError, ValueError, MemoryError) as error:
        raise ImageFileError(f"{path}: cannot be written: {_reason(error)}") from error


def _to_16_bit(image: Image.Image) -> Image.Image:
    """16-bit gray as mode I;16, from either byte order or from the 32-bit mode in which Pillow opens 16-bit PGM."""
    import numpy as np

    pixels = np.asarray(image)
    if image.mode == "I" and pixels.size and (pixels.min() < 0 or pixels.max() > 0xFFFF):
        raise ImageFileError("32-bit gray with values outside 0 to 65535 is not supported")
    result = Image.fromarray(pixels.astype(np.uint16))
    result.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return result


def _notice(path: Path, image: Image.Image) -> None:
    """Log what of the file does not reach the output. Looks at the decoder's plan, so before `load`."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the further frames of an MPO are previews
        logger.warning("%s: only the first of %d frames is used", path, frames)
    if image.mode in ("LA", "RGB", "RGBA") and ";16" in str(getattr(image, "tile", "")):
        logger.warning("%s: 16 bits a channel in colour or with alpha; read as 8 bits", path)
    if image.mode == "CMYK":
        logger.warning("%s: CMYK, converted to RGB without its colour profile", path)
    if image.mode.startswith("I") and "transparency" in image.info:
        logger.warning("%s: 16-bit gray with a transparent value; read as opaque", path)


def _exif_of_tiff(image: Image.Image) -> None:
    """Put into `info` what a TIFF says of the picture; its other tags are of the file and untrue of the output."""
    tags, kept = image.getexif(), Image.Exif()
    for tag in _TIFF_EXIF:
        if tag in tags:
            kept[tag] = tags[tag]
    for folder in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if entries := tags.get_ifd(folder):
            kept[folder] = dict(entries)
    if kept:
        image.info["exif"] = kept.tobytes()


def _describe(mode: str) -> str:
    return {"LA": "an alpha channel", "RGBA": "an alpha channel", "I;16": "16 bits a channel"}.get(mode, f"mode {mode}")


def _reason(error: BaseException) -> str:
    """One line, with the system's words for an OSError instead of its errno and path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
