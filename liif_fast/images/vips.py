"""Read PNG, JPEG, TIFF and deep AVIF with libvips and avoid its traps.

Pillow reads WebP, GIF and 8-bit AVIF, because libvips starts threads for WebP (see below), blackens transparent pixels
of a GIF, and does not interpolate the chroma of an AVIF.

* The loader is chosen by our own examination of the content, because libvips would also open CSV and SVG.
* Without `fail_on="error"` a truncated file is padded with gray. Without `revalidate` a rewritten file is read stale.
* Rows are fetched through a region, which decodes in the calling thread. Any other way starts libvips's threads. A
  child process forked later does not have them and would wait for them forever.
"""

import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ImageCms

from liif_fast.images.colour import COLOUR, read_chunks, read_cicp, read_colour
from liif_fast.images.exif import upright
from liif_fast.images.picture import DRAWN, ONE_BIT, PALETTE, Picture
from liif_fast.images.tiff import Tiff
from liif_fast.images.xmp import iptc_of
from liif_fast.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOADERS = {"PNG": "pngload", "JPEG": "jpegload", "TIFF": "tiffload", "AVIF": "heifload"}
_IN_ONE_PIECE = {"PNG": "an interlaced PNG", "JPEG": "a progressive JPEG"}
_FETCHED = 1 << 22  # approximate number of bytes fetched at a time


def library() -> Any:
    """Import pyvips; return None if it is missing or finds no libvips (OSError)."""
    try:
        import pyvips
    except (ImportError, OSError):
        return None
    pyvips.cache_set_max(0)  # because the cache would keep the last images and their rows in memory
    logging.getLogger("pyvips").setLevel(logging.ERROR)  # its warnings are for developers; our notices replace them
    return pyvips


def open_with_vips(path: str | os.PathLike[str], kind: str, tiff: Tiff | None) -> Picture:
    """Read the header of a file; the pixels are read on demand."""
    image = _load(path, kind)
    if image.format not in ("uchar", "ushort"):
        raise ValueError(f"{image.format} samples; supported are whole numbers of 8 or 16 bits")
    if tiff:
        info, notices, turn, bands = {**tiff.info}, [*tiff.notices], tiff.orientation, tiff.bands
        frames = tiff.frames
        if image.bands == 1 and info[DRAWN] == PALETTE:  # a palette of grays
            bands = [0]
    else:
        info, notices, frames = _metadata(path, kind, image)
        turn, bands = _field(image, "orientation") or 1, [*range(image.bands)]
        if turn != 1 and info["exif"]:
            info["exif"] = upright(info["exif"]) or info["exif"]

    convert: list[Callable[[NDArray], NDArray]] = []
    ink, through = image.interpretation == "cmyk", False
    if ink:
        through = _describes_cmyk(info["icc_profile"])
        info["icc_profile"] = None
        notices.append(f"CMYK, converted to RGB {'through its' if through else 'without a'} colour profile")
        bands = [0, 1, 2, *(band - 1 for band in bands[4:])]
        convert += [] if through else [_without_ink]
    if len(bands) > image.bands - ink:
        raise ValueError(f"{image.bands} samples per pixel, but its colours need {len(bands) + ink}")
    if len(bands) < image.bands - ink:
        convert.append(lambda pixels: pixels[..., bands])
    if kind == "AVIF":  # libvips shifts 10 and 12 bits up, so fill the lower bits with the upper ones to keep white
        bits = _field(image, "bits-per-sample")
        convert.append(lambda pixels: pixels | pixels >> bits)

    def decode(window: Window) -> "Iterator[NDArray]":
        image = _load(path, kind)  # anew, because a sequential image can be read only once
        return _fetch(_rgb(image) if through else image, window, convert)

    shape, dtype = (image.height, image.width, len(bands)), _dtype(image)
    whole = kind if kind == "AVIF" else _IN_ONE_PIECE.get(kind, "") if _field(image, "interlaced") else ""
    return Picture(path, kind, shape, dtype, decode, info, notices, turn, whole, frames)


