"""Wrappers that cut training samples out of whole images.

A wrapper makes a sample in two steps. `plan` draws everything that is random about it: windows, sizes, flips and the
pixels that are queries, all integers, no pixel touched. `cut` follows the plan on the CPU, in uint8: crop, colour,
Pillow's resizing (`liif_fast.data.resize`), flips, and the colours of the queries. `liif_fast.data.device` follows
the same plans on any device, to the same bits. What comes out is packed (`liif_fast.data.samples`); an item of a
wrapper is the float sample that is made of it.

A wrapper with a `seed` draws sample i of epoch e from (seed, e, i) alone, whatever the number of workers, so a resumed
training sees what an uninterrupted one would have seen. Without one it draws from torch's global generator.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.random import Generator

from liif_fast.data.datasets import Images, _positive
from liif_fast.data.registry import register
from liif_fast.data.resize import resize
from liif_fast.data.samples import Packed, Sample, unpack

Size = tuple[int, int]  # (height, width) in pixels
SampleQ = int | Literal["all"] | None
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


class _Wrapper(torch.utils.data.Dataset[Sample]):
    pairs = False  # whether the dataset's items are (low, high)

    def __init__(self, dataset: Images, augment: bool, sample_q: SampleQ, colour: bool, seed: int | None) -> None:
        sample_q = None if sample_q == "all" else sample_q
        _positive("sample_q", sample_q)
        if len(dataset):
            self._check_kind(dataset[0])
        self.dataset, self.augment, self.sample_q, self.colour, self.seed = dataset, augment, sample_q, colour, seed
        self.epoch = 0

    def _check_kind(self, item: Any) -> None:
        if isinstance(item, tuple | list) != self.pairs:
            wanted, got = ("pairs", "single images") if self.pairs else ("single images", "pairs")
            raise ValueError(f"dataset: {type(self).__name__} needs a dataset of {wanted}, got one of {got}")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return unpack(self.packed(index))

    def packed(self, index: int) -> Packed:
        """Make a sample as it travels, in small integers; arguments and errors as for an item."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        low, high = self.images(index)
        shapes = [image.shape[:2] for image in (low, high) if image is not None]
        return cut(self.plan(index, shapes, self.rng(index)), low, high)

    def images(self, index: int) -> tuple[np.ndarray | None, np.ndarray]:
        """Return the low-resolution image of a pair, or None, and the high-resolution one, uint8 [H, W, 3]."""
        low, high = self.dataset[index] if self.pairs else (None, self.dataset[index])
        for image in (low, high):
            if image is not None and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3):
                raise ValueError(
                    f"dataset: images must be uint8 [H, W, 3], number {index} is {image.dtype} {list(image.shape)}"
                )
        return low, high

    def rng(self, index: int) -> Generator:
        """Return where the draws of a sample come from."""
        if self.seed is None:
            return np.random.default_rng(int(torch.randint(2**62, ())))
        return np.random.default_rng([self.seed, self.epoch, index])

    def plan(self, index: int, shapes: list[Size], rng: Generator) -> Plan:
        """Draw how sample `index` is made.

        Args:
            index: from 0 to len - 1.
            shapes: (height, width) of the image, or of the low- and the high-resolution image.
            rng: where every draw comes from.

        Returns:
            The plan.

        Raises:
            ValueError: if the images do not fit the wrapper's arguments.
        """
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next samples are of."""
        self.epoch = epoch

    def _flips(self, rng: Generator) -> tuple[bool, bool, bool]:
        vertical, horizontal, transposed = (rng.random(3) < 0.5).tolist() if self.augment else (False, False, False)
        return vertical, horizontal, transposed

    def _pixels(self, grid: Size, rng: Generator) -> np.ndarray:
        count = grid[0] * grid[1]
        if self.sample_q is None:
            return np.arange(count, dtype=np.int32)
        if self.sample_q > count:
            raise ValueError(
                f"sample_q must be at most the {grid[0]} x {grid[1]} pixels there are, got {self.sample_q}"
            )
        return rng.choice(count, self.sample_q, replace=False).astype(np.int32)


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


def shorter_side(shape: Size, side: int) -> Size:
    """The size that makes the shorter side `side`, the longer one int(side * longer / shorter)."""
    height, width = shape
    other = int(side * max(shape) / min(shape))
    return (side, other) if height <= width else (other, side)


def colour_matrix(rng: Generator) -> np.ndarray:
    """Draw a change of colours: channel permutation, hue rotation and saturation.

    Args:
        rng: where the draws come from.

    Returns:
        float32 [3, 3], to be multiplied with (R, G, B); its rows add up to 1, so grey stays grey. Its values are
        multiples of 2^-12 below 4, so that products with 8 bits and their sums are exact in float32 already.
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


