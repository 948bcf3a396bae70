"""Decode from P to the output at given coordinates, in one pass.

This is the forward pass of `liif_fast.functional.liif_decode` after the projection (kernels/project.py).
kernels/backward.py has its gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import backward, host, scatter
from .network import first_layer, hidden_layers, last_layer
from .plan import corners, located

SIZES = [
    *("first", "limit", "keep_limit", "queries", "height", "width", "p_top", "p_left", "p_height", "p_width"),
    *("coord_image", "coord_query", "coord_axis", "cell_image", "cell_query", "cell_axis", "saved_rows"),
]


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["coord", "cell"])
def decode_kernel(
    p, coord, cell, affine, weights, biases, last, last_bias, out, saved,
    first, limit, keep_limit, queries,
    coord_image, coord_query, coord_axis, cell_image, cell_query, cell_axis,
    height, row_step, row_origin, row_minus, row_plus,
    width, column_step, column_origin, column_minus, column_plus,
    p_top, p_left, p_height, p_width, saved_rows,
    WIDTH: tl.constexpr, OUT: tl.constexpr, OUT_PADDED: tl.constexpr, LAYERS: tl.constexpr, WIDEST: tl.constexpr,
    ENSEMBLE: tl.constexpr, CELL: tl.constexpr, SAVE: tl.constexpr, WRITE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Decode queries first..limit of [B * queries]; those before keep_limit save activations, indexed from first."""
    CORNERS: tl.constexpr = 4 if ENSEMBLE else 1
    QUERIES: tl.constexpr = ROWS // CORNERS
    start = first + tl.program_id(0).to(tl.int64) * QUERIES
    row = tl.arange(0, ROWS)
    query = start + row // CORNERS
    valid = query < limit
    image, inside = located(start, row // CORNERS, queries)
    at = coord + image * coord_image + inside * coord_query
    coord_y = tl.load(at, mask=valid, other=0.0)
    coord_x = tl.load(at + coord_axis, mask=valid, other=0.0)
    y, x, rel_y, rel_x, weight = corners(
        coord_y, coord_x, row % CORNERS,
        height, row_step, row_origin, row_minus, row_plus,
        width, column_step, column_origin, column_minus, column_plus,
        ENSEMBLE,
    )  # fmt: skip
    cell_y, cell_x = rel_y, rel_x
    if CELL:
        at = cell + image * cell_image + inside * cell_query
        cell_y = tl.load(at, mask=valid, other=0.0) * height.to(tl.float32)
        cell_x = tl.load(at + cell_axis, mask=valid, other=0.0) * width.to(tl.float32)
    latent = (image * p_height + (y - p_top)) * p_width + (x - p_left)
    saved += (start - first) * (CORNERS * WIDEST)
    saved_count = tl.minimum(keep_limit - start, QUERIES).to(tl.int32) * CORNERS
    h = first_layer(
        p, latent, valid, rel_y, rel_x, cell_y, cell_x, affine, saved, saved_count,
        WIDTH, CELL, SAVE, WIDEST, ROWS, BLOCK, BLOCKS,
    )  # fmt: skip
    h = hidden_layers(
        h, weights, biases, saved, saved_rows, saved_count,
        LAYERS, SAVE, WIDEST, ROWS, BLOCK, BLOCKS, PRECISION,
    )  # fmt: skip
    if WRITE:
        result = last_layer(h, weight, last, last_bias, ROWS, CORNERS, BLOCK, BLOCKS, OUT_PADDED, PRECISION)
        target, channel = start + tl.arange(0, QUERIES), tl.arange(0, OUT_PADDED)
        mask = (target < limit)[:, None] & (channel < OUT)[None, :]
        tl.store(out + target[:, None] * OUT + channel[None, :], result, mask=mask)


def launch(
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    network: host.Network,
    form: host.Form,
    ensemble: bool,
    shape: tuple[int, int],
    origin: tuple[int, int],
    queries: range,
    widest: int,
    out: Tensor | None,
    saved: Tensor,
) -> None:
    """Decode the queries numbered `queries` of [B * Q] into out [B, Q, out_dim], saving as many as fit into `saved`.

    Args:
        p: [B, h, w, hidden], the window of the map `shape` at `origin`.
        saved: [hidden layers, rows, widest].
    """
    step = form.rows // (4 if ensemble else 1)
    grid = (triton.cdiv(len(queries), step),)
    if not grid[0]:
        return
    kept = queries.start + saved.shape[1] // (4 if ensemble else 1)
    cells = (0, 0, 0) if cell is None else cell.stride()
    with host.on(p):
        decode_kernel[grid](
            p, coord, coord if cell is None else cell, *network, p if out is None else out, saved,
            queries.start, queries.stop, kept, coord.shape[1], *coord.stride(), *cells,
            *host.axis(shape[0]), *host.axis(shape[1]), *origin, p.shape[1], p.shape[2], host.layer_rows(saved),
            WIDTH=p.shape[3], OUT=1 if out is None else out.shape[2], OUT_PADDED=network.last.shape[1],
            LAYERS=network.weights.shape[0], WIDEST=widest, ENSEMBLE=ensemble, CELL=cell is not None,
            SAVE=saved.shape[1] > 0, WRITE=out is not None, **host.tile(form, p.dtype),
        )  # fmt: skip


def decode(
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ensemble: bool,
    shape: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the output [B, Q, out], float32, and the first queries' activations.

    shape: shape of the activations, [hidden layers, rows, the widest layer].
    """
    batch, queries, _ = coord.shape
    widest = host.widest(weights)
    out = torch.empty((batch, queries, weights[-1].shape[0]), dtype=torch.float32, device=p.device)
    saved = p.new_empty(*shape)
    form = host.form("save" if saved.numel() else "forward", widest, p)
    network = host.network(weights, biases, form, 2 if cell is None else 4)
    launch(
        p,
        coord,
        cell,
        network,
        form,
        ensemble,
        (p.shape[1], p.shape[2]),
        (0, 0),
        range(batch * queries),
        widest,
        out,
        saved,
    )
    return out, saved


def decode_backward(
    grad: Tensor,
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    ensemble: bool,
    wanted: Sequence[bool],
    shape: tuple[int, int] | None = None,
    origin: tuple[int, int] = (0, 0),
) -> list[Tensor]:
    """Return the gradients of P, of the parameters, and those at the corners, all float32; grad [B, Q, out].

    Args:
        wanted: for each returned gradient, whether to compute it; the others are empty.
        shape, origin: P is the window at `origin` of a map of this shape; by default P is the whole map.

    Returns:
        The gradient of P; of the first layer's last 2 or 4 columns, [2 or 4, hidden]; of weight, bias, ... of the later
        layers; and at the corners, [B, Q, K, 3 or 5], those of rel, of the cell if there is one, and of the weight.
    """
    corner_count, widest = 4 if ensemble else 1, host.widest(weights)
    plan = backward.Plan(p, coord, cell, shape or (p.shape[1], p.shape[2]), origin, corner_count)
    form = host.form("recompute", widest, saved)
    of_p, *of_layers, places = wanted
    p_grad = torch.zeros(p.shape if of_p else 0, dtype=torch.float32, device=p.device)
    at = p_grad.new_empty((*coord.shape[:2], corner_count, plan.affine + 1) if places else 0)

    @functools.cache  # laid out only if some activations were not kept
    def network() -> host.Network:
        return host.network(weights, biases, form, plan.affine)

    def recompute(run: slice, activations: Tensor) -> None:
        queries = range(run.start, run.stop)
        launch(p, coord, cell, network(), form, ensemble, plan.shape, origin, queries, widest, None, activations)

    def receive(run: slice, dz: Tensor, latents: Tensor, _: Tensor) -> None:
        scatter.add(dz, latents, p_grad.view(-1, dz.shape[1]))

    flat, rows = grad.float().flatten(0, 1).contiguous(), at.view(-1, plan.affine + 1) if places else None
    layers = backward.backward(
        recompute, receive if of_p else None, flat, weights, biases, saved, of_layers, plan, rows
    )
    return [p_grad, *layers, at]
