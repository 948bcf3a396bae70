"""A picture in a file: its shape and metadata now, its pixels or a part of them when they are asked for."""

import copy
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image

from liif_fast.images.errors import ImageFileError, reason, too_large

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger("liif_fast.images")

DRAWN = "drawn"  # the key in `info` of an image that had a palette or 1 bit a pixel; the value says which
PALETTE, ONE_BIT = "a palette", "1 bit a pixel"
Window: TypeAlias = tuple[int, int, int, int]  # top, left, height, width

# orientation (TIFF 6, section 8) -> rows and columns are swapped; then rows are turned over, columns are
_TURNS = {
    1: (0, 0, 0), 2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0),
}  # fmt: skip
_BAND_BYTES = 1 << 26


class Picture:
    """An image file, upright.

    Args:
        path: the file.
        format: Pillow's name of its format.
        shape: (height, width, channels) in the file; 1 channel is gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
        dtype: uint8 or uint16.
        decode: returns the pixels [height, width, channels] of a window of the file.
        info: as of a PIL image: `icc_profile`, `exif`, `dpi`, where the file has them; of PNG and AVIF also
            `colour.COLOUR`; of an image with a palette or 1 bit a pixel `DRAWN`.
        notices: what does not reach the pixels; logged when these are first read.
        orientation: of the file, 1 to 8; others are taken as 1.
        whole: why a window costs as much memory as all of it; empty where it does not.

    Raises:
        ImageFileError: it has more pixels than twice `Image.MAX_IMAGE_PIXELS`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: str,
        shape: tuple[int, int, int],
        dtype: "np.dtype",
        decode: "Callable[[Window], NDArray]",
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
        self._turn = _TURNS.get(orientation, _TURNS[1])
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
    def pixels(self) -> "NDArray":
        """All pixels, [height, width, channels].

        Raises:
            ImageFileError: the file is damaged.
        """
        return self._read((0, 0, *self.shape[:2]))

    def window(self, window: Window) -> "NDArray":
        """Read only these pixels: (top, left, height, width); errors as of `pixels`.

        A tiled TIFF is read at these places alone; other files in one pass down to the window's last row.
        """
        if "pixels" in self.__dict__ or window[2:] == self.shape[:2]:
            return crop(self.pixels, window)
        if self._whole:
            self.notices.append(f"{self._whole} is decoded as a whole, whatever part of it is wanted")
            self._whole = ""
        return self._read(window)

    def _read(self, window: Window) -> "NDArray":
        while self.notices:
            logger.warning("%s: %s", self.path, self.notices.pop(0))
        (top, left, height, width), (swap, flip_rows, flip_columns) = window, self._turn
        top = self.shape[0] - top - height if flip_rows else top
        left = self.shape[1] - left - width if flip_columns else left
        try:
            pixels = self._decode((left, top, width, height) if swap else (top, left, height, width))
        except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
            raise ImageFileError(f"{self.path}: cannot be read: {reason(error)}") from error
        pixels = pixels.swapaxes(0, 1) if swap else pixels
        return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


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


def crop(pixels: "NDArray", window: Window) -> "NDArray":
    """Return a window (top, left, height, width) of an array [H, W, ...]."""
    top, left, height, width = window
    return pixels[top : top + height, left : left + width]
