"""Transparency: no hidden colour bleeds into the edges, and what was opaque stays opaque."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from liif_fast.upscaling.plan import Region


def fill_hidden(pixels: NDArray, top: float) -> NDArray:
    """The colour of an image with alpha, with that of visible pixels where nothing is visible.

    Args:
        pixels: [H, W, C + 1], alpha last, not 0 everywhere.
        top: the value that stands for 1.

    Returns:
        float32 [H, W, C] in [0, 1], or `pixels` without alpha where every pixel is visible.
    """
    if pixels[..., -1].min() > 0:
        return pixels[..., :-1]
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))[None] / top
    return _bleed(planes[:, :-1], planes[:, -1:])[0].permute(1, 2, 0).numpy()


def _bleed(colour: Tensor, alpha: Tensor) -> Tensor:
    """Give fully transparent pixels the colour of the visible ones around, found on ever coarser grids.

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


def within_neighbours(values: Tensor, plane: NDArray, top: float, size: tuple[int, int], region: Region) -> Tensor:
    """Clamp rendered values to the range of the 3x3 pixels of the low-resolution plane around each of them.

    Args:
        values: `[h, w]`, the window `region` of an image of `size`.
        plane: [H, W], what it was rendered from.
        top: the value of the plane that stands for 1.
        size: (height, width) of the output.
        region: (top, left, height, width).
    """
    (height, width), (first, left, h, w) = plane.shape, region
    rows = (torch.arange(first, first + h) * 2 + 1) * height // (2 * size[0])
    cols = (torch.arange(left, left + w) * 2 + 1) * width // (2 * size[1])
    y0, y1 = max(int(rows[0]) - 1, 0), min(int(rows[-1]) + 2, height)
    x0, x1 = max(int(cols[0]) - 1, 0), min(int(cols[-1]) + 2, width)
    near = torch.from_numpy(np.ascontiguousarray(plane[y0:y1, x0:x1], dtype=np.float32))[None, None] / top
    high = F.max_pool2d(near, 3, 1, 1)[0, 0][rows - y0][:, cols - x0]
    low = -F.max_pool2d(-near, 3, 1, 1)[0, 0][rows - y0][:, cols - x0]
    return torch.minimum(torch.maximum(values, low.to(values.device)), high.to(values.device))
