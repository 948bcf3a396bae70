"""Rendering a regular grid through any per-query function, strip by strip."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from liif_fast.checks import check_grid, grid_cell
from liif_fast.coord import centres

STRIP_QUERIES = 1 << 16  # of one image; bounds the memory of a strip, not the result


def render_by_query(
    query: Callable[[Tensor, Tensor], Tensor],
    feat: Tensor,
    size: Sequence[int],
    region: Sequence[int] | None,
    cell: Tensor | Sequence[float] | None,
) -> Tensor:
    """An image of a grid's window from a function of coordinates.

    Args:
        query: (coord `[B, Q, 2]`, cell `[B, Q, 2]`) to `[B, Q, out]`.
        feat: `[B, C, H, W]`, what is queried; gives the batch size and the device.
        size: (H_out, W_out) of the whole grid.
        region: (top, left, height, width) of the window, or None for the whole grid.
        cell: (row, column), a pair or float32 `[2]` or `[B, 2]`; None means 2 / size.

    Returns:
        `[B, out, height, width]`.

    Raises:
        ValueError, TypeError: size, region or cell cannot be used.
    """
    height, width, (top, left, h, w) = check_grid(size, region)
    cells = grid_cell(feat, height, width, cell)[:, None]
    rows = centres(height, device=feat.device)[top : top + h]
    columns = centres(width, device=feat.device)[left : left + w]
    strips = []
    for strip in rows.split(max(1, STRIP_QUERIES // max(1, w))) if h else (rows,):
        coord = torch.stack(torch.meshgrid(strip, columns, indexing="ij"), -1).reshape(1, -1, 2)
        out = query(coord.expand(len(feat), -1, 2), cells.expand(-1, coord.shape[1], 2))
        strips.append(out.transpose(1, 2).unflatten(2, (len(strip), w)))
    return torch.cat(strips, 2)
