"""Compute and check the size of the output and its window."""

import math
import operator
from typing import Any, NamedTuple, cast

from liif_fast.checks import check_extent, check_integers
from liif_fast.images.errors import WHY_NOT_SMALLER
from liif_fast.window import Extent, Turn, Window, window_before

MAX_PIXELS = 2**30  # of an output held in memory
MAX_FILE_PIXELS = 2**36  # of an output written strip by strip; more would be a typing error
WHOLE = 1e-12  # relative to an axis: a side so near to a whole number of pixels is one, up to float64's rounding


class Frame(NamedTuple):
    """An output's size, and the window of it to make."""

    size: tuple[int, int]  # (height, width) of the whole
    region: Window
    extent: Extent | None = None  # the part of the input that the whole output covers; None is all of it

    def turn_back(self, how: Turn) -> "Frame":
        """Return the frame of which the turn would make this one."""
        return Frame(self.size[::-1] if how[0] else self.size, window_before(self.region, self.size, how))


def frame(
    size_in: tuple[int, int],
    scale: float | None,
    size: tuple[int | None, int | None] | None,
    region: Window | None,
    limit: int,
) -> Frame:
    """Return the checked output size and window; arguments and errors as for `output_size` and `upscale`."""
    width, height = output_size(size_in, scale, size, limit)
    return Frame((height, width), _check_region(region, (width, height)))


def frame_over(
    size_in: tuple[int, int],
    scale: float | None,
    size: tuple[int | None, int | None] | None,
    region: Window | None,
    extent: Extent,
    limit: int,
) -> Frame:
    """Check which output of a part of the input is wanted; arguments and errors as of `Upscaler.render`.

    A grid over the part that belongs to one over the whole input becomes that one, with the same bits.
    """
    part = check_extent(extent, size_in[::-1])
    width, height = output_size((part[3], part[2]), scale, size, limit)
    over = Frame((height, width), _check_region(region, (width, height)), part)
    whole = [count * n / length for count, n, length in zip(over.size, size_in[::-1], part[2:], strict=True)]
    first = [start * count / length for start, count, length in zip(part[:2], over.size, part[2:], strict=True)]
    if any(abs(each - round(each)) > WHOLE * each for each in whole) or any(
        abs(each - round(each)) > WHOLE * n for each, n in zip(first, whole, strict=True)
    ):
        return over
    top, left, *rest = over.region
    return Frame((round(whole[0]), round(whole[1])), (round(first[0]) + top, round(first[1]) + left, rest[0], rest[1]))


def output_size(
    size_in: tuple[float, float],
    scale: float | None = None,
    size: tuple[int | None, int | None] | None = None,
    limit: int = MAX_PIXELS,
) -> tuple[int, int]:
    """Return the output's (width, height), at most `limit` pixels, from the input's; scale and size as in `upscale`.

    Raises:
        ValueError: both or neither of scale and size are given, or the output is not finite, smaller than the input, or
            larger than `limit`.
        TypeError: scale is not a number, or size does not hold whole numbers.
    """
    width, height = size_in
    if (scale is None) == (size is None):
        raise ValueError("exactly one of scale and size must be given")
    if scale is not None:
        scale = check_scale(scale)
        if width * scale * height * scale <= 2 * limit:  # beyond, round() might overflow
            width_out, height_out = round(width * scale), round(height * scale)
        else:
            raise ValueError(f"scale {scale:g} makes too many pixels from {width}x{height}; the limit is {limit}")
    else:
        w, h = _sides(size)
        width_out = w if w is not None else max(1, round(width * cast(int, h) / height))
        height_out = h if h is not None else max(1, round(height * cast(int, w) / width))
    if width_out < math.floor(width) or height_out < math.floor(height) or min(width_out, height_out) < 1:
        sides = f"{width:.10g}x{height:.10g}"
        raise ValueError(f"the output {width_out}x{height_out} is smaller than the input {sides}: {WHY_NOT_SMALLER}")
    if width_out * height_out > limit:
        raise ValueError(f"the output {width_out}x{height_out} has more than {limit} pixels")
    return width_out, height_out


def check_scale(scale: float) -> float:
    """Check a scale and return it as a float."""
    if isinstance(scale, str | bytes) or not hasattr(scale, "__float__"):
        raise TypeError(f"scale must be a number, got {scale!r:.80}")
    try:
        scale = float(scale)
    except OverflowError:  # an int too large for a float
        scale = math.inf
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale}")
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale:g}")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale:g}: {WHY_NOT_SMALLER}")
    return scale


def _sides(size: Any) -> tuple[int | None, int | None]:
    form = f"size must be (width, height) in pixels, one of them may be None; got {size!r:.80}"
    try:
        sides = [None if side is None else operator.index(side) for side in size]
    except TypeError:  # not a sequence, or not of whole numbers
        raise TypeError(form) from None
    if len(sides) != 2 or sides == [None, None] or any(side is not None and side < 1 for side in sides):
        raise ValueError(form)
    return sides[0], sides[1]


def _check_region(region: Window | None, size: tuple[int, int]) -> Window:
    """Return the checked window of an output of (width, height); None means all of it."""
    width, height = size
    if region is None:
        return 0, 0, height, width
    values = check_integers("region", region, "(top, left, height, width)")
    if len(values) != 4:
        raise ValueError(f"region must be (top, left, height, width), got {values}")
    top, left, h, w = values
    if min(top, left) < 0 or min(h, w) < 1 or top + h > height or left + w > width:
        raise ValueError(
            f"region must lie in the output, {width}x{height} pixels; got {w}x{h} pixels at column {left}, row {top}"
        )
    return top, left, h, w
