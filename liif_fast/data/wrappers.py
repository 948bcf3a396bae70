"""Wrappers that cut training samples out of whole images.

A wrapper makes a sample in two steps. First `recipe` draws everything random: windows, sizes, flips and the pixels that
are queries. These are integers; no pixel is touched. Then `liif_fast.data.cut` follows the recipe on the CPU in uint8:
crop, colour, Pillow's resizing (`liif_fast.data.resize`), flips, and the colours of the queries.
`liif_fast.data.device` follows the same recipes on any device, with the same bits. The result is a packed sample
(`liif_fast.data.samples`); an item of a wrapper is the float sample made from it.

A wrapper with a `seed` draws sample i of epoch e from (seed, e, i) alone, whatever the number of workers. So a resumed
training sees the samples of an uninterrupted one. Without a seed it draws from torch's global generator.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import Generator

from liif_fast.data.cut import Recipe, colour_matrix, cut
from liif_fast.data.damage import Damage, Degrade
from liif_fast.data.datasets import Images, _positive, headers, image_id
from liif_fast.data.pairs import Size, pair_scale
from liif_fast.data.registry import register
from liif_fast.data.resize import shorter_side
from liif_fast.data.samples import Packed, Sample, unpack
from liif_fast.window import Window

SampleQ = int | Literal["all"] | None
Degradation = Mapping[str, Any] | bool | None


class _Wrapper(torch.utils.data.Dataset[Sample]):
    pairs = False  # whether the dataset's items are (low, high)

    def __init__(
        self, dataset: Images, augment: bool, sample_q: SampleQ, colour: bool, degrade: Degradation, seed: int | None
    ) -> None:
        sample_q = None if sample_q == "all" else sample_q
        _positive("sample_q", sample_q)
        if len(dataset):
            is_pair = isinstance(dataset[0], tuple | list)
            if is_pair != self.pairs:
                wanted, got = ("pairs", "single images") if self.pairs else ("single images", "pairs")
                raise ValueError(f"dataset: {type(self).__name__} needs a dataset of {wanted}, got one of {got}")
        self.dataset, self.augment, self.sample_q, self.colour, self.seed = dataset, augment, sample_q, colour, seed
        self.degrade = Degrade.read(degrade)
        self.epoch = 0

    def _check_sizes(self) -> None:
        """Raise at once if an image is too small for its largest crop, as far as the dataset knows sizes."""
        seen = set()
        for index in range(len(self.dataset)):
            key = image_id(self.dataset, index)
            if key not in seen and (found := headers(self.dataset, index)) is not None:
                self._check_size(index, [header.size for header in found])
            seen.add(key)

    def _check_size(self, index: int, shapes: list[Size]) -> None:
        """Raise the errors that `recipe` may raise for any draw."""

    def _named(self, index: int, *without: str) -> list[str]:
        """Return the files of an image or a pair for messages; `without` if the dataset names none."""
        found = headers(self.dataset, index)
        return list(without) if found is None else [header.name for header in found]

    def at_scale(self, scale: int) -> "_Wrapper":
        """Return the wrapper for an evaluation with the scale of every pair fixed; for single images, unchanged.

        Raises:
            ValueError: a pair has another scale.
        """
        return self

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return unpack(self.packed(index))

    def packed(self, index: int) -> Packed:
        """Return a packed sample; arguments and errors as for an item."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        low, high = self.images(index)
        shapes = [image.shape[:2] for image in (low, high) if image is not None]
        return cut(self.recipe(index, shapes, self.rng(index)), low, high)

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
        """Return the generator of a sample's draws."""
        if self.seed is None:
            return np.random.default_rng(int(torch.randint(2**62, ())))
        return np.random.default_rng([self.seed, self.epoch, index])

    def recipe(self, index: int, shapes: list[Size], rng: Generator) -> Recipe:
        """Draw the recipe of sample `index` from `rng`, given its images' (height, width).

        Raises:
            ValueError: the images do not fit the wrapper's arguments.
        """
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next samples."""
        self.epoch = epoch

    def _flips(self, rng: Generator) -> tuple[bool, bool, bool]:
        vertical, horizontal, transposed = (rng.random(3) < 0.5).tolist() if self.augment else (False, False, False)
        return vertical, horizontal, transposed

    def _damage(self, rng: Generator, scale: float | None = None) -> Damage | None:
        return None if self.degrade is None else self.degrade.draw(rng, scale)

    def _check_crop(self, index: int, shape: Size, side: int) -> None:
        if side > min(shape):
            name = self._named(index, f"image {index}")[0]  # in a pair, the low-resolution image is cropped
            raise ValueError(f"{name} is {shape[0]} x {shape[1]}, too small for a crop of {side} x {side}")

    def _crop(self, index: int, shape: Size, side: int, rng: Generator) -> Window:
        self._check_crop(index, shape, side)
        return int(rng.integers(shape[0] - side + 1)), int(rng.integers(shape[1] - side + 1)), side, side

    def _check_queries(self, index: int, grid: Size) -> None:
        if self.sample_q is not None and self.sample_q > grid[0] * grid[1]:
            name = self._named(index, f"image {index}")[-1]  # in a pair, queries lie in the high-resolution image
            raise ValueError(
                f"sample_q must be at most the {grid[0]} x {grid[1]} pixels there are, got {self.sample_q} for {name}"
            )

    def _pixels(self, index: int, grid: Size, rng: Generator) -> np.ndarray:
        count = grid[0] * grid[1]
        if self.sample_q is None:
            return np.arange(count, dtype=np.int32)
        self._check_queries(index, grid)
        return rng.choice(count, self.sample_q, replace=False).astype(np.int32)


@register("sr-implicit-downsampled")
class SRImplicitDownsampled(_Wrapper):
    """Pair a crop of the image at a random scale with its own PIL-bicubic reduction as the input.

    Args:
        dataset: single images.
        inp_size: side of the input in pixels; None takes the whole image.
        scale_min: smallest scale, at least 1.
        scale_max: largest scale; None means scale_min.
        augment: flip and transpose, after resizing.
        sample_q: queries per sample, drawn without replacement; None or "all" takes all pixels.
        color_augment: change channel order, hue and saturation, before resizing (not in the original).
        seed: see the module; None draws from torch's generator.
        degrade: blur, noise and JPEG compression of the input (ours): true, or ranges as
            `liif_fast.data.damage.Degrade` takes them.
        scale_min_share: share of the samples, in [0, 1], at exactly scale_min; the others are uniform (ours).

    Raises:
        ValueError: an argument is out of its range, or an image is smaller than its crop.
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
        degrade: Degradation = None,
        scale_min_share: float = 0,
    ) -> None:
        super().__init__(dataset, augment, sample_q, color_augment, degrade, seed)
        _positive("inp_size", inp_size)
        self.inp_size, self.scale_min = inp_size, scale_min
        self.scale_max = scale_min if scale_max is None else scale_max
        if not 1 <= self.scale_min <= self.scale_max:
            raise ValueError(f"scales must have 1 <= scale_min <= scale_max, got {scale_min} and {scale_max}")
        if not 0 <= scale_min_share <= 1:
            raise ValueError(f"scale_min_share must be in [0, 1], got {scale_min_share}")
        self.scale_min_share = scale_min_share
        self._check_sizes()

    def _check_size(self, index: int, shapes: list[Size]) -> None:
        if self.inp_size is None:
            self._reduced(index, shapes[0], self.scale_max)
            self._check_queries(index, shapes[0])
        else:
            self._check_crop(index, shapes[0], round(self.inp_size * self.scale_max))
            least = round(self.inp_size * self.scale_min)
            self._check_queries(index, (least, least))

    def _reduced(self, index: int, shape: Size, scale: float) -> Size:
        size = (math.floor(shape[0] / scale + 1e-9), math.floor(shape[1] / scale + 1e-9))
        if min(size) < 1:
            (name,) = self._named(index, f"image {index}")
            raise ValueError(f"{name} is {shape[0]} x {shape[1]}, too small for a reduction by {scale:.3g}")
        return size

    def recipe(self, index: int, shapes: list[Size], rng: Generator) -> Recipe:
        scale = rng.uniform(self.scale_min, self.scale_max)
        if self.scale_min_share and rng.random() < self.scale_min_share:  # without the option nothing more is drawn
            scale = float(self.scale_min)
        if self.inp_size is None:
            size = self._reduced(index, shapes[0], scale)
            window = (0, 0, round(size[0] * scale), round(size[1] * scale))
        else:
            size, side = (self.inp_size, self.inp_size), round(self.inp_size * scale)
            window = self._crop(index, shapes[0], side, rng)
        colour = colour_matrix(rng) if self.colour else None
        flips = self._flips(rng)
        damage = self._damage(rng, scale)
        grid = (window[3], window[2]) if flips[2] else (window[2], window[3])
        return Recipe(window, None, colour, None, size, flips, None, grid, self._pixels(index, grid, rng), damage)


