"""Read files through Pillow: those that libvips does not read, or all without libvips. Normalise Pillow's images."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from liif_fast.images.colour import COLOUR, read_cicp, read_colour
from liif_fast.images.errors import ImageFileError
from liif_fast.images.exif import upright
from liif_fast.images.picture import DRAWN, ONE_BIT, PALETTE, Picture
from liif_fast.images.tiff import Tiff
from liif_fast.window import crop

# The modes that upscale() accepts; any other is converted to one of these or refused.
SUPPORTED_MODES = ("L", "LA", "RGB", "RGBA", "I;16")
_DRAWN_MODES = {"1": ONE_BIT, "P": PALETTE, "PA": PALETTE}


def open_with_pillow(path: str | os.PathLike[str], kind: str, tiff: Tiff | None = None) -> Picture:
    """Read a file with 8 bits per channel, or with 16-bit gray."""
    import numpy as np

    Image.init()
    try:
        with Image.open(path, formats=[kind]) as image:
            notices = list(_notices(path, image))
            frames = 1 if kind == "JPEG" else getattr(image, "n_frames", 1)  # further frames of an MPO are previews
            image.load()
    except Image.UnidentifiedImageError:
        raise ValueError("the file is damaged") from None
    info: dict[str, Any] = {key: tiff.info.get(key) for key in ("exif", "xmp", "iptc")} if tiff else {}
    if kind == "JPEG":
        info["iptc"] = image.info.get("photoshop", {}).get(0x0404)
    elif kind == "PNG":
        info[COLOUR] = read_colour(path)
    elif kind in ("AVIF", "HEIF"):
        info[COLOUR] = read_cicp(path)
    image = normalise(image)
    pixels = np.asarray(image)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    said = image.info | info
    decode = lambda window: [crop(pixels, window)]  # noqa: E731
    return Picture(path, kind, pixels.shape, pixels.dtype, decode, said, notices, whole=kind, frames=frames)


def normalise(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation and convert to one of `SUPPORTED_MODES`.

    Palette images become RGB, or RGBA if the palette has transparency. 1-bit images become L; CMYK, YCbCr and HSV
    images RGB; premultiplied alpha straight alpha; 16-bit gray of either byte order I;16. A CMYK profile is dropped,
    because it does not describe the resulting RGB.

    Args:
        image: any Pillow image.

    Returns:
        The same image if nothing has to change, else a new one with the same profile and EXIF data.

    Raises:
        ImageFileError: images of this mode cannot be upscaled (LAB; 32-bit values beyond 16 bits).
    """
    before = image.info.get("exif")
    image = ImageOps.exif_transpose(image)
    if before and image.info.get("exif", before) != before:  # undo Pillow's rewrite, because it moves a maker's note
        image.info["exif"] = upright(before) or image.info["exif"]
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
    result.info.pop("transparency", None)  # the alpha channel holds it now
    if mode in _DRAWN_MODES:
        result.info[DRAWN] = _DRAWN_MODES[mode]
    return result


def _to_16_bit(image: Image.Image) -> Image.Image:
    """Convert 16-bit gray of either byte order, or of the 32-bit mode that Pillow uses for PGM, to mode I;16."""
    import numpy as np

    pixels = np.asarray(image)
    if image.mode == "I" and pixels.size and (pixels.min() < 0 or pixels.max() > 0xFFFF):
        raise ImageFileError("32-bit gray with values outside 0 to 65535 is not supported")
    result = Image.fromarray(pixels.astype(np.uint16))
    result.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return result


def _notices(path: str | os.PathLike[str], image: Any) -> Iterator[str]:
    """Yield notices about losses; needs the decoder's plan (`image.tile`), which `load` clears."""
    if image.format == "GIF" and not Path(path).read_bytes().rstrip(b"\0").endswith(b";"):
        yield "it ends without its end mark, so further frames may be lost"
    if image.info.get("bit_depth", 8) > 8 or _shortened(path, image):
        yield "more than 8 bits per channel; read as 8 bits"
    if image.mode == "CMYK":
        yield "CMYK, converted to RGB without its colour profile"


def _shortened(path: str | os.PathLike[str], image: Any) -> bool:
    """Return whether Pillow reduces the samples to 8 bits; raise ValueError for signed samples."""
    if image.format == "PPM" and image.mode == "RGB":
        decoder, _, _, args = image.tile[0]
        return decoder != "raw" and args[-1] > 255  # args are rawmode and the largest value
    if image.format != "JPEG2000":
        return False
    bits = Path(path).read_bytes().partition(b"\xff\x4f\xff\x51")[2][38:39]  # ISO/IEC 15444-1, A.5.1
    if bits and bits[0] & 0x80:
        raise ValueError("signed samples; supported are unsigned ones from 0 (black)")
    return bool(bits) and bits[0] > 7 and not image.mode.startswith("I")
