"""Which of Pillow's modes can be upscaled, and how the others become one of these."""

from PIL import Image, ImageOps

from liif_fast.images import exif
from liif_fast.images.errors import ImageFileError

# What upscale() works on; every other mode of Pillow is first converted to one of these, or refused.
SUPPORTED_MODES = ("L", "LA", "RGB", "RGBA", "I;16")

DRAWN = "drawn"  # the key in `info` of an image that had a palette or 1 bit a pixel; the value says which
PALETTE, ONE_BIT = "a palette", "1 bit a pixel"
_DRAWN_MODES = {"1": ONE_BIT, "P": PALETTE, "PA": PALETTE}


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
