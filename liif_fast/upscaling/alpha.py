"""Preserve transparency and gray: hidden colours do not bleed, opaque pixels stay opaque, gray ones gray."""

from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from liif_fast.images import Part
from liif_fast.images.picture import in_memory
from liif_fast.upscaling.sizes import Frame


def is_gray(pixels: NDArray | Part) -> bool:
    """Return whether R, G and B are equal in every visible pixel of an image.

    Args:
        pixels: [H, W, 3], or [H, W, 4] with alpha last; if alpha is 0 everywhere, every pixel counts. A part stands
            for its whole picture, so that a region is rendered as in the whole; a part with alpha has visible pixels.
    """
    blocks = chain([pixels.pixels], pixels.picture.blocks()) if isinstance(pixels, Part) else [pixels]
    hides = pixels.shape[2] == 4 and bool(in_memory(pixels)[..., 3].any())
    return all(_row_is_gray(row, hides) for block in blocks for row in block)


def _row_is_gray(row: NDArray, hides: bool) -> bool:
    red, green, blue, *alpha = row.T
    gray = (red == green) & (green == blue)
    return bool((gray | (alpha[0] == 0) if hides else gray).all())


def fill_hidden(pixels: NDArray | Part, top: float) -> NDArray | Part:
    """Return the colour of an image with alpha; transparent pixels take the colour of visible ones.

    Args:
        pixels: [H, W, C + 1], alpha last, not 0 everywhere; in a part every pixel is visible.
        top: the value that means 1.

    Returns:
        float32 [H, W, C] in [0, 1], or `pixels` without alpha if every pixel is visible.
    """
    if isinstance(pixels, Part) or pixels[..., -1].min() > 0:
        return pixels[..., :-1]
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))[None] / top
    return _bleed(planes[:, :-1], planes[:, -1:])[0].permute(1, 2, 0).numpy()


def _bleed(colour: Tensor, alpha: Tensor) -> Tensor:
    """Give fully transparent pixels the colour of visible ones around, found on successively coarser grids.

    Args:
        colour: `[1, C, H, W]`.
        alpha: `[1, 1, H, W]`, not 0 everywhere.

    Returns:
        The colour, unchanged where alpha is not 0.
    """
    if alpha.min() > 0:
        return colour
    weight = F.avg_pool2d(alpha, 2, ceil_mode=True)
    coarse = F.avg_pool2d(colour * alpha, 2, ceil_mode=True) / weight.clamp_min(torch.finfo(torch.float32).tiny)
    filled = F.interpolate(_bleed(coarse, weight), size=colour.shape[2:], mode="bilinear")
    return torch.where(alpha > 0, colour, filled)


def within_neighbours(values: Tensor, plane: NDArray | Part, top: float, frame: Frame) -> Tensor:
    """Clamp rendered alpha to the range of the low-resolution plane around each pixel.

    The range is that of the 3x3 nearest pixels. If the nearest pixel and the bicubic interpolation are both 0 or both
    1, the result is too, because a model rings around an outline.

    Args:
        values: `[h, w]`, the window of the frame.
        plane: [H, W, 1], the alpha it was rendered from.
        top: the value of the plane that means 1.
        frame: the output and its window.
    """
    rows, row_taps, row_weights = _positions(frame, 0, plane.shape)
    cols, col_taps, col_weights = _positions(frame, 1, plane.shape)
    y0, x0 = int(row_taps.min()), int(col_taps.min())
    y1, x1 = int(row_taps.max()) + 1, int(col_taps.max()) + 1
    near = torch.from_numpy(np.ascontiguousarray(plane[y0:y1, x0:x1][..., 0], dtype=np.float32)) / top
    rows, row_taps, cols, col_taps = rows - y0, row_taps - y0, cols - x0, col_taps - x0
    high = F.max_pool2d(near[None, None], 3, 1, 1)[0, 0][rows][:, cols]
    low = -F.max_pool2d(-near[None, None], 3, 1, 1)[0, 0][rows][:, cols]
    levels = top if top > 1 else 65535
    near = (near * levels).round()
    nearest = near[rows][:, cols]
    wide = _sum_of_four(near.T, col_taps, col_weights, levels).T
    bicubic = _sum_of_four(wide, row_taps, row_weights, levels)
    high[(nearest == 0) & (bicubic == 0)] = 0
    low[(nearest == levels) & (bicubic == levels)] = 1
    return torch.minimum(torch.maximum(values, low.to(values.device)), high.to(values.device))


def _positions(frame: Frame, axis: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Locate a window's pixels in the input of (height, width, ...) along one axis, 0 or 1.

    Returns:
        The nearest input pixel `[count]`, the four that the bicubic kernel reads `[4, count]`, and their weights
        `[4, count]` by Keys' kernel with a = -0.5, without the pixels outside, as in Pillow.
    """
    size_in, size_out, first, count = shape[axis], frame.size[axis], frame.region[axis], frame.region[axis + 2]
    start, length = (0.0, size_in) if frame.extent is None else (frame.extent[axis], frame.extent[axis + 2])
    # Exact up to one division of whole numbers, unless the grid covers a fraction: floor makes no mistake.
    centre = start + (torch.arange(first, first + count).double() * 2 + 1) * length / (2 * size_out)
    taps = (centre - 0.5).floor().long() + torch.arange(-1, 3)[:, None]
    x = (taps + 0.5 - centre).abs()
    weights = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weights = weights * ((taps >= 0) & (taps < size_in))
    nearest = centre.floor().long().clamp(max=size_in - 1)  # a sum may be rounded up to the border
    return nearest, taps.clamp(0, size_in - 1), (weights / weights.sum(0)).float()


def _sum_of_four(plane: Tensor, taps: Tensor, weights: Tensor, levels: float) -> Tensor:
    """Weigh four rows of a plane `[n, m]` for each of `count` rows, rounded to levels as in Pillow.

    The sum has a fixed order, so every window gives the same bits.
    """
    first, *others = (plane[taps[k]] * weights[k, :, None] for k in range(4))
    return (sum(others, first) + 0.5).floor().clamp(0, levels)
