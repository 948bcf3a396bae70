"""Reading image files: upright, in channels and a depth that can be upscaled, with what is lost said."""

import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from PIL import Image

from liif_fast.images import exif
from liif_fast.images.colour import COLOUR, read_chunks, read_cicp, read_colour
from liif_fast.images.errors import ImageFileError, reason, too_large
from liif_fast.images.exif import Window
from liif_fast.images.modes import DRAWN, ONE_BIT, PALETTE, normalise
from liif_fast.images.sniffing import HEIC, JXL, UNKNOWN, Kind, sniff
from liif_fast.images.tiff import Tiff, read_tiff

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger("liif_fast.images")

# Only raster formats: libvips or Ghostscript would draw others.
READABLE = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "TGA", "JPEG2000")
_PLUGINS = {HEIC.name: "pillow_heif", JXL.name: "pillow_jxl"}
_HIGH_BITDEPTH = 0x40  # of the third byte in AVIF's box av1C
_BAND_BYTES = 1 << 26
_PALETTE_PNG, _PALETTE_TIFF = 3, 3
_UNIT_METRE, _METRES_PER_INCH = 1, 0.0254


class Picture:
    """An image file, upright: its shape and metadata now, its pixels when they are asked for.

    Args:
        shape: (height, width, channels); 1 channel is gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
        dtype: uint8 or uint16.
        info: as of a PIL image: `icc_profile`, `exif`, `dpi`, where the file has them; of PNG and AVIF also
            `colour.COLOUR`; of an image with a palette or 1 bit a pixel `modes.DRAWN`.
        format: Pillow's name of the file's format.
        read: gives the pixels [height, width, channels] of a window (top, left, height, width).
        notices: what does not reach the pixels; logged when these are read.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: "np.dtype",
        info: Mapping[Any, Any],
        format: str,
        read: "Callable[[Window], NDArray]",
        notices: Sequence[str] = (),
    ) -> None:
        self.shape, self.dtype, self.info, self.format = shape, dtype, info, format
        self._decode, self.notices = read, notices

    @property
    def depth(self) -> int:
        """Bits a channel."""
        return 8 * self.dtype.itemsize

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.shape[1], self.shape[0]

    @cached_property
    def pixels(self) -> "NDArray":
        """All pixels, [height, width, channels]."""
        return self._read((0, 0, *self.shape[:2]))

    def _read(self, window: Window) -> "NDArray":
        for notice in self.notices:
            logger.warning("%s", notice)
        return self._decode(window)

    def window(self, window: Window) -> "NDArray":
        """Read only these pixels: (top, left, height, width).

        A tiled TIFF is read at these places alone; other files in one pass down to the window's last row.

        Raises:
            ImageFileError: the file is damaged.
        """
        top, left, height, width = window
        if "pixels" in self.__dict__ or (height, width) == self.shape[:2]:
            return self.pixels[top : top + height, left : left + width]
        return self._read(window)


class Part:
    """A window of a picture that stands for the whole: it has its shape, and is indexed by its rows and columns.

    Args:
        picture: the picture.
        window: the rows and columns that will be asked for, (top, left, height, width).
    """

    def __init__(self, picture: Picture, window: Window) -> None:
        self.picture, self.shape, self.dtype, self.window = picture, picture.shape, picture.dtype, window
        self.pixels = picture.window(window)

    def __getitem__(self, index: tuple[slice, slice]) -> "NDArray":
        (top, left, _, _), (rows, columns) = self.window, index
        return self.pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]

    def first_channel(self) -> "Part":
        """Return the same window of the first channel alone."""
        part = copy.copy(self)
        part.shape, part.pixels = (*self.shape[:2], 1), self.pixels[..., :1]
        return part

    def bands(self) -> "Iterator[NDArray]":
        """Yield the window, then the whole picture in bands of rows; all but tiled TIFFs are read once a band."""
        yield self.pixels
        height, width, channels = self.picture.shape
        rows = max(1, _BAND_BYTES // (width * channels * self.dtype.itemsize))
        for top in range(0, height, rows):
            yield self.picture.window((top, 0, min(rows, height - top), width))


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
    """Open an image file; its header is read and checked, its pixels are not.

    Raises:
        ImageFileError: the file is missing, is no image or of a kind that is not read, has more pixels than twice
            `Image.MAX_IMAGE_PIXELS`, or samples that are not whole numbers of 8 or 16 bits.
    """
    path = Path(path)
    check_input(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images (the error at twice the limit stays), of odd metadata
        return _opened(path)


def _opened(path: Path) -> Picture:
    from liif_fast.images import vips  # it needs numpy, which takes longer to load than most mistakes to be found

    try:
        kind = sniff(path)
        if kind.name not in (*READABLE, *_PLUGINS) and kind is not UNKNOWN:
            _refuse(path, kind)
        tiff = read_tiff(path) if kind.name == "TIFF" else None
        deep = _deep(path, kind, tiff)
        if kind.name not in vips.LOADERS or (kind.name == "AVIF" and not deep):
            return _with_pillow(path, kind)
        if vips.library() is None:
            if deep:
                raise ValueError(f"{deep}, which only libvips reads rightly: pip install 'pyvips[binary]'")
            return _with_pillow(path, kind, tiff)
        if tiff and tiff.planes and (tiff.tiled or tiff.colours == 1):
            return _of_planes(path, tiff)
        return _with_vips(path, kind, tiff)
    except ImageFileError:
        raise
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        raise ImageFileError(f"{path}: cannot be read: {reason(error)}") from error


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


def endings() -> set[str]:
    """Give the endings of image files that can be read here, each with its dot and in small letters."""
    Image.init()
    known = {ending for ending, name in Image.EXTENSION.items() if name in READABLE}
    for kind, its in ((HEIC, (".heic", ".heif", ".hif")), (JXL, (".jxl",))):
        known |= set(its) if _registered(kind.name) else set()
    return known


def describe(path: str | os.PathLike[str]) -> str:
    """Name the kind of a file that is not read, or is not looked for under its name, as a noun with its article."""
    try:
        kind = sniff(path)
    except OSError:
        return "a file that cannot be read"
    if kind.name in _PLUGINS:
        return f"{kind.advice}"
    return f"{kind.name} under another ending" if kind.name in READABLE else kind.name


def _refuse(path: Path, kind: Kind) -> NoReturn:
    if kind is not UNKNOWN and kind.name != "a text file":
        raise ImageFileError(f"{path}: is {kind.name}{': ' if kind.advice else ''}{kind.advice}")
    if path.stat().st_size == 0:  # as a copy or download leaves it that did not happen
        raise ImageFileError(f"{path}: is empty")
    raise ImageFileError(f"{path}: not an image in a known format ({', '.join(READABLE)})")


def _drawn(path: Path, tiff: Tiff | None) -> str:
    """Name what photographs do not have, a palette or 1 bit a pixel; empty where there is neither."""
    if tiff:
        return PALETTE if tiff.photometric == _PALETTE_TIFF else ONE_BIT if tiff.bits == 1 else ""
    with path.open("rb") as file:
        depth, colour = file.read(26)[24:]
    return PALETTE if colour == _PALETTE_PNG else ONE_BIT if depth == 1 else ""


def _deep(path: Path, kind: Kind, tiff: Tiff | None) -> str:
    """What of a file Pillow would read wrongly or with fewer bits; empty where there is nothing."""
    if kind.name == "PNG":
        with path.open("rb") as file:
            header = file.read(29)
        depth, colour = (header[24], header[25]) if len(header) == 29 else (8, 0)
        if depth < 8 and colour == 0 and b"tRNS" in read_chunks(path):
            return "a transparent value of fewer than 8 bits"
        return "16 bits a channel" if depth == 16 else ""
    if tiff and tiff.bits == 16:
        return "16 bits a channel"
    if kind.name == "AVIF":
        with path.open("rb") as file:
            head = file.read(1 << 16)
        flags = head[head.find(b"av1C") + 4 :][2:3] if b"av1C" in head else b""
        return "more than 8 bits a channel" if flags and flags[0] & _HIGH_BITDEPTH else ""
    return ""


def _with_vips(path: Path, kind: Kind, tiff: Tiff | None) -> Picture:
    from liif_fast.images import vips

    decoder = vips.Decoder(path, kind.name, tiff)
    width, height = decoder.size
    _check_size(path, width, height)
    info: dict[Any, Any] = {"icc_profile": decoder.profile, "exif": decoder.exif, "dpi": decoder.dpi}
    frames = decoder.frames
    if kind.name == "PNG":
        chunks = read_chunks(path)
        info[COLOUR] = read_colour(path)
        info["dpi"] = _dpi_of(chunks.get(b"pHYs", b""))
        frames = int.from_bytes(chunks.get(b"acTL", b"\0\0\0\1")[:4], "big")
    elif kind.name == "AVIF":
        info[COLOUR] = read_cicp(path)
    if tiff:
        info["exif"], info["dpi"], turn = tiff.exif, tiff.dpi, tiff.orientation
    else:
        turn = decoder.orientation
        if turn != 1 and info["exif"]:
            info["exif"] = exif.upright(info["exif"]) or info["exif"]
    if tiff or kind.name == "PNG":
        info[DRAWN] = _drawn(path, tiff)
    notices = decoder.notices
    if frames > 1 and kind.name != "JPEG":  # the further frames of an MPO are previews
        notices.append(f"only the first of {frames} frames is used")
    if kind.name == "PNG" and b"iCCP" in chunks and not decoder.profile:
        notices.append("its colour profile is damaged, or for another kind of image; left out")

    def read(window: Window) -> "NDArray":
        if decoder.whole and window[2:] != shape[:2]:
            logger.warning("%s: %s is decoded as a whole, whatever part of it is wanted", path, decoder.whole)
        try:
            return exif.turned(decoder.read(exif.before(window, turn, decoder.size)), turn)
        except ValueError as error:
            raise ImageFileError(f"{path}: cannot be read: {reason(error)}") from error

    rows, columns = (width, height) if turn > 4 else (height, width)
    shape = (rows, columns, decoder.channels)
    kept = {key: value for key, value in info.items() if value}
    return Picture(shape, decoder.dtype, kept, kind.name, read, [f"{path}: {notice}" for notice in notices])


def _check_size(path: Path, width: int, height: int) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise too_large(path)


def _dpi_of(chunk: bytes) -> tuple[float, float] | None:
    if len(chunk) != 9 or chunk[8] != _UNIT_METRE:
        return None
    across, down = (int.from_bytes(chunk[at : at + 4], "big") * _METRES_PER_INCH for at in (0, 4))
    return across, down


def _whole(pixels: "NDArray", info: Mapping[Any, Any], kind: str, notices: Sequence[str] = ()) -> Picture:
    """A picture that is in memory already."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)

    def read(window: Window) -> "NDArray":
        top, left, height, width = window
        return pixels[top : top + height, left : left + width]

    height, width, channels = pixels.shape
    return Picture((height, width, channels), pixels.dtype, info, kind, read, notices)


