"""Resize 8-bit images by Pillow's bicubic filter, bit for bit, on any device that computes in float64.

Pillow resizes in integers: each pass weighs pixels with coefficients of 22 fractional bits, adds a half, shifts and
clips to 8 bits. The filter is Keys' cubic with a = -0.5, stretched by the reduction for antialiasing.

Here a pass is a product with a matrix of those integers in float64. It is exact in any order of additions, because
no sum reaches 2^32 and float64 holds every integer up to 2^53. Zeros may pad a matrix, so that one batched product
resizes crops of different sizes.

On the CPU `resize` uses the kernel in csrc/cpu/resize.cpp, which takes a third of Pillow's time for the reductions in
training, or Pillow itself if the kernel is not built.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from liif_fast.backends import cpu
from liif_fast.data.pairs import Size
from liif_fast.ops import resize as _ops

_BITS = 22  # 32 less 8 for the pixel and 2 for the overshoot of the filter
UNIT = 1 << _BITS  # stands for 1 in a matrix
_SUPPORT = 2.0  # of the cubic in input pixels, without reduction
_BLOCK = 64  # outputs per product, because the matrix of a whole axis would be mostly zeros


def bicubic_resize(image: Tensor, size: Sequence[int], *, height_first: bool | None = None) -> Tensor:
    """Resize exactly as `PIL.Image.resize(..., BICUBIC)` does.

    Args:
        image: uint8 [..., H, W], on any device that computes in float64.
        size: (height, width) in pixels.
        height_first: resize the height first; the order decides some roundings. None follows the installed Pillow:
            the width first, but from Pillow 13 on the height first if `pillow_takes_height_first`.

    Returns:
        uint8 [..., height, width].

    Raises:
        TypeError: the image is not uint8.
        ValueError: a side is below 1.
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"image must be uint8, got {image.dtype}")
    if image.ndim < 2 or len(size) != 2 or min(*size, *image.shape[-2:]) < 1:
        raise ValueError(f"image and size must have sides of at least 1, got {list(image.shape)} and {tuple(size)}")
    if height_first is None:
        height_first = int(PIL.__version__.split(".")[0]) >= 13 and pillow_takes_height_first(image.shape[-2:], size)
    if height_first:
        image = _along_height(image, size[0])
    image = weighted(image, *_taps(image.shape[-1], size[1]))
    return image if height_first else _along_height(image, size[0])


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize exactly as Pillow's bicubic filter does, the width first in every version of Pillow.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width) in pixels.

    Returns:
        uint8 [height, width, 3] in new memory.

    Raises:
        TypeError: the image is not uint8.
        ValueError: the image is not [H, W, 3], or a side is below 1.
    """
    if image.dtype != np.uint8:
        raise TypeError(f"image must be uint8, got {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or len(size) != 2 or min(*size, *image.shape) < 1:
        raise ValueError(f"image must be [H, W, 3], sides at least 1, got {list(image.shape)} and size {tuple(size)}")
    if image.shape[:2] == tuple(size):
        return image.copy(order="C")  # the passes would give the same values
    image = np.require(image, requirements=["C", "W"])  # writable only because PyTorch warns otherwise
    old = image.shape[:2]
    if cpu.ISA:
        axes = [_table(*sides) for sides in zip(old, size, strict=True)]
        return _ops.bicubic_resize(torch.from_numpy(image), *axes[0], *axes[1]).numpy()
    result = Image.frombuffer("RGB", old[::-1], image, "raw", "RGB", 0, 1)
    if pillow_takes_height_first(old, size):  # a call for the width alone forces the order
        result = result.resize((size[1], old[0]), Image.Resampling.BICUBIC)
    result = result.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.frombuffer(result.tobytes(), np.uint8).reshape(*size, 3)


def pillow_takes_height_first(old: Sequence[int], new: Sequence[int]) -> bool:
    """Return whether Pillow 13 and later resize (height, width) from old to new with the height first.

    Source: python-pillow/Pillow pull request 9549; the rule was observed in Pillow 13.0.
    """
    return old[0] > new[0] and old[0] - new[0] > 2 * (old[1] - new[1])


def resize_crops(crops: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resize crops of different sizes, padded to a common one, the width first.

    Args:
        crops: uint8 [..., H, W]; the values in the padding do not matter.
        rows: [..., height, H], the matrix of each crop (`coefficients`); broadcasts.
        columns: [..., width, W], likewise.

    Returns:
        uint8 [..., height, width].
    """
    narrow = _to_8_bits(crops.double() @ columns.double().mT)
    return _to_8_bits(rows.double() @ narrow).to(torch.uint8)


