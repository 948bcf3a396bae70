"""Reading image files: upright, in a mode that can be upscaled, with what is lost said."""

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageOps

from liif_fast.images import exif
from liif_fast.images.colour import COLOUR, read_colour
from liif_fast.images.errors import ImageFileError, reason, too_large
from liif_fast.images.tiff import read_deep_tiff

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("liif_fast.images")

# Only raster formats that Pillow decodes itself: an .eps, for one, would start Ghostscript.
READABLE = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "TGA", "JPEG2000")

# What upscale() works on; every other mode of Pillow is first converted to one of these, or refused.
SUPPORTED_MODES = ("L", "LA", "RGB", "RGBA", "I;16")

DRAWN = "drawn"  # the key in `info` of an image that had a palette or 1 bit a pixel; the value says which
_DRAWN_MODES = {"1": "1 bit a pixel", "P": "a palette", "PA": "a palette"}

# Pillow has no mode for 16 bits a channel in colour: of each sample it keeps the high byte. Told that the file has the
# other byte order, it keeps the low one, so that two passes read all 16 bits. Gray with alpha is four bytes a pixel.
_FOREIGN = "B" if sys.byteorder == "little" else "L"
_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PLANAR = 254, 258, 284  # tags of TIFF
_DEEP = ("RGB", "RGBA", "RGBX")
_LOW = {f"{mode};16{high}": f"{mode};16{low}" for mode in _DEEP for high, low in (("L", "B"), ("B", "L"))}
_LOW |= {f"{mode};16N": f"{mode};16{_FOREIGN}" for mode in _DEEP}
_GRAY_ALPHA = "LA;16B"


class Picture(NamedTuple):
    """The pixels of a file, upright.

    Args:
        pixels: [H, W, C] of uint8 or uint16; C is 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha).
        info: as of a PIL image: `icc_profile`, `exif`, `dpi`, where the file has them; of a PNG
            also `colour.COLOUR`; of an image with a palette or 1 bit a pixel `DRAWN`.
        format: Pillow's name of the file's format.
    """

    pixels: "NDArray"
    info: Mapping[Any, Any]
    format: str

    @property
    def depth(self) -> int:
        """Bits a channel."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]


def read_image(path: str | os.PathLike[str]) -> Picture:
    """Read a whole image file with all its bits, turned upright; 8 or 16 bits a channel.

    Args:
        path: an image file. Of an animation or a multi-page file the first frame is taken, with a logged notice.

    Raises:
        ImageFileError: as `open_image`.
    """
    import numpy as np

    if Path(path).suffix.lower() in (".tif", ".tiff") and (deep := _deep_tiff(path)) is not None:
        return deep
    image, kind, rawmodes = _open(path, "")
    if rawmodes == {_GRAY_ALPHA}:
        pixels = np.asarray(_open(path, "RGBA")[0]).view(">u2").astype(np.uint16)
    elif rawmodes and rawmodes <= set(_LOW):
        pixels = np.asarray(image).astype(np.uint16)
        pixels <<= 8
        pixels |= np.asarray(_open(path, "low")[0])
    else:
        pixels = np.asarray(image)
    return Picture(pixels.reshape(*pixels.shape[:2], -1), image.info, kind)


def _deep_tiff(path: str | os.PathLike[str]) -> Picture | None:
    """A 16-bit TIFF that Pillow cannot read or reads wrongly."""
    check_input(path)
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            bits = image.tag_v2.get(_BITS_PER_SAMPLE, ())
            if not (16 in bits and len(bits) > 1 and image.tag_v2.get(_PLANAR) == 2):
                return None
    except Exception:  # left to `_open`, which says why, if it is not a file for tifffile
        pass
    try:
        found = read_deep_tiff(path)
    except ImageFileError:
        raise
    except Exception as error:
        raise ImageFileError(f"{path}: cannot be read: {reason(error)}") from error
    return None if found is None else Picture(*found, "TIFF")


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a whole image file, turned upright and in one of `SUPPORTED_MODES`.

    Args:
        path: an image file. Of an animation or a multi-page file the first frame is taken, with a logged notice; of
            16 bits a channel in colour 8 are kept (`read_image` keeps all), with a notice.

    Returns:
        The image, its pixels loaded; `info` holds the ICC profile and EXIF data if there are any.

    Raises:
        ImageFileError: the file is missing, is no image, is truncated, is a decompression bomb
            (Pillow's limit, twice `Image.MAX_IMAGE_PIXELS`), or has a mode that cannot be upscaled.
    """
    image, _, rawmodes = _open(path, "")
    if any(rawmode in _LOW or rawmode == _GRAY_ALPHA for rawmode in rawmodes):
        logger.warning("%s: 16 bits a channel in colour or with alpha; read as 8 bits", path)
    return image