@register("sr-implicit-downsampled-fast")
class SRImplicitDownsampledFast(SRImplicitDownsampled):
    """LTE+'s name for sr-implicit-downsampled with as many queries as the input has pixels.

    Args:
        dataset, inp_size, scale_min, scale_max, augment, color_augment, seed: as in sr-implicit-downsampled; without
            inp_size all pixels are queries.
    """

    def __init__(
        self,
        dataset: Images,
        inp_size: int | None = None,
        scale_min: float = 1,
        scale_max: float | None = None,
        augment: bool = False,
        color_augment: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(dataset, inp_size, scale_min, scale_max, augment, _square(inp_size), color_augment, seed)


@register("sr-implicit-paired")
class SRImplicitPaired(_Wrapper):
    """Pair a crop of the low-resolution image with the same region of the high-resolution one.

    Args:
        dataset: pairs (low, high), each with the scale that `liif_fast.data.pairs` finds. If the low-resolution sides
            were rounded up, its last row and column are left out.
        inp_size: side of the input in pixels; None takes the whole image.
        augment: flip and transpose.
        sample_q, color_augment, seed, degrade: as in sr-implicit-downsampled; the blur comes after the reduction.

    Raises:
        ValueError: an argument is out of its range, an image is smaller than its crop, or a pair fits no whole scale.
    """

    pairs = True
    scale: int | None = None  # of every pair, once `at_scale` has fixed it

    def __init__(
        self,
        dataset: Images,
        inp_size: int | None = None,
        augment: bool = False,
        sample_q: SampleQ = None,
        color_augment: bool = False,
        seed: int | None = None,
        degrade: Degradation = None,
    ) -> None:
        super().__init__(dataset, augment, sample_q, color_augment, degrade, seed)
        _positive("inp_size", inp_size)
        self.inp_size = inp_size
        self._check_sizes()

    def at_scale(self, scale: int) -> "SRImplicitPaired":
        stated = copy.copy(self)
        stated.scale = scale
        stated._check_sizes()
        return stated

    def _check_size(self, index: int, shapes: list[Size]) -> None:
        scale, usable = self._fit(index, shapes)
        if self.inp_size is not None:
            self._check_crop(index, usable, self.inp_size)
            usable = (self.inp_size, self.inp_size)
        self._check_queries(index, (usable[0] * scale, usable[1] * scale))

    def _fit(self, index: int, shapes: list[Size]) -> tuple[int, Size]:
        """Return a pair's scale, and the (height, width) of the low-resolution image that the other one covers."""
        low, high = shapes
        names = self._named(index, f"image {index} of low resolution", "that of high resolution")
        scale = pair_scale(low, high, self.scale, names)
        return scale, (min(low[0], high[0] // scale), min(low[1], high[1] // scale))

    def recipe(self, index: int, shapes: list[Size], rng: Generator) -> Recipe:
        scale, usable = self._fit(index, shapes)
        crop = (0, 0, *usable) if self.inp_size is None else self._crop(index, usable, self.inp_size, rng)
        top, left, height, width = (side * scale for side in crop)
        colour = colour_matrix(rng) if self.colour else None
        flips = self._flips(rng)
        damage = self._damage(rng)
        grid = (width, height) if flips[2] else (height, width)
        window = (top, left, height, width)
        return Recipe(window, crop, colour, None, crop[2:], flips, None, grid, self._pixels(index, grid, rng), damage)


@register("sr-implicit-paired-fast")
class SRImplicitPairedFast(SRImplicitPaired):
    """LTE+'s name for sr-implicit-paired with as many queries as the input has pixels.

    Args:
        dataset, inp_size, augment, color_augment, seed: as in sr-implicit-paired; without inp_size all pixels are
            queries.
    """

    def __init__(
        self,
        dataset: Images,
        inp_size: int | None = None,
        augment: bool = False,
        color_augment: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(dataset, inp_size, augment, _square(inp_size), color_augment, seed)


def _square(side: int | None) -> int | None:
    return None if side is None else side * side


@register("sr-implicit-uniform-varied")
class SRImplicitUniformVaried(_Wrapper):
    """Pair the whole low-resolution image with the high-resolution one at a size that grows with the index.

    Args:
        dataset: pairs (low, high).
        size_min: shorter side of the first image's target in pixels.
        size_max: shorter side of the last image's target; None means size_min.
        augment: flip horizontally.
        gt_resize: resize the target again, to this shorter side.
        sample_q, color_augment, seed, degrade: as in sr-implicit-downsampled; all of the blur is of the input.

    Raises:
        ValueError: an argument is out of its range.
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
        degrade: Degradation = None,
    ) -> None:
        super().__init__(dataset, augment, sample_q, color_augment, degrade, seed)
        _positive("size_min", size_min)
        _positive("size_max", size_max)
        _positive("gt_resize", gt_resize)
        self.size_min, self.size_max = size_min, size_min if size_max is None else size_max
        self.gt_resize = gt_resize
        self._check_sizes()

    def _check_size(self, index: int, shapes: list[Size]) -> None:
        before, after = self._targets(index, shapes[1])
        self._check_queries(index, after or before)

    def _targets(self, index: int, high: Size) -> tuple[Size, Size | None]:
        """Return the (height, width) to which the high-resolution image is resized, and that after `gt_resize`."""
        place = index / max(len(self.dataset) - 1, 1)
        before = shorter_side(high, round(self.size_min + (self.size_max - self.size_min) * place))
        return before, None if self.gt_resize is None else shorter_side(before, self.gt_resize)

    def recipe(self, index: int, shapes: list[Size], rng: Generator) -> Recipe:
        low, high = shapes
        before, after = self._targets(index, high)
        flips = (False, bool(self.augment and rng.random() < 0.5), False)
        colour = colour_matrix(rng) if self.colour else None
        damage = self._damage(rng)
        grid = after or before
        pixel = self._pixels(index, grid, rng)
        return Recipe((0, 0, *high), (0, 0, *low), colour, before, low, flips, after, grid, pixel, damage)