def _of_planes(path: Path, tiff: Tiff) -> Picture:
    """Read a TIFF whose channels lie apart: in tiles, which libvips refuses, or gray ones, which it mixes up."""
    import numpy as np
    import tifffile

    from liif_fast.images import vips

    alpha = [place for place, meaning in enumerate(tiff.extra, tiff.colours) if meaning == 2][:1]
    if tiff.photometric not in (1, 2) or 1 in tiff.extra:
        raise ValueError("channels in planes of their own; save it with the channels of a pixel together")
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        _check_size(path, page.imagewidth, page.imagelength)
        pixels = np.moveaxis(page.asarray(), 0, -1)
    pixels = np.ascontiguousarray(exif.turned(pixels[..., [*range(tiff.colours), *alpha]], tiff.orientation))
    notices = [f"{path}: {vips.left_out(len(tiff.extra) - len(alpha))}"] if len(tiff.extra) > len(alpha) else []
    info = {"icc_profile": tiff.profile, "exif": tiff.exif, "dpi": tiff.dpi}
    return _whole(pixels, {key: value for key, value in info.items() if value}, "TIFF", notices)


def _with_pillow(path: Path, kind: Kind, tiff: Tiff | None = None) -> Picture:
    """A file that libvips does not read, or any of 8 bits a channel where it is not there."""
    import numpy as np

    Image.init()
    name = "TGA" if kind is UNKNOWN else kind.name  # the one format that does not begin with a mark
    if name in _PLUGINS and not _registered(name):
        raise ImageFileError(f"{path}: is {kind.advice}")
    try:
        with Image.open(path, formats=[name]) as image:
            notices = [f"{path}: {notice}" for notice in _notices(path, image)]
            image.load()
            if tiff:
                image.info.pop("exif", None)
                image.info |= {"exif": tiff.exif} if tiff.exif else {}
            if name == "PNG":
                image.info[COLOUR] = read_colour(path)
            elif name in ("AVIF", HEIC.name):
                image.info[COLOUR] = read_cicp(path)
            upright = normalise(image)
            return _whole(np.asarray(upright), upright.info, name, notices)
    except Image.UnidentifiedImageError:
        if kind is UNKNOWN:
            _refuse(path, kind)
        raise ValueError("the file is damaged") from None


