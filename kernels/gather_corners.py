"""Gather the latents of the corners, rel, the cell and the weights in one pass, for the user's own network."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from liif_fast.coord import plan_corners

from . import host, scatter
from .plan import corners, located

ROWS, BLOCK = 16, 128  # a tile of the output
SIZES = ["queries_total", "queries", "height", "width",
         "coord_image", "coord_query", "coord_axis", "cell_image", "cell_query", "cell_axis"]  # fmt: skip


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["source", "coord", "cell"])
def gather_kernel(
    source, coord, cell, out, out_weight,
    queries_total, queries,
    coord_image, coord_query, coord_axis, cell_image, cell_query, cell_axis,
    height, row_step, row_origin, row_minus, row_plus,
    width, column_step, column_origin, column_minus, column_plus,
    LATENT: tl.constexpr, DEPTH: tl.constexpr, TAPS: tl.constexpr, ENSEMBLE: tl.constexpr, CELL: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write out [rows, DEPTH]: LATENT columns c * TAPS + tap of the latent, then rel, then the scaled cell.

    source [B, height, width, LATENT // TAPS], so that the lanes of a warp read few runs of channels.
    """
    CORNERS: tl.constexpr = 4 if ENSEMBLE else 1
    start, tile_row = tl.program_id(0).to(tl.int64) * (ROWS // CORNERS), tl.arange(0, ROWS)
    row, corner = start * CORNERS + tile_row, tile_row % CORNERS
    valid = start + tile_row // CORNERS < queries_total
    image, inside = located(start, tile_row // CORNERS, queries)
    at = coord + image * coord_image + inside * coord_query
    coord_y = tl.load(at, mask=valid, other=0.0)
    coord_x = tl.load(at + coord_axis, mask=valid, other=0.0)
    y, x, rel_y, rel_x, weight = corners(
        coord_y, coord_x, corner,
        height, row_step, row_origin, row_minus, row_plus,
        width, column_step, column_origin, column_minus, column_plus,
        ENSEMBLE,
    )  # fmt: skip
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel, up, left = column // TAPS, 0, 0
    if TAPS == 9:
        up, left = column % 9 // 3 - 1, column % 3 - 1
    from_y, from_x = (
        y[:, None] + up + tl.zeros_like(column)[None, :],
        x[:, None] + left + tl.zeros_like(column)[None, :],
    )
    mask = valid[:, None] & (column < LATENT)[None, :]
    mask = mask & (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
    where = ((image[:, None] * height + from_y) * width + from_x) * (LATENT // TAPS) + channel[None, :]
    value = tl.load(source + where, mask=mask, other=0.0).to(tl.float32)
    value = tl.where((column == LATENT)[None, :], rel_y[:, None], value)
    value = tl.where((column == LATENT + 1)[None, :], rel_x[:, None], value)
    if CELL:
        at = cell + image * cell_image + inside * cell_query
        cell_y = tl.load(at, mask=valid, other=0.0) * height.to(tl.float32)
        cell_x = tl.load(at + cell_axis, mask=valid, other=0.0) * width.to(tl.float32)
        value = tl.where((column == LATENT + 2)[None, :], cell_y[:, None], value)
        value = tl.where((column == LATENT + 3)[None, :], cell_x[:, None], value)
    mask = valid[:, None] & (column < DEPTH)[None, :]
    tl.store(out + row[:, None] * DEPTH + column[None, :], value.to(out.dtype.element_ty), mask=mask)
    tl.store(out_weight + row, weight, mask=valid & (tl.program_id(1) == 0))


def gather_corners(
    feat: Tensor, coord: Tensor, cell: Tensor | None, unfold: bool, ensemble: bool
) -> tuple[Tensor, Tensor]:
    """Return x [B, Q, K, in_dim] in the dtype of feat and weight [B, Q, K], float32."""
    (batch, queries), (channels, height, width) = coord.shape[:2], feat.shape[1:]
    count, taps = 4 if ensemble else 1, 9 if unfold else 1
    depth = channels * taps + (2 if cell is None else 4)
    out = feat.new_empty(batch, queries, count, depth)
    weight = torch.empty((batch, queries, count), dtype=torch.float32, device=feat.device)
    rows = batch * queries * count
    if rows:
        cells = (0, 0, 0) if cell is None else cell.stride()
        source = feat.permute(0, 2, 3, 1).contiguous()
        with host.on(feat):
            gather_kernel[(triton.cdiv(rows, ROWS), triton.cdiv(depth, BLOCK))](
                source, coord, coord if cell is None else cell, out, weight,
                batch * queries, queries, *coord.stride(), *cells,
                *host.axis(height), *host.axis(width),
                LATENT=channels * taps, DEPTH=depth, TAPS=taps, ENSEMBLE=ensemble, CELL=cell is not None,
                ROWS=ROWS, BLOCK=BLOCK, num_warps=4, num_stages=1, enable_fp_fusion=False,
            )  # fmt: skip
    return out, weight


def gather_corners_backward(
    grad: Tensor, coord: Tensor, channels: int, height: int, width: int, unfold: bool, ensemble: bool
) -> Tensor:
    """Return the gradient of feat [B, C, H, W] from that of x [B, Q, K, in_dim], contiguous; always deterministic."""
    batch = grad.shape[0]
    target = torch.zeros(batch * height * width, channels, dtype=torch.float32, device=grad.device)
    if grad.numel():
        index, _, _ = plan_corners(coord, height, width, ensemble)
        image = torch.arange(batch, device=grad.device).view(-1, 1, 1)
        latents = ((image * height + index[..., 0]) * width + index[..., 1]).flatten()
        taps = 9 if unfold else 1
        rows = grad.flatten(0, 2)[:, : channels * taps]
        if unfold:  # make the channels of a tap adjacent, so that each sector of memory is read once, not nine times
            rows = rows.unflatten(1, (channels, taps)).transpose(1, 2).flatten(1)
        scatter.add_sorted(rows, latents, target, (height, width), taps)
    maps = target.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return maps.to(grad.dtype, memory_format=torch.contiguous_format)
