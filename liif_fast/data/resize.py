"""Pillow's bicubic resizing of 8-bit images, bit for bit, on any device that computes in float64.

Pillow resizes in integers: each pass weighs pixels with coefficients of 22 fractional bits, adds a half, shifts and
clips to 8 bits. The filter is Keys' cubic with a = -0.5, stretched by the reduction, so that it is antialiased.

Here a pass is a product with a matrix of those integers, in float64. It is exact whatever the order of additions:
no sum reaches 2^32, and float64 holds every integer up to 2^53. A matrix may be padded with zeros, so that crops of
different sizes are resized in one batched product.

`resize` does the same on the CPU with a kernel of ours (csrc/cpu/resize.cpp), which takes a third of Pillow's time for
the crops of training that are reduced, or with Pillow itself where that is not built.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from liif_fast.backends import cpu
from liif_fast.ops import resize as _ops

_BITS = 22  # 32 less 8 for the pixel and 2 for the overshoot of the filter
UNIT = 1 << _BITS  # what stands for 1 in a matrix
_SUPPORT = 2.0  # of the cubic, in input pixels at no reduction
_BLOCK = 64  # outputs of one product: a matrix of a whole axis would be mostly zeros


def bicubic_resize(image: Tensor, size: Sequence[int], *, height_first: bool | None = None) -> Tensor:
    """Resize as `PIL.Image.resize(..., BICUBIC)` does, without a differing value.

    Args:
        image: uint8 [..., H, W], on any device that computes in float64.
        size: (height, width) in pixels.
        height_first: which pass comes first; it decides some roundings. None does as the installed Pillow does:
            the width's, but from Pillow 13 on the height's where `pillow_takes_height_first`.

    Returns:
        uint8 [..., height, width].

    Raises:
        TypeError: if the image is not uint8.
        ValueError: if a side is below 1.
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"image must be uint8, got {image.dtype}")
    if image.ndim < 2 or len(size) != 2 or min(*size, *image.shape[-2:]) < 1:
        raise ValueError(f"image and size must have sides of at least 1, got {list(image.shape)} and {tuple(size)}")
    if height_first is None:
        height_first = int(PIL.__version__.split(".")[0]) >= 13 and pillow_takes_height_first(image.shape[-2:], size)
    if height_first:
        image = _along_width(image.mT, size[0]).mT
    image = _along_width(image, size[1])
    return image if height_first else _along_width(image.mT, size[0]).mT


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize as Pillow's bicubic filter does, without a differing value, the width first whatever Pillow's version.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width) in pixels.

    Returns:
        uint8 [height, width, 3], never the image's own memory.

    Raises:
        TypeError: if the image is not uint8.
        ValueError: if it is not [H, W, 3], or a side is below 1.
    """
    if image.dtype != np.uint8:
        raise TypeError(f"image must be uint8, got {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or len(size) != 2 or min(*size, *image.shape) < 1:
        raise ValueError(f"image must be [H, W, 3], sides at least 1, got {list(image.shape)} and size {tuple(size)}")
    if image.shape[:2] == tuple(size):
        return image.copy(order="C")  # as Pillow does; the passes would give the same values
    image = np.require(image, requirements=["C", "W"])  # writeable: PyTorch wants it, though nothing is written
    old = image.shape[:2]
    if cpu.ISA:
        axes = [_table(*sides) for sides in zip(old, size, strict=True)]
        return _ops.bicubic_resize(torch.from_numpy(image), *axes[0], *axes[1]).numpy()
    result = Image.frombuffer("RGB", old[::-1], image, "raw", "RGB", 0, 1)
    if pillow_takes_height_first(old, size):  # asked for the width alone, it cannot
        result = result.resize((size[1], old[0]), Image.Resampling.BICUBIC)
    result = result.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.frombuffer(result.tobytes(), np.uint8).reshape(*size, 3)


def pillow_takes_height_first(old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether Pillow from 13 on resizes (height, width) old to new with the height first: where it saves much work.

    Source: python-pillow/Pillow pull request 9549; the rule is what Pillow 13.0 was seen to do.
    """
    return old[0] > new[0] and old[0] - new[0] > 2 * (old[1] - new[1])


def resize_crops(crops: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resize crops of different sizes, padded to one, the width first.

    Args:
        crops: uint8 [..., H, W]; what the padding holds does not count.
        rows: [..., height, H], the matrix of each crop as `coefficients` gives it; broadcasts.
        columns: [..., width, W], likewise.

    Returns:
        uint8 [..., height, width].
    """
    narrow = _to_8_bits(crops.double() @ columns.double().mT)
    return _to_8_bits(rows.double() @ narrow).to(torch.uint8)


def coefficients(size_in: int, size_out: int, padded: int) -> np.ndarray:
    """Make the matrix of one pass, int32 [size_out, padded] in units of 2^-22; columns beyond size_in are 0."""
    return _matrix(*_taps(size_in, size_out), padded)


def _along_width(image: Tensor, width: int) -> Tensor:
    first, weight = _taps(image.shape[-1], width)
    blocks = []
    for start in range(0, width, _BLOCK):
        begin, taps = first[start : start + _BLOCK], weight[start : start + _BLOCK]
        part = image[..., begin[0] : begin[-1] + taps.shape[1]].double()
        matrix = torch.from_numpy(_matrix(begin - begin[0], taps, part.shape[-1])).to(image.device)
        blocks.append(_to_8_bits(part @ matrix.double().mT).to(torch.uint8))
    return torch.cat(blocks, -1)


def _matrix(first: np.ndarray, weight: np.ndarray, columns: int) -> np.ndarray:
    taps = weight.shape[1]
    matrix = np.zeros((len(first), columns + taps), np.int32)  # unused taps may lie beyond the input
    matrix[np.arange(len(first))[:, None], first[:, None] + np.arange(taps)] = weight
    return matrix[:, :columns]


def _to_8_bits(total: Tensor) -> Tensor:
    return total.add_(1 << (_BITS - 1)).mul_(2.0**-_BITS).floor_().clamp_(0, 255)


@lru_cache(maxsize=4096)
def _taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """The first input pixel [size_out] and the coefficients int32 [size_out, taps] of every output pixel.

    The double operations and their order are Pillow's, since a coefficient may lie close to a half.
    """
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support = _SUPPORT * stretch
    centre = (np.arange(size_out) + 0.5) * scale
    first = (centre - support + 0.5).astype(np.int64).clip(0)
    count = (centre + support + 0.5).astype(np.int64).clip(max=size_in) - first
    weight = np.zeros((size_out, count.max()))
    total = np.zeros(size_out)
    for tap in range(weight.shape[1]):  # one after the other: a sum in another order would round differently
        weight[:, tap] = np.where(tap < count, _cubic((tap + first - centre + 0.5) * (1.0 / stretch)), 0.0)
        total += weight[:, tap]
    weight /= total[:, None]
    return first, np.trunc(weight * (1 << _BITS) + np.where(weight < 0, -0.5, 0.5)).astype(np.int32)


@lru_cache(maxsize=1024)
def _table(size_in: int, size_out: int) -> tuple[Tensor, Tensor]:
    """`_taps` as the kernel takes them: int64 [size_out], float64 [size_out, taps]."""
    first, weight = _taps(size_in, size_out)
    return torch.from_numpy(first), torch.from_numpy(weight.astype(np.float64))


def _cubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