def _registered(name: str) -> bool:
    """Whether the optional plugin for a format is installed; it is, for Pillow, from here on."""
    try:
        if name == HEIC.name:
            import pillow_heif

            pillow_heif.register_heif_opener()
        else:
            import pillow_jxl  # noqa: F401 - it registers itself
    except ImportError:
        return False
    return True


def _notices(path: Path, image: Image.Image) -> Iterator[str]:
    """Say what of the file does not reach the output. Looks at the decoder's plan, so before `load`."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the further frames of an MPO are previews
        yield f"only the first of {frames} frames is used"
    if image.info.get("bit_depth", 8) > 8 or _deep_ppm(image) or _deep_jpeg2000(path, image):
        yield "more than 8 bits a channel; read as 8 bits"
    if image.mode == "CMYK":
        yield "CMYK, converted to RGB without its colour profile"


def _deep_ppm(image: Any) -> bool:
    if image.format != "PPM" or image.mode != "RGB":
        return False
    args = image.tile[0][3]  # rawmode and largest value
    return isinstance(args, tuple) and isinstance(args[-1], int) and args[-1] > 255


def _deep_jpeg2000(path: Path, image: Image.Image) -> bool:
    """Whether Pillow keeps 8 bits of more (ISO/IEC 15444-1, A.5.1); signed samples raise ValueError."""
    if image.format != "JPEG2000":
        return False
    data = path.read_bytes()
    size = data.find(b"\xff\x4f\xff\x51")
    bits = data[size + 42 : size + 43] if size >= 0 else b""
    if bits and bits[0] & 0x80:
        raise ValueError("signed samples; supported are those from 0 (black) up")
    return bool(bits) and (bits[0] & 0x7F) + 1 > 8 and not image.mode.startswith("I")
