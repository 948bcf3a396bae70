"""Represent a picture in a file: its shape and metadata at once, its pixels or a part of them on demand."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from types import EllipsisType
from typing import TYPE_CHECKING, Any, overload

from PIL import Image

from liif_fast.images.errors import ImageFileError, reason, too_large
from liif_fast.window import TURNS, Turn, Window, crop, turn, turn_back, window_before

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger("liif_fast.images")

DRAWN = "drawn"  # a key in `info` that marks an image with a palette or 1 bit per pixel
PALETTE, ONE_BIT = "a palette", "1 bit per pixel"


class Picture:
    """Represent an image file, upright.

    Args:
        path: the file.
        format: Pillow's name of its format.
        shape: (height, width, channels) in the file; 1 channel is gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
        dtype: uint8 or uint16.
        decode: yields the rows of a window of the file, from top to bottom, as arrays [rows, width, channels].
        info: like a PIL image's: those of `icc_profile`, `exif`, `xmp`, `dpi` and `iptc` that the file has. PNG and
            AVIF add `colour.COLOUR`; an image with a palette or 1 bit per pixel adds `DRAWN`.
        notices: descriptions of what the pixels lose; logged when they are first read.
        orientation: the file's orientation, 1 to 8; other values count as 1.
        whole: name of a kind of file whose windows need as much memory as the whole picture; "" for other kinds.
        frames: number of frames or pages in the file; only the first is read, and the last notice says so.

    Attributes:
        lossy: whether the file was compressed with loss (`sniffing.is_lossy`).

    Raises:
        ImageFileError: the picture has more pixels than twice `Image.MAX_IMAGE_PIXELS`.
    """

    lossy = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: str,
        shape: tuple[int, int, int],
        dtype: np.dtype,
        decode: Callable[[Window], Iterable[NDArray]],
        info: Mapping[Any, Any],
        notices: list[str],
        orientation: int = 1,
        whole: str = "",
        frames: int = 1,
    ) -> None:
        height, width, channels = shape
        if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
            raise too_large(path)
        self.path, self.format, self.dtype, self._decode, self._whole = path, format, dtype, decode, whole
        self.info, self.notices = {key: value for key, value in info.items() if value}, notices
        self.frames = frames
        if frames > 1:
            notices.append(f"only the first of {frames} frames is used")
        self._turn = TURNS.get(orientation, TURNS[1])
        self.shape = (width, height, channels) if self._turn[0] else shape

    @property
    def depth(self) -> int:
        """Return the bits per channel."""
        return 8 * self.dtype.itemsize

    @property
    def size(self) -> tuple[int, int]:
        """Return (width, height)."""
        return self.shape[1], self.shape[0]

    @cached_property
    def pixels(self) -> NDArray:
        """Return all pixels, [height, width, channels]."""
        return self._read((0, 0, *self.shape[:2]))

    def window(self, window: Window) -> NDArray:
        """Read the pixels of a window (top, left, height, width).

        Of a tiled TIFF only the window is decoded. Other files are decoded down to the window's last row.

        Raises:
            ImageFileError: the file cannot be read or is damaged.
        """
        if "pixels" in self.__dict__ or window[2:] == self.shape[:2]:
            return crop(self.pixels, window)
        if self._whole:
            self.notices.append(f"{self._whole} is decoded as a whole even for a part")
            self._whole = ""
        return self._read(window)

    def blocks(self, window: Window | None = None) -> Iterator[NDArray]:
        """Yield the rows of a window (None: all) in the file's orientation, in one pass."""
        while self.notices:
            logger.warning("%s: %s", self.path, self.notices.pop(0))
        height, width = self.shape[1::-1] if self._turn[0] else self.shape[:2]
        window = window or (0, 0, height, width)
        if "pixels" in self.__dict__:  # the file may be gone, for example one from a pipe
            yield crop(turn_back(self.pixels, self._turn), window)
            return
        try:
            yield from self._decode(window)
        except Exception as error:  # on damaged files, decoders raise anything
            raise ImageFileError(f"{self.path}: cannot be read: {reason(error)}") from error

    def _read(self, window: Window) -> NDArray:
        import numpy as np

        stored = window_before(window, self.shape, self._turn)
        pixels, row = np.empty((*stored[2:], self.shape[2]), self.dtype), 0
        for block in self.blocks(stored):
            pixels[row : row + len(block)] = block
            row += len(block)
        return turn(pixels, self._turn)


class Part:
    """Hold a window of a picture that acts as the whole: it has the whole's shape and is indexed like its array."""

    def __init__(self, picture: Picture, window: Window) -> None:
        self.picture, self.shape, self.dtype, self.window = picture, picture.shape, picture.dtype, window
        self.pixels = picture.window(window)

    @overload
    def __getitem__(self, index: tuple[slice, slice]) -> NDArray: ...

    @overload
    def __getitem__(self, index: tuple[EllipsisType, slice]) -> Part: ...

    def __getitem__(self, index: Any) -> NDArray | Part:
        """Return rows and columns of the window, or the same window of some channels."""
        if index[0] is ...:
            part = copy.copy(self)
            part.pixels = self.pixels[index]
            part.shape = (*self.shape[:2], part.pixels.shape[2])
            return part
        (top, left, _, _), (rows, columns) = self.window, index
        return self.pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]

    def turn_back(self, how: Turn) -> Part:
        """Return the part that `how` turns into this one."""
        part = copy.copy(self)
        part.pixels, part.window = turn_back(self.pixels, how), window_before(self.window, self.shape, how)
        part.shape = (*(self.shape[1::-1] if how[0] else self.shape[:2]), self.shape[2])
        return part


def in_memory(pixels: NDArray | Part) -> NDArray:
    """Return an array unchanged, or the pixels that a part holds."""
    return pixels.pixels if isinstance(pixels, Part) else pixels