def _open(path: str | os.PathLike[str], reread: str) -> tuple[Image.Image, str, set[str]]:
    """An image, its format and the raw modes it is decoded from.

    Args:
        path: the file.
        reread: of an image that was opened before: "low" for the low bytes of its samples, else a raw mode.
    """
    path = Path(path)
    check_input(path)
    Image.init()
    formats = [name for name in READABLE if name in Image.OPEN]  # AVIF and JPEG 2000 may not be built in
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images (the error at twice the limit stays), of odd metadata
            with Image.open(path, formats=formats) as image:
                rawmodes = {_rawmode(tile) for tile in getattr(image, "tile", ())}
                if image.format == "TIFF" and image.tag_v2.get(_SUBFILE_TYPE, 0) & 1:
                    raise ValueError(
                        "its first image is a preview, as in raw camera files; develop it to a TIFF or PNG"
                    )
                if reread:
                    image.tile = [_with_rawmode(tile, _LOW.get(_rawmode(tile), reread)) for tile in image.tile]
                else:
                    _notice(path, image, rawmodes)
                image.load()
                if image.format == "TIFF":
                    with path.open("rb") as file:
                        if kept := exif.of_tiff(file):
                            image.info["exif"] = kept
                if image.format == "PNG":
                    image.info[COLOUR] = read_colour(path)
                return normalise(image), image.format or "", rawmodes
    except Image.UnidentifiedImageError:
        if path.stat().st_size == 0:  # as a copy or download leaves it that did not happen
            raise ImageFileError(f"{path}: is empty") from None
        raise ImageFileError(f"{path}: not an image in a known format ({', '.join(formats)})") from None
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        raise ImageFileError(f"{path}: cannot be read: {reason(error)}") from error


def _rawmode(tile: Any) -> str:
    """What a tile of Pillow's plan is decoded from: its argument or the first of its arguments."""
    args = tile[3]
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _with_rawmode(tile: Any, rawmode: str) -> Any:
    codec, extents, offset, args = tile
    args = (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode
    # Before Pillow 11 a tile is a plain tuple.
    return tile._replace(args=args) if hasattr(tile, "_replace") else (codec, extents, offset, args)


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
        raise ImageFileError(f"{path}: {reason(error)}") from None


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
    before = image.info.get("exif")
    image = ImageOps.exif_transpose(image)
    if before and image.info.get("exif", before) != before:  # Pillow has written it anew, which moves a maker's note
        image.info["exif"] = exif.upright(before) or image.info["exif"]
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
    if mode in _DRAWN_MODES:
        result.info[DRAWN] = _DRAWN_MODES[mode]
    return result


def _to_16_bit(image: Image.Image) -> Image.Image:
    """16-bit gray as mode I;16, from either byte order or from the 32-bit mode in which Pillow opens 16-bit PGM."""
    import numpy as np

    pixels = np.asarray(image)
    if image.mode == "I" and pixels.size and (pixels.min() < 0 or pixels.max() > 0xFFFF):
        raise ImageFileError("32-bit gray with values outside 0 to 65535 is not supported")
    result = Image.fromarray(pixels.astype(np.uint16))
    result.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return result


def _notice(path: Path, image: Image.Image, rawmodes: set[str]) -> None:
    """Log what of the file does not reach the output. Looks at the decoder's plan, so before `load`."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the further frames of an MPO are previews
        logger.warning("%s: only the first of %d frames is used", path, frames)
    deep = [mode for mode in rawmodes if ";16" in mode and image.mode in ("LA", "RGB", "RGBA")]
    if any(mode not in _LOW and mode != _GRAY_ALPHA for mode in deep) or _deep_ppm(image):
        logger.warning("%s: 16 bits a channel in colour or with alpha; read as 8 bits", path)
    if image.mode == "CMYK":
        logger.warning("%s: CMYK, converted to RGB without its colour profile", path)
    if "transparency" in image.info and (image.mode.startswith("I") or deep):
        logger.warning("%s: 16 bits a channel with a transparent value; read as opaque", path)
        if deep:
            del image.info["transparency"]


def _deep_ppm(image: Any) -> bool:
    if image.format != "PPM" or image.mode != "RGB":
        return False
    args = image.tile[0][3]  # rawmode and largest value
    return isinstance(args, tuple) and isinstance(args[-1], int) and args[-1] > 255
