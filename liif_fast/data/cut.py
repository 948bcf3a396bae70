"""The second step of a wrapper: what a plan says, done on the CPU."""

from typing import NamedTuple

import numpy as np
import torch

from liif_fast.data.pairs import Size
from liif_fast.data.resize import resize
from liif_fast.data.samples import Packed

Window = tuple[int, int, int, int]  # (top, left, height, width) in pixels


class Plan(NamedTuple):
    """How a sample is made, in this order."""

    high: Window  # crop of the high-resolution image
    low: Window | None  # crop of the low-resolution one; None: the input is the high-resolution crop's reduction
    colour: np.ndarray | None  # `colour_matrix` for both crops
    before: Size | None  # resize the high-resolution crop to this
    size: Size  # of the input
    flips: tuple[bool, bool, bool]  # vertically, horizontally, transposition: of the input and of the target
    after: Size | None  # resize the target to this
    grid: Size  # of the target at last
    pixel: np.ndarray  # int32 [Q], the queries: row * width + column in that grid

    def source(self, stride: int) -> np.ndarray:
        """The queries' places [Q], row * stride + column, in a target that has not been flipped."""
        row = self.pixel // self.grid[1]
        column = self.pixel - row * self.grid[1]  # in half the time of divmod
        vertical, horizontal, transposed = self.flips
        if transposed:
            row, column = column, row
        height, width = self.grid[::-1] if transposed else self.grid
        row = height - 1 - row if vertical else row
        return row * stride + (width - 1 - column if horizontal else column)


def cut(plan: Plan, low: np.ndarray | None, high: np.ndarray) -> Packed:
    """Make the sample of a plan, on the CPU.

    Args:
        plan: of these images.
        low: uint8 [h, w, 3]; None if the plan needs none.
        high: uint8 [H, W, 3].

    Returns:
        The packed sample.
    """
    high = np.ascontiguousarray(_window(high, plan.high))
    if plan.low is not None:
        assert low is not None
        low = _window(low, plan.low)
    if plan.colour is not None:
        high, low = recolour(high, plan.colour), None if low is None else recolour(low, plan.colour)
    if plan.before is not None:
        high = resize(high, plan.before)
    if low is None:
        low = resize(high, plan.size)
    place = plan.source(high.shape[1])  # in range: "clip" below spares a check
    if plan.after is not None:
        high, place = resize(_flip(high, plan.flips), plan.after), plan.pixel
    low = np.array(_flip(low, plan.flips).transpose(2, 0, 1), order="C")
    return {
        "inp": torch.from_numpy(low),
        "gt": torch.from_numpy(high.reshape(-1, 3).take(place, axis=0, mode="clip")),
        "pixel": torch.from_numpy(plan.pixel),
        "size": torch.tensor(plan.grid, dtype=torch.int32),
    }


def _window(image: np.ndarray, window: Window) -> np.ndarray:
    top, left, height, width = window
    return image[top : top + height, left : left + width]


def _flip(image: np.ndarray, flips: tuple[bool, bool, bool]) -> np.ndarray:
    vertical, horizontal, transposed = flips
    image = image[:: -1 if vertical else 1, :: -1 if horizontal else 1]
    return image.swapaxes(0, 1) if transposed else image


def recolour(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Change the colours of a uint8 image [H, W, 3] by a `colour_matrix`."""
    return (image @ matrix.T + 0.5).clip(0, 255).astype(np.uint8)
