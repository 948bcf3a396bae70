"""A picture in a file: its shape and metadata now, its pixels or a part of them when they are asked for."""

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

DRAWN = "drawn"  # the key in `info` of an image that had a palette or 1 bit a pixel; the value says which
PALETTE, ONE_BIT = "a palette", "1 bit a pixel"


class Picture:
    """An image file, upright.

    Args:
        path: the file.
        format: Pillow's name of its format.
        shape: (height, width, channels) in the file; 1 channel is gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
        dtype: uint8 or uint16.
        decode: yields the rows of a window of the file, from top to bottom, as arrays [rows, width, channels].
        info: as of a PIL image: `icc_profile`, `exif`, `dpi`, where the file has them; of PNG and AVIF also
            `colour.COLOUR`; of an image with a palette or 1 bit a pixel `DRAWN`.
        notices: what does not reach the pixels; logged when these are first read.
        orientation: of the file, 1 to 8; others are taken as 1.
        whole: why a window costs as much memory as all of it; empty where it does not.

    Attributes:
        lossy: whether the file was compressed with loss (`sniffing.is_lossy`).

    Raises:
        ImageFileError: it has more pixels than twice `Image.MAX_IMAGE_PIXELS`.
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
    ) -> None:
        height, width, channels = shape
        if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
            raise too_large(path)
        self.path, self.format, self.dtype, self._decode, self._whole = path, format, dtype, decode, whole
        self.info, self.notices = {key: value for key, value in info.items() if value}, notices
        self._turn = TURNS.get(orientation, TURNS[1])
        self.shape = (width, height, channels) if self._turn[0] else shape

    @property
    def depth(self) -> int:
        """Bits a channel."""
        return 8 * self.dtype.itemsize

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.shape[1], self.shape[0]

    @cached_property
    def pixels(self) -> NDArray:
        """All pixels, [height, width, channels]."""
        return self._read((0, 0, *self.shape[:2]))

    def window(self, window: Window) -> NDArray:
        """Read only these pixels: (top, left, height, width); errors as of `pixels`.

        A tiled TIFF is read at these places alone; other files in one pass down to the window's last row.
        """
        if "pixels" in self.__dict__ or window[2:] == self.shape[:2]:
            return crop(self.pixels, window)
        if self._whole:
            self.notices.append(f"{self._whole} is decoded as a whole, whatever part of it is wanted")
            self._whole = ""
        return self._read(window)

    def blocks(self, window: Window | None = None) -> Iterator[NDArray]:
        """Yield the rows of a window as they lie in the file, not upright; of None all of them, in one pass."""
        while self.notices:
            logger.warning("%s: %s", self.path, self.notices.pop(0))
        height, width = self.shape[1::-1] if self._turn[0] else self.shape[:2]
        try:
            yield from self._decode(window or (0, 0, height, width))
        except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
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
    """A window of a picture that stands for the whole: it has its shape, and is indexed as an array of it would be."""

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
        """Return the part of which the turn would make this one."""
        part = copy.copy(self)
        part.pixels, part.window = turn_back(self.pixels, how), window_before(self.window, self.shape, how)
        part.shape = (*(self.shape[1::-1] if how[0] else self.shape[:2]), self.shape[2])
        return part


def in_memory(pixels: NDArray | Part) -> NDArray:
    """Return an array, or those pixels of a part that it has."""
    return pixels.pixels if isinstance(pixels, Part) else pixels
