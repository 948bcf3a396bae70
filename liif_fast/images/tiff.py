"""The tags of a TIFF's first page (TIFF 6.0): what its samples are, and what they say of the picture."""

import os
import struct
import warnings
from collections.abc import Mapping
from typing import IO, Any, NamedTuple, cast

from PIL import ExifTags, Image

# Tags of the first folder that are of the picture: document's name, description, make, model, date, artist, host
# computer, copyright, two ratings, and what Windows adds: title, comment, author, keywords, subject.
OF_THE_PICTURE = (
    *(0x010D, 0x010E, 0x010F, 0x0110, 0x0132, 0x013B, 0x013C, 0x8298, 0x4746, 0x4749),
    *range(0x9C9B, 0x9CA0),
)
# Orientation and software: of the file, which the output is not; EXIF data of a picture has them.
_OF_AN_EXPORT = (0x0112, 0x0131)
# The maker's note holds offsets, so it cannot move; Microsoft's tag says by how much it has.
_BOUND = (0x927C, 0xEA1D)
# Photometric interpretation -> samples: white is zero, gray, RGB, palette, CMYK, YCbCr.
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 3, 5: 4, 6: 3}
_STRANGE = {4: "a mask", 8: "in CIELAB", 9: "in CIELAB", 10: "in CIELAB", 32844: "in LogL", 32845: "in LogLuv"}
_CFA = (32803, 34892)  # the sensor's mosaic, and what was made of it


class Tiff(NamedTuple):
    """The first page of a TIFF.

    Args:
        bits: a sample.
        photometric: 0 (white is zero), 1 (gray), 2 (RGB), 3 (palette), 5 (CMYK) or 6 (YCbCr).
        colours: samples a pixel has without the extra ones; of a palette those that it names.
        extra: what the samples beside them are: 0 unspecified, 1 associated alpha, 2 alpha.
        planes: the samples lie apart.
        tiled: in tiles, else in strips.
        orientation: 1 to 8.
        dpi: the resolution, if the file says it.
        exif: EXIF data about the picture, with its header, if there is any.
        profile: the ICC profile, if there is one.
    """

    bits: int
    photometric: int
    colours: int
    extra: tuple[int, ...]
    planes: bool
    tiled: bool
    orientation: int
    dpi: tuple[float, float] | None
    exif: bytes | None
    profile: bytes | None


def read_tiff(path: str | os.PathLike[str]) -> Tiff:
    """Read the tags of the first page.

    Raises:
        ValueError: there is none, or its samples are none that can be read rightly; the message says why.
    """
    with open(path, "rb") as file:
        try:
            tags = _tags(file)
            page = _page(tags)
        except (KeyError, TypeError, IndexError, struct.error, SyntaxError, OSError) as error:
            raise ValueError("its first page is damaged") from error
        return page._replace(exif=_exif(tags))