def coefficients(size_in: int, size_out: int, padded: int) -> np.ndarray:
    """Return the matrix of one pass, int32 [size_out, padded] in units of 2^-22; columns beyond size_in are 0."""
    return matrix(*_taps(size_in, size_out), padded)


def shorter_side(shape: Size, side: int) -> Size:
    """Return the size with the shorter side `side` and the longer one int(side * longer / shorter)."""
    height, width = shape
    other = int(side * max(shape) / min(shape))
    return (side, other) if height <= width else (other, side)


def _along_height(image: Tensor, height: int) -> Tensor:
    return weighted(image.mT, *_taps(image.shape[-2], height)).mT


def weighted(image: Tensor, first: np.ndarray, weight: np.ndarray) -> Tensor:
    """Weigh pixels along the width.

    Args:
        image: uint8 [..., H, W].
        first: [width], the first pixel that each output reads, ascending.
        weight: int32 [width, taps] in units of 2^-22; 0 for pixels beyond the image.

    Returns:
        uint8 [..., H, width], rounded and clipped.
    """
    blocks = []
    for start in range(0, len(first), _BLOCK):
        begin, taps = first[start : start + _BLOCK], weight[start : start + _BLOCK]
        part = image[..., begin[0] : begin[-1] + taps.shape[1]].double()
        product = torch.from_numpy(matrix(begin - begin[0], taps, part.shape[-1])).to(image.device)
        blocks.append(_to_8_bits(part @ product.double().mT).to(torch.uint8))
    return torch.cat(blocks, -1)


def matrix(first: np.ndarray, weight: np.ndarray, columns: int) -> np.ndarray:
    """Make the matrix int32 [width, columns] of what `weighted` does; arguments as there."""
    taps = weight.shape[1]
    made = np.zeros((len(first), columns + taps), np.int32)  # unused taps may lie beyond the input
    made[np.arange(len(first))[:, None], first[:, None] + np.arange(taps)] = weight
    return made[:, :columns]


def _to_8_bits(total: Tensor) -> Tensor:
    return total.add_(1 << (_BITS - 1)).mul_(2.0**-_BITS).floor_().clamp_(0, 255)


@lru_cache(maxsize=4096)
def _taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each output pixel's first input pixel [size_out] and coefficients int32 [size_out, taps].

    The double operations and their order are Pillow's, because a coefficient may lie close to a half.
    """
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support = _SUPPORT * stretch
    centre = (np.arange(size_out) + 0.5) * scale
    first = (centre - support + 0.5).astype(np.int64).clip(0)
    count = (centre + support + 0.5).astype(np.int64).clip(max=size_in) - first
    weight = np.zeros((size_out, count.max()))
    total = np.zeros(size_out)
    for tap in range(weight.shape[1]):  # in this order, because another order of additions would round differently
        weight[:, tap] = np.where(tap < count, _cubic((tap + first - centre + 0.5) * (1.0 / stretch)), 0.0)
        total += weight[:, tap]
    weight /= total[:, None]
    return first, np.trunc(weight * (1 << _BITS) + np.where(weight < 0, -0.5, 0.5)).astype(np.int32)


@lru_cache(maxsize=1024)
def _table(size_in: int, size_out: int) -> tuple[Tensor, Tensor]:
    """Return `_taps` as the kernel takes them, int64 [size_out] and float64 [size_out, taps]."""
    first, weight = _taps(size_in, size_out)
    return torch.from_numpy(first), torch.from_numpy(weight.astype(np.float64))


def _cubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
