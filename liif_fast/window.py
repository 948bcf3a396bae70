"""A window of an image, a grid or a map, also for modules that do not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

Window: TypeAlias = tuple[int, int, int, int]  # top, left, height, width
Extent: TypeAlias = tuple[float, float, float, float]  # likewise, in fractions of pixels


def crop(pixels: NDArray, window: Window) -> NDArray:
    """Return a window of an array [H, W, ...]."""
    top, left, height, width = window
    return pixels[top : top + height, left : left + width]
