"""Read the first page of a TIFF: the layout of its samples and the tags that describe the picture."""

import io
import logging
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import ExifTags, Image

from liif_fast.images.picture import DRAWN, ONE_BIT, PALETTE, Picture
from liif_fast.window import Window, crop

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Tags of the first IFD that describe the picture: document's name, description, make, model, date, artist, host
# computer, copyright, two ratings, and those of Windows: title, comment, author, keywords, subject.
_OF_THE_PICTURE = (
    *(0x010D, 0x010E, 0x010F, 0x0110, 0x0132, 0x013B, 0x013C, 0x8298, 0x4746, 0x4749),
    *range(0x9C9B, 0x9CA0),
)
# Orientation and software describe the file, not the picture; EXIF data has them.
_OF_AN_EXPORT = (0x0112, 0x0131)
_FOLDERS = (int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo))
PACKETS = {"xmp": 700, "iptc": 33723}  # keys of `Picture.info`, and their tags
# The maker's note holds offsets, so it cannot move. Microsoft's tag holds the distance that it has moved.
_BOUND = (0x927C, 0xEA1D)
_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _EXTRA_SAMPLES, _DNG = 274, 282, 283, 296, 338, 50706

_WHITE_IS_ZERO, _GRAY, _RGB, _PALETTE, _SEPARATED = 0, 1, 2, 3, 5  # of the photometric interpretations
_COLOURS = {_WHITE_IS_ZERO: 1, _GRAY: 1, _RGB: 3, _PALETTE: 3, _SEPARATED: 4, 6: 3}  # samples, with YCbCr
_INK_SET, _CMYK = 332, 1
_STRANGE = {4: "a mask", 8: "in CIELAB", 9: "in CIELAB", 10: "in CIELAB", 32844: "in LogL", 32845: "in LogLuv"}
_CFA = (32803, 34892)  # the sensor's mosaic, raw or linear
_UNSIGNED = (1, 4)  # of the sample formats; 4 is undefined
_SIGNS = {2: "signed whole numbers", 3: "floating-point numbers", 5: "complex numbers", 6: "complex numbers"}
_ASSOCIATED, _ALPHA = 1, 2  # of the meanings of extra samples


class Tiff(NamedTuple):
    """Describe the first page of a TIFF.

    Args:
        shape: (height, width, channels) of the picture.
        bands: the decoder's channels to keep: colours, and alpha if there is any.
        apart: whether channels are in separate planes that libvips refuses (tiles) or misreads (gray).
    """

    bits: int
    shape: tuple[int, int, int]
    bands: list[int]
    apart: bool
    orientation: Any
    info: dict[str, Any]
    notices: list[str]
    frames: int


def read_tiff(path: str | os.PathLike[str]) -> Tiff:
    """Read the tags of the first page."""
    import numpy as np
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it raises on damage that matters
    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            order, big, frames = file.byteorder, file.is_bigtiff, len(file.pages)
    except (IndexError, tifffile.TiffFileError) as error:
        raise ValueError("its first page is damaged") from error
    colours, tags = _colours(page), page.tags
    stored = 1 if page.photometric == _PALETTE else colours
    said = np.ravel(tags.valueof(_EXTRA_SAMPLES, default=())).tolist()
    extra = [*said, *[0] * page.samplesperpixel][: page.samplesperpixel - stored]
    # Associated alpha is preferred, because the colours are multiplied by it.
    alpha = [place for kind in (_ASSOCIATED, _ALPHA) for place, meaning in enumerate(extra) if meaning == kind][:1]
    bands = [*range(colours), *(colours + place for place in alpha)]
    notices = []
    if left := len(extra) - len(alpha):
        notices.append(f"{left} of its channels {'is' if left == 1 else 'are'} neither colour nor alpha; dropped")
    apart = page.planarconfig == 2 and (page.is_tiled or colours == 1) and page.samplesperpixel > 1
    if apart and (page.photometric not in (_GRAY, _RGB) or _ASSOCIATED in extra):
        raise ValueError("channels in separate planes; save it with interleaved channels")
    measured = _X_RESOLUTION in tags and _Y_RESOLUTION in tags and tags.valueof(_RESOLUTION_UNIT, default=2) in (2, 3)
    info = {
        "icc_profile": page.iccprofile if isinstance(page.iccprofile, bytes) else None,
        "exif": _exif(path, page.offset, order, big),
        **{key: value for key, tag in PACKETS.items() if isinstance(value := tags.valueof(tag), bytes)},
        "dpi": page.get_resolution("inch") if measured else None,
        DRAWN: PALETTE if page.photometric == _PALETTE else ONE_BIT if page.bitspersample == 1 else None,
    }
    shape = (page.imagelength, page.imagewidth, len(bands))
    return Tiff(page.bitspersample, shape, bands, apart, tags.valueof(_ORIENTATION), info, notices, frames)


