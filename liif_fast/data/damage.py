"""Degrade inputs, not targets, by the blur, noise and JPEG compression of real photographs.

A `Damage` is drawn with the rest of a sample's recipe. Like the reduction (`liif_fast.data.resize`), blur is a product
with integer matrices, so it has the same bits on any device. Noise and JPEG run on the CPU, by numpy's generator and
Pillow's encoder.
"""

import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image

from liif_fast.config.checks import mapping, number
from liif_fast.data.resize import UNIT, weighted

BLOCK = 8  # side of a JPEG block in pixels; with halved chroma two make a unit
CHROMA = {0: 0.3, 1: 0.1, 2: 0.6}  # probabilities of Pillow's subsampling 4:4:4, 4:2:2 and 4:2:0


class Damage(NamedTuple):
    """The damage to one input, in this order."""

    before: float  # blur of the high-resolution crop, sigma in its pixels; 0: none
    after: float  # blur of the input, likewise
    noise: float  # standard deviation in 8-bit steps; 0: none
    seed: int  # of the noise
    quality: int | None  # of JPEG; None: not compressed
    chroma: int  # Pillow's subsampling
    shift: tuple[int, int]  # pixels from the begin of a JPEG block to the input's first pixel


class Degrade:
    """The ranges from which damage is drawn.

    Args:
        spec: the configuration's value, true or a mapping with any of
            quality: JPEG's [least, most] from 1 to 100, default [30, 95]; null does not compress.
            noise: largest standard deviation in 8-bit steps, default 6.
            blur: largest sigma in pixels of the input, default 0.6.
            clean: share of undamaged samples, default 0.1.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(self, spec: Any) -> None:
        values = dict(mapping({} if spec is True else spec, "degrade", ("quality", "noise", "blur", "clean")))
        number(values, "noise", "degrade", least=0)
        number(values, "blur", "degrade", least=0)
        number(values, "clean", "degrade", least=0, below=1)
        quality = values.get("quality", [30, 95])
        if quality is not None:
            bounds = quality if isinstance(quality, list | tuple) else []
            if [type(each) for each in bounds] != [int, int] or not 1 <= bounds[0] <= bounds[1] <= 100:
                raise ValueError(f"degrade.quality: expected [least, most] from 1 to 100, or null, got {quality!r:.80}")
        self.quality: list[int] | None = quality
        self.noise, self.blur, self.clean = (values.get(key, default) for key, default in _DEFAULTS.items())

    @classmethod
    def read(cls, spec: Mapping[str, Any] | bool | None) -> "Degrade | None":
        """Return the ranges of an argument `degrade`; None and false mean no damage."""
        return None if spec is None or spec is False else cls(spec)

    def draw(self, rng: Generator, scale: float | None) -> Damage | None:
        """Draw the damage to an input of this scale; scale None means that it has been reduced already.

        Of the damaged inputs, half are blurred, equally often before and after the reduction, half are noisy, and nine
        of ten are compressed.
        """
        if rng.random() < self.clean:
            return None
        blur, noise = (rng.uniform(0, most) if rng.random() < 0.5 else 0.0 for most in (self.blur, self.noise))
        before = rng.random() < 0.5 and scale is not None
        quality = None
        if self.quality is not None and rng.random() < 0.9:
            quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        return Damage(
            before=blur * (scale or 0.0) if before else 0.0,
            after=0.0 if before else blur,
            noise=noise,
            seed=int(rng.integers(2**62)),
            quality=quality,
            chroma=int(rng.choice(list(CHROMA), p=list(CHROMA.values()))),
            shift=(int(rng.integers(2 * BLOCK)), int(rng.integers(2 * BLOCK))),
        )


_DEFAULTS = {"noise": 6.0, "blur": 0.6, "clean": 0.1}


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur a uint8 image [H, W, 3] by a Gaussian, the width first; at a border the weights inside add up to 1."""
    if sigma == 0:
        return image
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    for size in image.shape[1::-1]:
        planes = weighted(planes, *gaussian(size, sigma)).mT
    return planes.permute(1, 2, 0).contiguous().numpy()


def gaussian(size: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the first pixel and the weights that each pixel of a blurred axis reads, as `weighted` takes them."""
    reach = math.ceil(3 * sigma)
    place = np.arange(size)[:, None]
    first = (place - reach).clip(0)
    read = first + np.arange(2 * reach + 1)
    distance = (read - place) / max(sigma, 1e-9)
    weight = np.where((read < size) & (read <= place + reach), np.exp(-0.5 * distance**2), 0.0)
    return first[:, 0], np.round(weight / weight.sum(1, keepdims=True) * UNIT).astype(np.int32)


def damaged(low: np.ndarray, damage: Damage) -> np.ndarray:
    """Apply the damage after the reduction (blur, noise, JPEG) to a uint8 input [h, w, 3]."""
    low = blurred(low, damage.after)
    if damage.noise > 0:
        noise = np.random.default_rng(damage.seed).normal(0, damage.noise, low.shape)
        low = (low + noise + 0.5).clip(0, 255).astype(np.uint8)
    return low if damage.quality is None else _compressed(low, damage)


def _compressed(low: np.ndarray, damage: Damage) -> np.ndarray:
    """Compress an input that begins inside a JPEG block, as a crop of a photograph does."""
    height, width = low.shape[:2]
    top, left = damage.shift
    wide = np.pad(low, ((top, -(top + height) % (2 * BLOCK)), (left, -(left + width) % (2 * BLOCK)), (0, 0)), "edge")
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "JPEG", quality=damage.quality, subsampling=damage.chroma)
    return np.asarray(Image.open(file))[top : top + height, left : left + width]
