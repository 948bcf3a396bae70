"""Rendering a regular grid through any per-query function, strip by strip."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from liif_fast.coord import centres

STRIP_QUERIES = 1 << 16  # of one image; bounds the memory of a strip, not the result

Region = tuple[int, int, int, int]


def resolve_region(size: Sequence[int], region: Sequence[int] | None) -> Region:
    """(top, left, height, width) of a window of a grid of `size`; None is the whole grid."""
    height, width = size
    if region is None:
        return 0, 0, height, width
    if len(region) != 4:
        raise ValueError(f"region must be (top, left, height, width), got {tuple(region)}")
    top, left, h, w = region
    if min(top, left, h, w) < 0 or top + h > height or left + w > width:
        raise ValueError(f"region must lie inside size {(height, width)}, got {tuple(region)}")
    return top, left, h, w


def resolve_cell(
    cell: Tensor | Sequence[float] | None, size: Sequence[int], batch: int, device: torch.device
) -> Tensor:
    """A rendered image's cell as float32 `[batch, 2]`; None is the grid's own, 2 / size."""
    pair = [2 / size[0], 2 / size[1]] if cell is None else cell
    return torch.as_tensor(pair, dtype=torch.float32, device=device).expand(batch, 2)


def render_by_query(
    query: Callable[[Tensor, Tensor], Tensor],
    size: Sequence[int],
    region: Sequence[int] | None,
    cell: Tensor | Sequence[float] | None,
    batch: int,
    device: torch.device,
) -> Tensor:
    """An image of a grid's window from a function of coordinates.

    Args:
        query: (coord `[B, Q, 2]`, cell `[B, Q, 2]`) to `[B, Q, out]`.
        size: (H_out, W_out) of the whole grid.
        region: (top, left, height, width) of the window, or None for the whole grid.
        cell: (row, column), a pair or float32 `[2]` or `[B, 2]`; None means 2 / size.
        batch: B.
        device: of the coordinates.

    Returns:
        `[B, out, height, width]`.
    """
    top, left, h, w = resolve_region(size, region)
    cells = resolve_cell(cell, size, batch, device)
    rows = centres(size[0], device=device)[top : top + h]
    cols = centres(size[1], device=device)[left : left + w]
    strips = []
    for strip in rows.split(max(1, STRIP_QUERIES // max(1, w))) if h else (rows,):
        coord = torch.stack(torch.meshgrid(strip, cols, indexing="ij"), -1).reshape(1, -1, 2)
        out = query(coord.expand(batch, -1, 2), cells[:, None].expand(batch, coord.shape[1], 2))
        strips.append(out.transpose(1, 2).reshape(batch, out.shape[2], len(strip), w))
    return torch.cat(strips, 2)