@register("sr-implicit-downsampled")
class SRImplicitDownsampled(_Wrapper):
    """A crop of the image at a random scale, and its own PIL-bicubic reduction as the input.

    Args:
        dataset: single images.
        inp_size: side of the input in pixels; None takes the whole image.
        scale_min: smallest scale, at least 1.
        scale_max: largest scale; None means scale_min.
        augment: flips and transposition, after resizing.
        sample_q: queries per sample, drawn without replacement; None or "all" takes all pixels.
        color_augment: channel permutation, hue and saturation (ours), before resizing.
        seed: see the module; None draws from torch's generator.

    Raises:
        ValueError: if an argument is out of its range, or an image is smaller than its crop.
    """

    def __init__(
        self,
        dataset: Images,
        inp_size: int | None = None,
        scale_min: float = 1,
        scale_max: float | None = None,
        augment: bool = False,
        sample_q: SampleQ = None,
        color_augment: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(dataset, augment, sample_q, color_augment, seed)
        _positive("inp_size", inp_size)
        self.inp_size, self.scale_min = inp_size, scale_min
        self.scale_max = scale_min if scale_max is None else scale_max
        if not 1 <= self.scale_min <= self.scale_max:
            raise ValueError(f"scales must have 1 <= scale_min <= scale_max, got {scale_min} and {scale_max}")

    def plan(self, index: int, shapes: list[Size], rng: Generator) -> Plan:
        height, width = shapes[0]
        scale = rng.uniform(self.scale_min, self.scale_max)
        if self.inp_size is None:
            size = (math.floor(height / scale + 1e-9), math.floor(width / scale + 1e-9))
            if min(size) < 1:
                raise ValueError(f"image {index} is {height} x {width}, too small for a reduction by {scale:.3g}")
            window = (0, 0, round(size[0] * scale), round(size[1] * scale))
        else:
            size, side = (self.inp_size, self.inp_size), round(self.inp_size * scale)
            window = _crop(index, (height, width), side, rng)
        colour = colour_matrix(rng) if self.colour else None
        flips = self._flips(rng)
        grid = (window[3], window[2]) if flips[2] else (window[2], window[3])
        return Plan(window, None, colour, None, size, flips, None, grid, self._pixels(grid, rng))


def _crop(index: int, shape: Size, side: int, rng: Generator) -> Window:
    if side > min(shape):
        raise ValueError(f"image {index} is {shape[0]} x {shape[1]}, too small for a crop of {side} x {side}")
    return int(rng.integers(shape[0] - side + 1)), int(rng.integers(shape[1] - side + 1)), side, side


@register("sr-implicit-paired")
class SRImplicitPaired(_Wrapper):
    """A crop of the low-resolution image and the same place of the high-resolution one.

    Args:
        dataset: pairs (low, high); the scale is H_high // H_low, at least 1 and the same for columns.
        inp_size: side of the input in pixels; None takes the whole image.
        augment: flips and transposition.
        sample_q: queries per sample, drawn without replacement; None or "all" takes all pixels.
        color_augment: channel permutation, hue and saturation (ours).
        seed: see the module; None draws from torch's generator.

    Raises:
        ValueError: if an argument is out of its range, an image is smaller than its crop, or a pair has no one scale.
    """

    pairs = True

    def __init__(
        self,
        dataset: Images,
        inp_size: int | None = None,
        augment: bool = False,
        sample_q: SampleQ = None,
        color_augment: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(dataset, augment, sample_q, color_augment, seed)
        _positive("inp_size", inp_size)
        self.inp_size = inp_size

    def plan(self, index: int, shapes: list[Size], rng: Generator) -> Plan:
        low, high = shapes
        scale, other = (high[axis] // low[axis] for axis in (0, 1))
        if scale < 1 or scale != other:
            raise ValueError(
                f"pair {index} is {low[0]} x {low[1]} and {high[0]} x {high[1]}: the scale of rows, {scale}, and of "
                f"columns, {other}, must be the same and at least 1"
            )
        crop = (0, 0, *low) if self.inp_size is None else _crop(index, low, self.inp_size, rng)
        top, left, height, width = (side * scale for side in crop)
        colour = colour_matrix(rng) if self.colour else None
        flips = self._flips(rng)
        grid = (width, height) if flips[2] else (height, width)
        window = (top, left, height, width)
        return Plan(window, crop, colour, None, crop[2:], flips, None, grid, self._pixels(grid, rng))


@register("sr-implicit-uniform-varied")
class SRImplicitUniformVaried(_Wrapper):
    """The low-resolution image whole, and the high-resolution one at a size that grows with the index.

    Args:
        dataset: pairs (low, high).
        size_min: shorter side of the first image's target in pixels.
        size_max: that of the last image; None means size_min.
        augment: horizontal flip.
        gt_resize: resize the target again, to this shorter side.
        sample_q: queries per sample, drawn without replacement; None or "all" takes all pixels.
        color_augment: channel permutation, hue and saturation (ours).
        seed: see the module; None draws from torch's generator.

    Raises:
        ValueError: if an argument is out of its range.
    """

    pairs = True

    def __init__(
        self,
        dataset: Images,
        size_min: int,
        size_max: int | None = None,
        augment: bool = False,
        gt_resize: int | None = None,
        sample_q: SampleQ = None,
        color_augment: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(dataset, augment, sample_q, color_augment, seed)
        _positive("size_min", size_min)
        _positive("size_max", size_max)
        _positive("gt_resize", gt_resize)
        self.size_min, self.size_max = size_min, size_min if size_max is None else size_max
        self.gt_resize = gt_resize

    def plan(self, index: int, shapes: list[Size], rng: Generator) -> Plan:
        low, high = shapes
        place = index / max(len(self.dataset) - 1, 1)
        before = shorter_side(high, round(self.size_min + (self.size_max - self.size_min) * place))
        flips = (False, bool(self.augment and rng.random() < 0.5), False)
        after = None if self.gt_resize is None else shorter_side(before, self.gt_resize)
        colour = colour_matrix(rng) if self.colour else None
        grid = after or before
        return Plan((0, 0, *high), (0, 0, *low), colour, before, low, flips, after, grid, self._pixels(grid, rng))
