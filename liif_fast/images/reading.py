"""Read image files upright, in a layout and depth that can be upscaled, and log what is lost."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from liif_fast.images.colour import read_chunks
from liif_fast.images.errors import ImageFileError, reason, too_large
from liif_fast.images.picture import Picture
from liif_fast.images.pillow import open_with_pillow
from liif_fast.images.sniffing import is_lossy, readable
from liif_fast.images.tiff import Tiff, open_planes, read_tiff

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HIGH_BITDEPTH = 0x40  # a bit of the third byte in AVIF's box av1C


def read_image(path: str | os.PathLike[str]) -> Picture:
    """Read a whole image file upright, with all its bits, 8 or 16 per channel.

    Args:
        path: an image file. For an animation or a multi-page file, only the first frame is read, and a notice is
            logged.

    Raises:
        ImageFileError: as for `open_picture`, or the file is damaged.
    """
    picture = open_picture(path)
    picture.pixels  # noqa: B018 - read now
    return picture


def read_rgb(path: str | os.PathLike[str]) -> "NDArray":
    """Read an image file as uint8 RGB [H, W, 3] for training, evaluation and `verify`; errors as for `read_image`.

    Alpha is dropped, gray becomes three equal channels, and 16 bits are rounded to 8.
    """
    import numpy as np

    pixels = read_image(path).pixels
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    colour = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1].repeat(3, 2)
    return np.ascontiguousarray(colour)


def open_picture(path: str | os.PathLike[str]) -> Picture:
    """Open an image file and check its header; libvips reads the pixels later, Pillow at once.

    Raises:
        ImageFileError: the file is missing, is not an image of a supported format, has more pixels than twice
            `Image.MAX_IMAGE_PIXELS`, or has samples that are not whole numbers of 8 or 16 bits.
    """
    path = Path(path)
    check_input(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images (the error at twice the limit stays) and odd metadata
            picture = _opened(path)
            picture.lossy = is_lossy(path, picture.format)
            return picture
    except ImageFileError:
        raise
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except Exception as error:  # on damaged files, decoders raise anything
        raise ImageFileError(f"{path}: cannot be read: {reason(error)}") from error


def _opened(path: Path) -> Picture:
    from liif_fast.images import vips  # imported here, because it loads numpy, which most errors do not need

    kind = readable(path)
    tiff = read_tiff(path) if kind == "TIFF" else None
    if tiff and tiff.apart:
        return open_planes(path, tiff)
    if kind not in vips.LOADERS or (kind == "AVIF" and not _deep(path, kind, tiff)):
        return open_with_pillow(path, kind)
    if vips.library():
        return vips.open_with_vips(path, kind, tiff)
    if what := _deep(path, kind, tiff):
        raise ValueError(f"{what}, which only libvips reads correctly: pip install 'pyvips[binary]'")
    return open_with_pillow(path, kind, tiff)


def _deep(path: Path, kind: str, tiff: Tiff | None) -> str:
    """Name what Pillow would read wrongly or with fewer bits; return "" if it reads the file right."""
    bits = tiff.bits if tiff else 8
    if kind == "PNG":
        chunks = read_chunks(path)
        bits, colour = chunks.get(b"IHDR", b"").ljust(13, b"\0")[8:10]
        if bits < 8 and colour == 0 and b"tRNS" in chunks:
            return "a transparent value of fewer than 8 bits"
    elif kind == "AVIF":
        with path.open("rb") as file:
            flags = file.read(1 << 16).partition(b"av1C")[2][2:3]
        bits = 10 if flags and flags[0] & _HIGH_BITDEPTH else 8
    return "more than 8 bits per channel" if bits > 8 else ""


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
