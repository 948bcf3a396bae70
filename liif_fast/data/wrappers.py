"""Wrappers that cut training samples out of whole images.

A sample, all float32: `inp` [3, h, w] in [0, 1], `coord` and `cell` [Q, 2] (row, column), `gt` [Q, 3] in [0, 1].
Everything before the sample is uint8: crop, colour, PIL's resizing, flips, and the choice of the pixels.

A wrapper with a `seed` draws sample i of epoch e from (seed, e, i) alone, whatever the number of workers, so a resumed
training sees what an uninterrupted one would have seen. Without one it draws from torch's global generator.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from liif_fast.coord import centres
from liif_fast.data.datasets import Images, _positive
from liif_fast.data.registry import register
from liif_fast.data.resize import pillow_takes_height_first

Sample = dict[str, Tensor]


class _Wrapper(torch.utils.data.Dataset[Sample]):
    pairs = False  # whether the dataset's items are (low, high)

    def __init__(self, dataset: Images, augment: bool, sample_q: int | None, colour: bool, seed: int | None) -> None:
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
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self.seed is None:
            return self.sample(index, np.random.default_rng(int(torch.randint(2**62, ()))))
        return self.sample(index, np.random.default_rng([self.seed, self.epoch, index]))

    def sample(self, index: int, rng: Generator) -> Sample:
        """Cut a sample out of image `index`, every draw from `rng`."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next samples are of."""
        self.epoch = epoch

    def _finish(self, low: np.ndarray, high: np.ndarray, rng: Generator) -> Sample:
        """Draw the queries and turn uint8 arrays [h, w, 3] and [H, W, 3] into a sample."""
        height, width = high.shape[:2]
        if self.sample_q is None:
            pixel = np.arange(height * width)
        elif self.sample_q > height * width:
            raise ValueError(f"sample_q must be at most the {height} x {width} pixels there are, got {self.sample_q}")
        else:
            pixel = rng.choice(height * width, self.sample_q, replace=False)
        row, col = np.divmod(pixel, width)
        coord = torch.stack([centres(height)[torch.from_numpy(row)], centres(width)[torch.from_numpy(col)]], -1)
        cell = torch.tensor([2 / height, 2 / width]).expand(len(pixel), 2).contiguous()
        inp = torch.from_numpy(np.ascontiguousarray(low.transpose(2, 0, 1))).float().div_(255)
        return {"inp": inp, "coord": coord, "cell": cell, "gt": torch.from_numpy(high[row, col]).float().div_(255)}


def resize(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize with Pillow's bicubic filter (antialiased, rounded to 8 bits), the width first whatever Pillow's version.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width), or the shorter side, the other then being int(size * longer / shorter).

    Returns:
        uint8 [height, width, 3].
    """
    height, width = image.shape[:2]
    if isinstance(size, int):
        short, long = min(height, width), max(height, width)
        other = int(size * long / short)
        size = (size, other) if height <= width else (other, size)
    result = Image.fromarray(image)
    if pillow_takes_height_first((height, width), size):  # asked for the width alone, it cannot
        result = result.resize((size[1], height), Image.Resampling.BICUBIC)
    return np.asarray(result.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _flips(rng: Generator, *images: np.ndarray) -> list[np.ndarray]:
    """Flip vertically, horizontally and transpose, each with p = 0.5 and alike for all images."""
    vertical, horizontal, transposed = rng.random(3) < 0.5
    if vertical:
        images = tuple(image[::-1] for image in images)
    if horizontal:
        images = tuple(image[:, ::-1] for image in images)
    if transposed:
        images = tuple(image.swapaxes(0, 1) for image in images)
    return list(images)


def colour_matrix(rng: Generator) -> np.ndarray:
    """Draw a change of colours: channel permutation, hue rotation and saturation.

    Args:
        rng: where the draws come from.

    Returns:
        float32 [3, 3], to be multiplied with (R, G, B); its rows add up to 1, so grey stays grey.
    """
    matrix = np.eye(3)[rng.permutation(3)]
    if rng.random() < 0.5:  # hue: a rotation about the grey axis (Rodrigues)
        angle = rng.uniform(-math.pi, math.pi)
        axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        matrix = (math.cos(angle) * np.eye(3) + (1 - math.cos(angle)) / 3 + math.sin(angle) * axis) @ matrix
    if rng.random() < 0.5:
        saturation = math.exp(rng.uniform(-1.0, 1.0))
        matrix = (saturation * np.eye(3) + (1 - saturation) / 3) @ matrix
    return matrix.astype(np.float32)


def _recolour(rng: Generator, *images: np.ndarray) -> list[np.ndarray]:
    """Change the colours of uint8 images alike."""
    matrix = colour_matrix(rng)
    return [(image @ matrix.T + 0.5).clip(0, 255).astype(np.uint8) for image in images]


@register("sr-implicit-downsampled")
class SRImplicitDownsampled(_Wrapper):
    """A crop of the image at a random scale, and its own PIL-bicubic reduction as the input.

    Args:
        dataset: single images.
        inp_size: side of the input in pixels; None takes the whole image.
        scale_min: smallest scale, at least 1.
        scale_max: largest scale; None means scale_min.
        augment: flips and transposition, after resizing.
        sample_q: queries per sample, drawn without replacement; None takes all pixels.
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
        sample_q: int | None = None,
        color_augment: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(dataset, augment, sample_q, color_augment, seed)
        _positive("inp_size", inp_size)
        self.inp_size, self.scale_min = inp_size, scale_min
        self.scale_max = scale_min if scale_max is None else scale_max
        if not 1 <= self.scale_min <= self.scale_max:
            raise ValueError(f"scales must have 1 <= scale_min <= scale_max, got {scale_min} and {scale_max}")

    def sample(self, index: int, rng: Generator) -> Sample:
        image = self.dataset[index]
        height, width = image.shape[:2]
        scale = rng.uniform(self.scale_min, self.scale_max)
        if self.inp_size is None:
            size = (math.floor(height / scale + 1e-9), math.floor(width / scale + 1e-9))
            if min(size) < 1:
                raise ValueError(f"image {index} is {height} x {width}, too small for a reduction by {scale:.3g}")
            high = image[: round(size[0] * scale), : round(size[1] * scale)]
        else:
            size, side = (self.inp_size, self.inp_size), round(self.inp_size * scale)
            if side > min(height, width):
                raise ValueError(f"image {index} is {height} x {width}, too small for a crop of {side} x {side}")
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            high = image[top : top + side, left : left + side]
        if self.colour:
            (high,) = _recolour(rng, high)
        low = resize(high, size)
        if self.augment:
            low, high = _flips(rng, low, high)
        return self._finish(low, high, rng)


