"""Make a sample from its recipe on the CPU, the second step of a wrapper."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator

from liif_fast.data.damage import Damage, blurred, damaged
from liif_fast.data.pairs import Size
from liif_fast.data.resize import resize
from liif_fast.data.samples import Packed
from liif_fast.window import Window, crop


class Recipe(NamedTuple):
    """The steps that make a sample, in this order."""

    high: Window  # crop of the high-resolution image
    low: Window | None  # crop of the low-resolution image; None: reduce the high-resolution crop to the input
    colour: np.ndarray | None  # `colour_matrix` for both crops
    before: Size | None  # resize the high-resolution crop to this size
    size: Size  # of the input
    flips: tuple[bool, bool, bool]  # vertical, horizontal, transposition; of both input and target
    after: Size | None  # resize the target to this size
    grid: Size  # final size of the target
    pixel: np.ndarray  # int32 [Q], the queries: row * width + column in that grid
    damage: Damage | None = None  # of the input, before it is flipped

    def source(self, stride: int) -> np.ndarray:
        """Return the queries' places [Q], row * stride + column, in the target before the flips."""
        row = self.pixel // self.grid[1]
        column = self.pixel - row * self.grid[1]  # takes half the time of divmod
        vertical, horizontal, transposed = self.flips
        if transposed:
            row, column = column, row
        height, width = self.grid[::-1] if transposed else self.grid
        row = height - 1 - row if vertical else row
        return row * stride + (width - 1 - column if horizontal else column)


def cut(recipe: Recipe, low: np.ndarray | None, high: np.ndarray) -> Packed:
    """Make the sample of a recipe on the CPU, from uint8 [h, w, 3] images; `low` is None if the recipe needs none."""
    high = np.ascontiguousarray(crop(high, recipe.high))
    if recipe.low is not None:
        assert low is not None
        low = crop(low, recipe.low)
    if recipe.colour is not None:
        high, low = recolour(high, recipe.colour), None if low is None else recolour(low, recipe.colour)
    if recipe.before is not None:
        high = resize(high, recipe.before)
    if low is None:
        low = resize(high if recipe.damage is None else blurred(high, recipe.damage.before), recipe.size)
    if recipe.damage is not None:
        low = damaged(low, recipe.damage)
    place = recipe.source(high.shape[1])  # always in range, so "clip" below only saves numpy's check
    if recipe.after is not None:
        high, place = resize(_flip(high, recipe.flips), recipe.after), recipe.pixel
    low = np.array(_flip(low, recipe.flips).transpose(2, 0, 1), order="C")
    return {
        "inp": torch.from_numpy(low),
        "gt": torch.from_numpy(high.reshape(-1, 3).take(place, axis=0, mode="clip")),
        "pixel": torch.from_numpy(recipe.pixel),
        "size": torch.tensor(recipe.grid, dtype=torch.int32),
    }


def _flip(image: np.ndarray, flips: tuple[bool, bool, bool]) -> np.ndarray:
    vertical, horizontal, transposed = flips
    image = image[:: -1 if vertical else 1, :: -1 if horizontal else 1]
    return image.swapaxes(0, 1) if transposed else image


def colour_matrix(rng: Generator) -> np.ndarray:
    """Draw a change of colours, float32 [3, 3] for (R, G, B): channel permutation, hue rotation and saturation.

    Its rows add up to 1, so grey stays grey. Its values are multiples of 2^-12 below 4, so products with 8-bit values
    and their sums are exact in float32.
    """
    matrix = np.eye(3)[rng.permutation(3)]
    if rng.random() < 0.5:  # hue: a rotation about the grey axis (Rodrigues)
        angle = rng.uniform(-math.pi, math.pi)
        axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        matrix = (math.cos(angle) * np.eye(3) + (1 - math.cos(angle)) / 3 + math.sin(angle) * axis) @ matrix
    if rng.random() < 0.5:
        saturation = math.exp(rng.uniform(-1.0, 1.0))
        matrix = (saturation * np.eye(3) + (1 - saturation) / 3) @ matrix
    matrix = np.round(matrix * 4096) / 4096
    matrix[:, 2] = 1 - matrix[:, 0] - matrix[:, 1]
    return matrix.astype(np.float32)


def recolour(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Change the colours of a uint8 image [H, W, 3] by a `colour_matrix`."""
    return (image @ matrix.T + 0.5).clip(0, 255).astype(np.uint8)
