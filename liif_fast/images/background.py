"""Compose alpha over a colour, for formats without alpha."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING

from PIL import ImageColor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


def parse_colour(colour: str | Sequence[int]) -> Colour:
    """Parse a colour in Pillow's notation (`white`, `#fff`, `rgb(0, 80, 100)`) or as three numbers from 0 to 255.

    Raises:
        ValueError: it is not a colour, or not opaque.
    """
    try:
        values = ImageColor.getrgb(colour) if isinstance(colour, str) else tuple(map(index, colour))
    except (TypeError, ValueError):
        values = ()
    if len(values) != 3 or not all(0 <= value <= 255 for value in values):
        raise ValueError(f"background must be an opaque colour: white, #fff or rgb(0, 80, 100), got {colour!r:.80}")
    return values


def flat_channels(channels: int, background: Colour | None) -> int:
    """Return the number of channels (1 to 4 before) of an image over a background; gray over a colour becomes RGB."""
    if background is None or channels in (1, 3):
        return channels
    return 1 if channels == 2 and len(set(background)) == 1 else 3


def flatten(pixels: NDArray[np.unsignedinteger], background: Colour) -> NDArray[np.unsignedinteger]:
    """Compose pixels [h, w, 2 or 4] of 8 or 16 bits, alpha last, over a background; round to nearest."""
    import numpy as np

    top = np.iinfo(pixels.dtype).max
    behind = np.array(background, np.uint32)[: flat_channels(pixels.shape[2], background)] * (top // 255)
    colour, alpha = pixels[..., :-1].astype(np.uint32), pixels[..., -1:].astype(np.uint32)
    return ((colour * alpha + behind * (top - alpha) + top // 2) // top).astype(pixels.dtype)  # 16 bits just fit
