"""Decode on a regular grid, without a coordinate tensor, in 2-D tiles that share latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from liif_fast.coord import centres_at

from . import host
from .decode import decode_backward
from .network import first_layer, hidden_layers, last_layer
from .plan import centre, corners

Pair, Window = tuple[int, int], tuple[int, int, int, int]
SIZES = ["keep_limit", "grid_height", "grid_width", "top", "left", "out_height", "out_width", "cell_image", "cell_axis",
         "height", "width", "p_top", "p_left", "p_height", "p_width", "saved_rows"]  # fmt: skip


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["cell"])
def render_kernel(
    p, cell, affine, weights, biases, last, last_bias, out, saved,
    keep_limit, top, left, out_height, out_width, cell_image, cell_axis,
    grid_row_step, grid_row_origin, grid_column_step, grid_column_origin,
    height, row_step, row_origin, row_minus, row_plus,
    width, column_step, column_origin, column_minus, column_plus,
    p_top, p_left, p_height, p_width, saved_rows,
    WIDTH: tl.constexpr, OUT: tl.constexpr, OUT_PADDED: tl.constexpr, LAYERS: tl.constexpr, WIDEST: tl.constexpr,
    ENSEMBLE: tl.constexpr, CELL: tl.constexpr, SAVE: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Decode pixels (top, left) + [out_height, out_width] of a grid into out [B, OUT, out_height, out_width].

    With SAVE, a tile is one pixel high, so that its rows are adjacent. Pixels whose number in
    [B, out_height, out_width] is below keep_limit save their activations.
    """
    CORNERS: tl.constexpr = 4 if ENSEMBLE else 1
    QUERIES: tl.constexpr = ROWS // CORNERS
    TILE_HEIGHT: tl.constexpr = QUERIES // TILE_WIDTH
    across = tl.cdiv(out_width, TILE_WIDTH)
    tile = tl.program_id(0)
    down = tile // across
    tiles_down = tl.cdiv(out_height, TILE_HEIGHT)
    image = (down // tiles_down).to(tl.int64)
    tile_y, tile_x = down % tiles_down * TILE_HEIGHT, tile % across * TILE_WIDTH
    row = tl.arange(0, ROWS)
    pixel = row // CORNERS
    pixel_y, pixel_x = tile_y + pixel // TILE_WIDTH, tile_x + pixel % TILE_WIDTH
    valid = (pixel_y < out_height) & (pixel_x < out_width)
    y, x, rel_y, rel_x, weight = corners(
        centre(top + pixel_y, grid_row_step, grid_row_origin),
        centre(left + pixel_x, grid_column_step, grid_column_origin),
        row % CORNERS,
        height, row_step, row_origin, row_minus, row_plus,
        width, column_step, column_origin, column_minus, column_plus,
        ENSEMBLE,
    )  # fmt: skip
    cell_y, cell_x = rel_y, rel_x
    if CELL:  # an image has one cell, whose part of the first layer is a row vector
        cell_y = tl.full((1,), 1.0, tl.float32) * (tl.load(cell + image * cell_image) * height.to(tl.float32))
        cell_x = tl.full((1,), 1.0, tl.float32) * (
            tl.load(cell + image * cell_image + cell_axis) * width.to(tl.float32)
        )
    latent = (image * p_height + (y - p_top)) * p_width + (x - p_left)
    number = (image * out_height + tile_y) * out_width + tile_x  # number of the tile's first pixel
    saved += number * (CORNERS * WIDEST)
    saved_count = tl.minimum(tl.minimum(keep_limit - number, out_width - tile_x), QUERIES).to(tl.int32) * CORNERS
    h = first_layer(
        p, latent, valid, rel_y, rel_x, cell_y, cell_x, affine, saved, saved_count,
        WIDTH, CELL, SAVE, WIDEST, ROWS, BLOCK, BLOCKS,
    )  # fmt: skip
    h = hidden_layers(
        h, weights, biases, saved, saved_rows, saved_count,
        LAYERS, SAVE, WIDEST, ROWS, BLOCK, BLOCKS, PRECISION,
    )  # fmt: skip
    result = last_layer(h, weight, last, last_bias, ROWS, CORNERS, BLOCK, BLOCKS, OUT_PADDED, PRECISION)
    pixel, channel = tl.arange(0, QUERIES), tl.arange(0, OUT_PADDED)
    pixel_y, pixel_x = tile_y + pixel // TILE_WIDTH, tile_x + pixel % TILE_WIDTH
    mask = ((pixel_y < out_height) & (pixel_x < out_width))[:, None] & (channel < OUT)[None, :]
    at = ((image * OUT + channel[None, :]) * out_height + pixel_y[:, None]) * out_width + pixel_x[:, None]
    tl.store(out + at, result, mask=mask)


def _split(numbers: Sequence[int]) -> tuple[Pair, Pair, Pair, Window]:
    """Return the map's shape, the origin of P, the grid's size and its window, from the operator's arguments."""
    a, b, c, d, e, f, *window = numbers
    return (a, b), (c, d), (e, f), tuple(window)


def render(
    p: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ensemble: bool,
    grid: Sequence[int],
    steps: Sequence[float],
    saved_shape: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the window of the grid, [B, out, h, w], float32, and the first pixels' activations.

    Args:
        p: [B, h, w, hidden], a window of the map.
        grid, steps: as in the operator (liif_fast/ops/decode.py).
        saved_shape: shape of the activations, [hidden layers, rows, the widest layer].
    """
    shape, origin, size, (top, left, height, width) = _split(grid)
    batch = p.shape[0]
    widest, corners = host.widest(weights), 4 if ensemble else 1
    out = torch.empty((batch, weights[-1].shape[0], height, width), dtype=torch.float32, device=p.device)
    saved = p.new_empty(*saved_shape)
    keep = saved.shape[1] // corners
    form = host.form("save" if keep else "forward", widest, p)
    network = host.network(weights, biases, form, 2 if cell is None else 4)
    queries = form.rows // corners
    tile_width = queries if keep else min(queries, 8)
    tiles = batch * triton.cdiv(height, queries // tile_width) * triton.cdiv(width, tile_width)
    if out.numel():
        with host.on(p):
            render_kernel[(tiles,)](
                p, p if cell is None else cell, *network, out, saved,
                keep, top, left, height, width, *((0, 0) if cell is None else cell.stride()),
                *(steps or (*host.axis(size[0])[1:3], *host.axis(size[1])[1:3])),
                *host.axis(shape[0]), *host.axis(shape[1]), *origin, p.shape[1], p.shape[2], host.layer_rows(saved),
                WIDTH=p.shape[3], OUT=out.shape[1], OUT_PADDED=network.last.shape[1], LAYERS=network.weights.shape[0],
                WIDEST=widest, ENSEMBLE=ensemble, CELL=cell is not None, SAVE=keep > 0,
                TILE_WIDTH=tile_width, **host.tile(form, p.dtype),
            )  # fmt: skip
    return out, saved


def render_backward(
    grad: Tensor,
    p: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    ensemble: bool,
    grid: Sequence[int],
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of `decode_backward` at the pixels, but none at the corners; grad [B, out, h, w]."""
    shape, origin, size, (top, left, height, width) = _split(grid)
    rows, columns = (
        centres_at(torch.arange(start, start + count, device=p.device), n)
        for start, count, n in zip((top, left), (height, width), size, strict=True)
    )
    coord = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1).expand(len(p), -1, -1)
    cells = None if cell is None else cell.unsqueeze(1).expand(coord.shape)
    flat = grad.permute(0, 2, 3, 1).flatten(1, 2)
    *grads, _ = decode_backward(
        flat, p, coord, cells, weights, biases, saved, ensemble, [*wanted, False], shape, origin
    )
    return grads