def _colours(page: Any) -> int:
    """Return the number of colour channels (a palette has 3); raise ValueError if the page cannot be read correctly."""
    bits, photometric, samples = page.bitspersample, page.photometric, page.samplesperpixel
    if _DNG in page.tags or photometric in _CFA:
        raise ValueError(f"a raw camera file{' (DNG)' if _DNG in page.tags else ''}: develop it to a TIFF first")
    if page.subfiletype & 1:
        raise ValueError("its first image is a preview, as in raw camera files; develop it to a TIFF or PNG")
    sign = page.sampleformat if isinstance(page.sampleformat, int) else None
    if sign not in _UNSIGNED:
        kind = _SIGNS.get(sign or 0, "mixed numbers")
        raise ValueError(f"a TIFF of {bits}-bit {kind}; supported are unsigned whole numbers of 8 or 16 bits")
    if photometric not in _COLOURS:
        raise ValueError(f"a TIFF {_STRANGE.get(photometric, f'of photometric {photometric}')}; save it as gray or RGB")
    if photometric == _SEPARATED and page.tags.valueof(_INK_SET, default=_CMYK) != _CMYK:
        raise ValueError("a TIFF with inks other than CMYK; save it as RGB")
    if photometric == _PALETTE and page.colormap is None:
        raise ValueError("a palette without colours")
    if not isinstance(bits, int) or bits not in ((1, 2, 4, 8, 16) if samples == 1 else (8, 16)):
        raise ValueError(f"a TIFF of {bits} bits per sample; save it with 8 or 16")
    if page.imagedepth > 1:
        raise ValueError("a volume, not an image")
    if not page.imagewidth or not page.imagelength:
        raise ValueError("it has no pixels")
    return _COLOURS[photometric]


def open_planes(path: str | os.PathLike[str], tiff: Tiff) -> Picture:
    """Open a TIFF whose channels are in separate planes."""
    import numpy as np
    import tifffile

    def decode(window: Window) -> "Iterator[NDArray]":
        yield crop(np.moveaxis(tifffile.imread(path, key=0), 0, -1)[..., tiff.bands], window)

    dtype, whole = np.dtype(f"uint{tiff.bits}"), "a TIFF in planes"
    return Picture(
        path, "TIFF", tiff.shape, dtype, decode, tiff.info, tiff.notices, tiff.orientation, whole, tiff.frames
    )


class _NoLargerThanItself(io.FileIO):
    """Limit the bytes read from a file to twice its size, because many tags may share the same bytes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.left = 2 * os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(self.left if size is None or size < 0 else min(size, self.left))
        self.left -= len(data)
        return data


def _exif(path: str | os.PathLike[str], at: int, order: str, big: bool) -> bytes | None:
    """Return an IFD's tags that describe the picture, as EXIF data; its other tags would be wrong for the output."""
    tags, kept = Image.Exif(), Image.Exif()
    tags.endian, tags.bigtiff = order, big
    with suppress(Exception), _NoLargerThanItself(path) as file:  # on damage Pillow raises anything
        tags.load_from_fp(file, at)
        kept.update(_as_bytes(_of_the_picture(tags, _OF_THE_PICTURE)))
        return kept.tobytes() if kept else None
    return None


def _as_bytes(value: Any) -> Any:
    """Convert text beyond ASCII back to bytes, also in nested IFDs, because Pillow would write question marks."""
    if isinstance(value, dict):
        return {tag: _as_bytes(each) for tag, each in value.items()}
    return value.encode("latin-1") if isinstance(value, str) and not value.isascii() else value


def extra_tags(exif: bytes) -> tuple[list[tuple[int, int, int, bytes, bool]], bool]:
    """Return EXIF data about the picture as tifffile's extratags, and whether the exposure or the place is lost."""
    tags, found = [], Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged entries
        with suppress(Exception):  # on damage Pillow raises anything
            found.load(exif)
        said = _of_the_picture(found, (*_OF_THE_PICTURE, *_OF_AN_EXPORT))
    for tag, value in said.items():
        if isinstance(value, str):
            data = value.encode("latin-1") + b"\0"  # inverts Pillow's decoding, whatever the encoding
            tags.append((tag, 2, len(data), data, True))
        elif isinstance(value, bytes):
            tags.append((tag, 1, len(value), value, True))
        elif isinstance(value, int) and 0 <= value < 1 << 16:
            tags.append((tag, 3, 1, struct.pack("<H", value), True))
    return tags, any(folder in said for folder in _FOLDERS)


def _of_the_picture(tags: Image.Exif, names: tuple[int, ...]) -> dict[int, Any]:
    """Return the named tags that exist, and all relocatable tags of the Exif and GPS IFDs."""
    said = {tag: tags[tag] for tag in names if tag in tags}
    for folder in _FOLDERS:
        with suppress(Exception):  # a damaged IFD
            if inner := {tag: value for tag, value in tags.get_ifd(folder).items() if tag not in _BOUND}:
                said[folder] = inner
    return said