def _field(image: Any, name: str) -> Any:
    return image.get(name) if image.get_typeof(name) else None


def _metadata(path: str | os.PathLike[str], kind: str, image: Any) -> tuple[dict[str, Any], list[str], int]:
    """Return the info, the notices, and the number of frames of a PNG, JPEG or AVIF."""
    chunks = read_chunks(path) if kind == "PNG" else {}
    measured = chunks.get(b"pHYs", b"")[8:] == b"\1" if kind == "PNG" else _field(image, "resolution-unit")
    drawn = PALETTE if _field(image, "palette") else ONE_BIT if _field(image, "bits-per-sample") == 1 else None
    info = {
        "icc_profile": _field(image, "icc-profile-data"),
        "exif": _field(image, "exif-data"),
        "xmp": _field(image, "xmp-data"),
        "iptc": iptc_of(_field(image, "iptc-data")),
        "dpi": (25.4 * image.xres, 25.4 * image.yres) if measured else None,
        COLOUR: read_colour(path) if kind == "PNG" else read_cicp(path) if kind == "AVIF" else None,
        DRAWN: drawn,
    }
    notices = []
    frames = int.from_bytes(chunks.get(b"acTL", b"")[:4], "big") or _field(image, "n-pages") or 1
    if b"iCCP" in chunks and not info["icc_profile"]:
        notices.append("its colour profile is damaged or for another kind of image; dropped")
    return info, notices, 1 if kind == "JPEG" else frames  # further frames of an MPO are previews


def _load(path: str | os.PathLike[str], kind: str) -> Any:
    # libtiff's limit would refuse a single large strip; our limit on pixels still applies.
    options = {"unlimited": True} if kind == "TIFF" else {}
    load = getattr(library().Image, LOADERS[kind])
    return load(os.fsencode(path), access="sequential", revalidate=True, fail_on="error", **options)


def _dtype(image: Any) -> "np.dtype":
    return np.dtype(np.uint8 if image.format == "uchar" else np.uint16)


def _rgb(image: Any) -> Any:
    """Convert CMYK to RGB through its profile; keep further channels."""
    rgb = image.extract_band(0, n=4).icc_transform("srgb", embedded=True, depth=8 * _dtype(image).itemsize)
    return rgb if image.bands == 4 else rgb.bandjoin(image.extract_band(4, n=image.bands - 4))


def _describes_cmyk(profile: bytes | None) -> bool:
    """Return whether this is an intact CMYK profile; without one, libvips would silently use its own."""
    with suppress(OSError, ImportError):  # a damaged or missing profile, or a Pillow without ImageCms
        return ImageCms.ImageCmsProfile(io.BytesIO(profile or b"")).profile.xcolor_space.strip() == "CMYK"
    return False


def _without_ink(pixels: "NDArray") -> "NDArray":
    """Convert CMYK of any depth to RGB as Pillow does, as white minus ink and black; keep further channels."""
    top = int(np.iinfo(pixels.dtype).max)
    light = (top - pixels[..., 3:4]).astype(np.uint64)
    rgb = (light - (pixels[..., :3] * light + top // 2) // top).astype(pixels.dtype)
    return np.concatenate([rgb, pixels[..., 4:]], -1)


def _fetch(image: Any, window: Window, convert: "list[Callable[[NDArray], NDArray]]") -> "Iterator[NDArray]":
    top, left, height, width = window
    region, dtype = library().Region.new(image), _dtype(image)
    step = max(1, _FETCHED // (image.width * image.bands * dtype.itemsize))
    for row in range(top, top + height, step):
        rows = min(step, top + height - row)
        pixels = np.frombuffer(region.fetch(left, row, width, rows), dtype).reshape(rows, width, image.bands)
        for change in convert:
            pixels = change(pixels)
        yield pixels