@register("sr-implicit-paired")
class SRImplicitPaired(_Wrapper):
    """A crop of the low-resolution image and the same place of the high-resolution one.

    Args:
        dataset: pairs (low, high); the scale is H_high // H_low, at least 1 and the same for columns.
        inp_size: side of the input in pixels; None takes the whole image.
        augment: flips and transposition.
        sample_q: queries per sample, drawn without replacement; None takes all pixels.
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
        sample_q: int | None = None,
        color_augment: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(dataset, augment, sample_q, color_augment, seed)
        _positive("inp_size", inp_size)
        self.inp_size = inp_size

    def sample(self, index: int, rng: Generator) -> Sample:
        low, high = self.dataset[index]
        scale, other = (high.shape[axis] // low.shape[axis] for axis in (0, 1))
        if scale < 1 or scale != other:
            sizes = [f"{image.shape[0]} x {image.shape[1]}" for image in (low, high)]
            raise ValueError(
                f"pair {index} is {sizes[0]} and {sizes[1]}: the scale of rows, {scale}, and of columns, "
                f"{other}, must be the same and at least 1"
            )
        if self.inp_size is not None:
            side, (height, width) = self.inp_size, low.shape[:2]
            if side > min(height, width):
                raise ValueError(f"image {index} is {height} x {width}, too small for a crop of {side} x {side}")
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            low = low[top : top + side, left : left + side]
            high = high[top * scale :, left * scale :]
        high = high[: low.shape[0] * scale, : low.shape[1] * scale]
        if self.colour:
            low, high = _recolour(rng, low, high)
        if self.augment:
            low, high = _flips(rng, low, high)
        return self._finish(low, high, rng)


@register("sr-implicit-uniform-varied")
class SRImplicitUniformVaried(_Wrapper):
    """The low-resolution image whole, and the high-resolution one at a size that grows with the index.

    Args:
        dataset: pairs (low, high).
        size_min: shorter side of the first image's target in pixels.
        size_max: that of the last image; None means size_min.
        augment: horizontal flip.
        gt_resize: resize the target again, to this shorter side.
        sample_q: queries per sample, drawn without replacement; None takes all pixels.
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
        sample_q: int | None = None,
        color_augment: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(dataset, augment, sample_q, color_augment, seed)
        _positive("size_min", size_min)
        _positive("size_max", size_max)
        _positive("gt_resize", gt_resize)
        self.size_min, self.size_max = size_min, size_min if size_max is None else size_max
        self.gt_resize = gt_resize

    def sample(self, index: int, rng: Generator) -> Sample:
        low, high = self.dataset[index]
        place = index / max(len(self.dataset) - 1, 1)
        high = resize(high, round(self.size_min + (self.size_max - self.size_min) * place))
        if self.augment and rng.random() < 0.5:
            low, high = low[:, ::-1], high[:, ::-1]
        if self.gt_resize is not None:
            high = resize(np.ascontiguousarray(high), self.gt_resize)
        if self.colour:
            low, high = _recolour(rng, low, high)
        return self._finish(low, high, rng)


def collate(samples: list[Sample]) -> Sample:
    """Stack samples into a batch.

    Args:
        samples: samples of equal sizes.

    Returns:
        The same keys, each tensor with a leading batch dimension.

    Raises:
        ValueError: if the sizes differ.
    """
    for key in samples[0]:
        shapes = {tuple(sample[key].shape) for sample in samples}
        if len(shapes) > 1:
            raise ValueError(f"{key}: samples of a batch differ in size ({sorted(shapes)}): set inp_size and sample_q")
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
