"""Decoding PNG, JPEG, TIFF and deep AVIF with libvips, whose traps are dealt with here.

WebP, GIF and AVIF of 8 bits are left to Pillow: the first starts threads, see below; of the others libvips makes other
pixels (it blackens what is transparent in a GIF, and interpolates no chroma of an AVIF).

* The loader is named after our own look at the content: libvips would open CSV and SVG as well.
* `fail_on="error"`: else a truncated file is filled up with gray. `revalidate`: else a rewritten file is read stale.
* Rows are fetched through a region, which decodes in the calling thread. Any other way starts libvips's threads, which
  do not exist in a child that is forked later: it would wait for them for ever.
"""

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from liif_fast.images.exif import Window
from liif_fast.images.tiff import Tiff

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOADERS = {"PNG": "pngload", "JPEG": "jpegload", "TIFF": "tiffload", "AVIF": "heifload"}
_FETCHED = 1 << 22  # bytes at a time, about


def library() -> Any:
    """Import pyvips; None where it cannot be (pyvips raises OSError where it finds no libvips)."""
    try:
        import pyvips
    except (ImportError, OSError):
        return None
    logging.getLogger("pyvips").setLevel(logging.ERROR)  # its warnings are for developers; ours say what is lost
    return pyvips


class Decoder:
    """The pixels of a file as libvips gives them, and its metadata.

    Args:
        path: the file.
        kind: Pillow's name of its format.
        tiff: of a TIFF, its tags.

    Attributes:
        size: (width, height), as the file has them.
        channels: 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha).
        dtype: uint8 or uint16.
        notices: what does not reach the pixels.
        whole: why a window of it costs as much memory as all of it; empty where it does not.

    Raises:
        ValueError: libvips cannot read it, or its samples are none that can be upscaled.
    """

    def __init__(self, path: str | os.PathLike[str], kind: str, tiff: Tiff | None = None) -> None:
        self.path, self.kind = os.fsencode(path), kind
        self.image = self._open()
        self.size = (self.image.width, self.image.height)
        self.notices: list[str] = []
        if self.image.format not in ("uchar", "ushort"):
            raise ValueError(f"{self.image.format} samples; supported are whole numbers of 8 or 16 bits")
        self.dtype = np.dtype(np.uint8 if self.image.format == "uchar" else np.uint16)
        self.ink = self.image.interpretation == "cmyk"
        bands = self.image.bands
        colours = tiff.colours if tiff else 4 if self.ink else 1 if bands < 3 else 3
        extra = tiff.extra if tiff else (2,) * (bands - colours)
        alpha = [colours + place for place, meaning in enumerate(extra) if meaning in (1, 2)][:1]
        self.bands = [*range(colours), *alpha]
        if len(extra) > len(alpha):
            self.notices.append(left_out(len(extra) - len(alpha)))
        self.profile = self._field("icc-profile-data")
        self.converted = self.ink and self.profile is not None and self._convertible()
        if self.ink:
            way = "through its colour profile" if self.converted else "without a colour profile"
            self.notices.append(f"CMYK, converted to RGB {way}")
            self.profile = None
        self.channels = (3 if self.ink else colours) + len(alpha)
        self.bits = self._field("bits-per-sample") if kind == "AVIF" else None
        interlaced = self._field("interlaced")
        self.whole = {"PNG": "an interlaced PNG", "JPEG": "a progressive JPEG"}.get(kind, "") if interlaced else ""
        if kind == "AVIF":
            self.whole = "an AVIF"

    @property
    def exif(self) -> bytes | None:
        """EXIF data as the file has it."""
        return self._field("exif-data")

    @property
    def orientation(self) -> int:
        """As EXIF counts; libheif has turned an AVIF already."""
        return self._field("orientation") or 1

    @property
    def dpi(self) -> tuple[float, float] | None:
        """The resolution, if a JPEG says it."""
        return (self.image.xres * 25.4, self.image.yres * 25.4) if self._field("resolution-unit") else None

    @property
    def frames(self) -> int:
        """How many images the file holds."""
        return self._field("n-pages") or 1

    def read(self, window: Window) -> "NDArray":
        """Decode a window of the file in one pass down to its last row: [height, width, channels].

        Raises:
            ValueError: the file is damaged.
        """
        image = self._open()  # a sequential image can be read once
        if not self.ink:
            return self._scaled(_fetch(image, window, self.bands))
        colour = image.extract_band(0, n=4)
        if self.converted:
            depth = 8 * self.dtype.itemsize
            rgb = _fetch(colour.icc_transform("srgb", embedded=True, depth=depth), window, [0, 1, 2])
        else:
            rgb = _without_ink(_fetch(colour, window, [0, 1, 2, 3]))
        alpha = [_fetch(self._open(), window, self.bands[4:])] if len(self.bands) > 4 else []
        return np.concatenate([rgb, *alpha], -1)

    def _open(self) -> Any:
        load = partial(getattr(library().Image, LOADERS[self.kind]), self.path, access="sequential", revalidate=True)
        # libtiff's own limit refuses an image in a single large strip; ours, on the pixels, holds.
        return _told(partial(load, fail_on="error", **({"unlimited": True} if self.kind == "TIFF" else {})))

    def _field(self, name: str) -> Any:
        return self.image.get(name) if self.image.get_typeof(name) else None

    def _convertible(self) -> bool:
        try:
            return _told(lambda: self.image.extract_band(0, n=4).icc_transform("srgb", embedded=True).bands == 3)
        except ValueError:
            return False

    def _scaled(self, pixels: "NDArray") -> "NDArray":
        """Samples of 10 and 12 bits so that their white is white; libvips shifts them up."""
        if self.bits is None or self.bits in (8, 16):
            return pixels
        top = 2**self.bits - 1
        values = (pixels >> (16 - self.bits)).astype(np.uint32)
        return ((values * 65535 + top // 2) // top).astype(np.uint16)


def left_out(count: int) -> str:
    """Say that channels do not reach the pixels."""
    return f"{count} of its channels {'is' if count == 1 else 'are'} neither colour nor alpha; left out"


def _fetch(image: Any, window: Window, bands: list[int]) -> "NDArray":
    top, left, height, width = window
    dtype = np.dtype(np.uint8 if image.format == "uchar" else np.uint16)
    region = library().Region.new(image)
    out = np.empty((height, width, len(bands)), dtype)
    step = max(1, min(height, _FETCHED // (image.width * image.bands * dtype.itemsize)))
    for row in range(0, height, step):
        rows = min(step, height - row)
        data = _told(partial(region.fetch, left, top + row, width, rows))
        pixels = np.frombuffer(data, dtype).reshape(rows, width, image.bands)
        out[row : row + rows] = pixels if len(bands) == image.bands else pixels[..., bands]
    return out


def _without_ink(cmyk: "NDArray") -> "NDArray":
    """RGB as Pillow makes it, of any depth: what ink and black leave of white paper."""
    top = int(np.iinfo(cmyk.dtype).max)
    light = (top - cmyk[..., 3:]).astype(np.uint64)
    return (light - (cmyk[..., :3] * light + top // 2) // top).astype(cmyk.dtype)


def _told(call: Callable[[], Any]) -> Any:
    """What a call to libvips gives; its error in one line: the last, since earlier ones may be of other files."""
    vips = library()
    try:
        return call()
    except vips.Error as error:
        lines = [line.strip() for line in error.detail.splitlines() if line.strip()]
        raise ValueError(lines[-1] if lines else "the file is damaged") from None
