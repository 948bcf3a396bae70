"""Windows and turns of images, grids and maps; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

Window: TypeAlias = tuple[int, int, int, int]  # top, left, height, width
Extent: TypeAlias = tuple[float, float, float, float]  # likewise, in fractions of pixels
Turn: TypeAlias = tuple[int, int, int]  # flags: swap rows and columns, then reverse the rows, reverse the columns

# The turn that makes a stored image upright, by its orientation (TIFF 6, section 8). These are all eight turns.
TURNS: dict[int, Turn] = {
    1: (0, 0, 0), 2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0),
}  # fmt: skip


def crop(pixels: NDArray, window: Window) -> NDArray:
    """Return a window of an array [H, W, ...]."""
    top, left, height, width = window
    return pixels[top : top + height, left : left + width]


def union(windows: Sequence[Window]) -> Window:
    """Return the smallest window that holds all of them."""
    top, left = (min(window[axis] for window in windows) for axis in (0, 1))
    bottom, right = (max(window[axis] + window[axis + 2] for window in windows) for axis in (0, 1))
    return top, left, bottom - top, right - left


def turn(pixels: NDArray, how: Turn) -> NDArray:
    """Return a turned view of an array [H, W, ...]."""
    pixels = pixels.swapaxes(0, 1) if how[0] else pixels
    return pixels[:: -1 if how[1] else 1, :: -1 if how[2] else 1]


def turn_back(pixels: NDArray, how: Turn) -> NDArray:
    """Undo `turn`: return the view of an array [H, W, ...] before it."""
    pixels = pixels[:: -1 if how[1] else 1, :: -1 if how[2] else 1]
    return pixels.swapaxes(0, 1) if how[0] else pixels


def window_before(window: Window, shape: tuple[int, ...], how: Turn) -> Window:
    """Return where a window of a turned image of this shape was before the turn."""
    top, left, height, width = window
    top = shape[0] - top - height if how[1] else top
    left = shape[1] - left - width if how[2] else left
    return (left, top, width, height) if how[0] else (top, left, height, width)


def window_after(window: Window, shape: tuple[int, ...], how: Turn) -> Window:
    """Return where a window of an image of this shape is after a turn; the inverse of `window_before`."""
    swap, rows, columns = how
    return window_before(window, shape, (swap, columns, rows) if swap else how)
