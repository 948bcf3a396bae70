"""Reading image files: upright, in channels and a depth that can be upscaled, with what is lost said."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

from PIL import Image

from liif_fast.files import STANDARD
from liif_fast.images.colour import read_chunks
from liif_fast.images.errors import ImageFileError, reason, too_large
from liif_fast.images.picture import Picture
from liif_fast.images.pillow import open_with_pillow
from liif_fast.images.sniffing import HEAD, is_lossy, readable
from liif_fast.images.tiff import Tiff, open_planes, read_tiff

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HIGH_BITDEPTH = 0x40  # of the third byte in AVIF's box av1C


def read_image(path: str | os.PathLike[str]) -> Picture:
    """Read a whole image file with all its bits, turned upright; 8 or 16 bits a channel.

    Args:
        path: an image file. Of an animation or a multi-page file the first frame is taken, with a logged notice.

    Raises:
        ImageFileError: as `open_picture`, or the file is damaged.
    """
    picture = open_picture(path)
    picture.pixels  # noqa: B018 - read now
    return picture


def read_rgb(path: str | os.PathLike[str]) -> "NDArray":
    """Read an image file as uint8 RGB [H, W, 3], as training, evaluation and `verify` take it.

    Alpha is left out, gray is given three times, and 16 bits are rounded to the nearest of 8.

    Raises:
        ImageFileError: as `read_image`.
    """
    import numpy as np

    pixels = read_image(path).pixels
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    colour = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1].repeat(3, 2)
    return np.ascontiguousarray(colour)


def open_picture(path: str | os.PathLike[str]) -> Picture:
    """Open an image file; its header is read and checked, its pixels are not where libvips reads them.

    Raises:
        ImageFileError: the file is missing, is no image or of a kind that is not read, has more pixels than twice
            `Image.MAX_IMAGE_PIXELS`, or samples that are not whole numbers of 8 or 16 bits.
    """
    path = Path(path)
    check_input(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images (the error at twice the limit stays), of odd metadata
            picture = _opened(path)
            picture.lossy = is_lossy(path, picture.format)
            return picture
    except ImageFileError:
        raise
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        raise ImageFileError(f"{path}: cannot be read: {reason(error)}") from error


def _opened(path: Path) -> Picture:
    from liif_fast.images import vips  # it needs numpy, which takes longer to load than most mistakes to be found

    kind = readable(path)
    tiff = read_tiff(path) if kind == "TIFF" else None
    if tiff and tiff.apart:
        return open_planes(path, tiff)
    if kind not in vips.LOADERS or (kind == "AVIF" and not _deep(path, kind, tiff)):
        return open_with_pillow(path, kind)
    if vips.library():
        return vips.open_with_vips(path, kind, tiff)
    if what := _deep(path, kind, tiff):
        raise ValueError(f"{what}, which only libvips reads rightly: pip install 'pyvips[binary]'")
    return open_with_pillow(path, kind, tiff)


def _deep(path: Path, kind: str, tiff: Tiff | None) -> str:
    """Name what Pillow would read wrongly or with fewer bits; empty if it reads all."""
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
    return "more than 8 bits a channel" if bits > 8 else ""


@contextmanager
def spooled(stream: IO[bytes], head: bytes = b"") -> Iterator[Path]:
    """Give an image that comes through a pipe as a file, since readers go back and forth; messages call it `-`.

    Args:
        stream: of it all is read, if it begins as an image does.
        head: what has been read of it.

    Raises:
        ImageFileError: it is no image; also in place of one that is raised meanwhile.
    """
    with TemporaryDirectory(prefix="liif-fast-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "input")
        try:
            path.write_bytes(head + stream.read(HEAD - len(head)))
            readable(path)
            with path.open("ab") as file:
                shutil.copyfileobj(stream, file)
            yield path
        except ImageFileError as error:
            raise ImageFileError(str(error).replace(str(path), str(STANDARD))) from None
        except OSError as error:
            raise ImageFileError(f"{STANDARD}: {reason(error)}") from None


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