def _page(tags: Image.Exif) -> Tiff:
    def values(tag: int, default: int) -> tuple[int, ...]:
        found = tags.get(tag, default)
        return tuple(map(int, found)) if isinstance(found, tuple) else (int(found),)

    if 50706 in tags:
        raise ValueError("a raw camera file (DNG): develop it to a TIFF first")
    if values(254, 0)[0] & 1:
        raise ValueError("its first image is a preview, as in raw camera files; develop it to a TIFF or PNG")
    bits, formats, photometric = set(values(258, 1)), set(values(339, 1)), values(262, 1)[0]
    samples = values(277, 1)[0]
    kinds = {2: "signed whole numbers", 3: "floating-point numbers", 5: "complex numbers", 6: "complex numbers"}
    for number, name in kinds.items():
        if number in formats:
            size = f"{max(bits)}-bit " if number != 2 or len(bits) == 1 else ""
            raise ValueError(f"a TIFF of {size}{name}; supported are whole numbers of 8 or 16 bits from 0 (black) up")
    if photometric in _CFA:
        raise ValueError("a raw camera file: develop it to a TIFF first")
    if photometric not in _COLOURS:
        raise ValueError(f"a TIFF {_STRANGE.get(photometric, f'of photometric {photometric}')}; save it as gray or RGB")
    if len(bits) > 1 or min(bits) not in ((1, 2, 4, 8, 16) if samples == 1 else (8, 16)):
        named = ", ".join(map(str, sorted(bits)))
        raise ValueError(f"a TIFF of {named} bits a sample; supported are 8 or 16; save it so")
    if values(32997, 1)[0] > 1:
        raise ValueError("a volume, not an image")
    colours = _COLOURS[photometric]
    stored = 1 if photometric == 3 else colours
    if samples < stored:
        raise ValueError(f"a TIFF of {samples} samples a pixel, where its colours need {stored}")
    extra = (*values(338, 0), *(samples - stored) * (0,))[: samples - stored] if samples > stored else ()
    dpi = None
    if values(296, 2)[0] in (2, 3) and 282 in tags and 283 in tags:
        per_inch = 1 if values(296, 2)[0] == 2 else 2.54
        dpi = cast("tuple[float, float]", tuple(tags[tag] * per_inch for tag in (282, 283)))
    turn, profile = values(274, 1)[0], tags.get(34675)
    return Tiff(
        min(bits), photometric, colours, extra, values(284, 1)[0] == 2, 322 in tags, turn if 1 <= turn <= 8 else 1,
        dpi, None, profile if isinstance(profile, bytes) else None,
    )  # fmt: skip


class _NoLargerThanItself:
    """A file of which no more is read than it has: many tags that share their bytes would make much out of little."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left = file, 2 * file.seek(0, os.SEEK_END)
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(max(0, min(size, self.left)) if size >= 0 else self.left)
        self.left -= len(data)
        return data


def _tags(file: IO[bytes]) -> Image.Exif:
    """The tags of the first folder, and of those folders that EXIF adds."""
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}[head[:2]]
    exif = Image.Exif()
    exif.endian = order
    exif.bigtiff = struct.unpack_from(f"{order}H", head, 2)[0] == 43
    at = struct.unpack_from(f"{order}{'Q' if exif.bigtiff else 'I'}", head, 8 if exif.bigtiff else 4)[0]
    exif.load_from_fp(cast("IO[bytes]", _NoLargerThanItself(file)), at)
    return exif


def _exif(tags: Image.Exif) -> bytes | None:
    """What they say of the picture; the others are of the file and untrue of the output."""
    kept = Image.Exif()
    for tag in OF_THE_PICTURE:
        if tag in tags:
            kept[tag] = tags[tag]
    for folder in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if inner := _movable(tags, folder):
            kept[folder] = inner
    try:
        return kept.tobytes() if len(kept) else None
    except Exception:  # values that contradict their type
        return None


def _movable(tags: Image.Exif, folder: int) -> Mapping[int, Any]:
    try:
        return {tag: value for tag, value in tags.get_ifd(folder).items() if tag not in _BOUND}
    except Exception:  # it is damaged; Pillow raises nearly anything
        return {}


def extra_tags(exif: bytes) -> list[tuple[int, int, int, bytes, bool]]:
    """Give what EXIF data says of the picture as tifffile's extratags; exposure and place have no room there.

    Args:
        exif: with or without the header.
    """
    tags = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged entries
        found = dict(_loaded(exif))
    for tag in (*OF_THE_PICTURE, *_OF_AN_EXPORT):
        value = found.get(tag)
        if isinstance(value, str):
            data = value.encode("utf-8") + b"\0"
            tags.append((tag, 2, len(data), data, True))
        elif isinstance(value, bytes):
            tags.append((tag, 1, len(value), value, True))
        elif isinstance(value, int) and 0 <= value < 1 << 16:
            tags.append((tag, 3, 1, struct.pack("<H", value), True))
    return tags


def outside_tiff(exif: bytes) -> bool:
    """Whether EXIF data has an exposure or a place, which are lost in a TIFF."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _loaded(exif)
        return any(_movable(found, folder) for folder in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo))


def _loaded(exif: bytes) -> Image.Exif:
    found = Image.Exif()
    try:
        found.load(exif)
    except Exception:  # it is damaged; Pillow raises nearly anything
        return Image.Exif()
    return found
