"""Define `decode` and `render`, from P to the output in one pass, and their gradient.

Both save hidden activations of the first queries for the backward pass. The backend chooses the shape `saved` of that
tensor, [..., rows, width]; rows are in the order image, query, corner. The backward pass computes the others'
activations again. Weights and biases are the MLP's, except that the backend `cuda` takes [packed, the last weight]
and [].

`grid` is ten integers: height and width of the map, top and left of P in it, height and width of the grid, and the
window (top, left, height, width) of the grid. `steps` is empty, or `coord.lattice` of a grid over a part of the map,
which has no backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast.call import Extent, Kernels, Place, Switches, Window, fast_allowed, result_dtype, trains
from liif_fast.coord import latent_window, lattice, place_gradients, scaled
from liif_fast.frozen import pack_once
from liif_fast.ops import define, in_turn, only, refuse_second_order, to_inputs, wide, wide_in_turn
from liif_fast.ops.gather import gather, gather_backward
from liif_fast.ops.mlp import mlp, mlp_backward
from liif_fast.ops.project import fast_project, fast_project_backward, project, project_backward


def _decode_fake(
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ensemble: bool,
    saved: Sequence[int],
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    return wide(p, coord.shape[0], coord.shape[1], weights[-1].shape[0]), p.new_empty(saved)


def _render_fake(
    p: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ensemble: bool,
    grid: Sequence[int],
    steps: Sequence[float],
    saved: Sequence[int],
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    return wide(p, p.shape[0], weights[-1].shape[0], grid[8], grid[9]), p.new_empty(saved)


def _grads_fake(p: Tensor, cell: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    return [wide(p, *p.shape), wide(p, 2 if cell is None else 4, p.shape[3]), *wide_in_turn(weights[1:], biases[1:])]


def _decode_backward_fake(
    grad: Tensor,
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    ensemble: bool,
    wanted: Sequence[bool],
    backend: str | None,
) -> list[Tensor]:
    at = wide(p, *coord.shape[:2], 4 if ensemble else 1, 3 if cell is None else 5)
    return only(wanted, [*_grads_fake(p, cell, weights, biases), at])


def _render_backward_fake(
    grad: Tensor,
    p: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    ensemble: bool,
    grid: Sequence[int],
    wanted: Sequence[bool],
    backend: str | None,
) -> list[Tensor]:
    return only(wanted, _grads_fake(p, cell, weights, biases))


def _direct_fake(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    unfold: bool,
    ensemble: bool,
) -> Tensor:
    return wide(feat, coord.shape[0], coord.shape[1], weights[-1].shape[0])


decode_queries = define(
    "decode",
    "(Tensor p, Tensor coord, Tensor? cell, Tensor[] weights, Tensor[] biases, bool ensemble, SymInt[] saved,"
    " str? backend) -> (Tensor, Tensor)",
    _decode_fake,
)
render_window = define(
    "render",
    "(Tensor p, Tensor? cell, Tensor[] weights, Tensor[] biases, bool ensemble, SymInt[] grid, float[] steps,"
    " SymInt[] saved, str? backend) -> (Tensor, Tensor)",
    _render_fake,
)
# Both return the gradients of P, of the first weight's columns for rel and cell [2 or 4, hidden], and of the later
# layers' weight, bias, weight, ...; behind them decode_backward returns the gradients of rel, cell and weight at each
# corner, [B, Q, K, 3 or 5].
_decode_backward = define(
    "decode_backward",
    "(Tensor grad, Tensor p, Tensor coord, Tensor? cell, Tensor[] weights, Tensor[] biases, Tensor saved,"
    " bool ensemble, bool[] wanted, str? backend) -> Tensor[]",
    _decode_backward_fake,
)
_render_backward = define(
    "render_backward",
    "(Tensor grad, Tensor p, Tensor? cell, Tensor[] weights, Tensor[] biases, Tensor saved, bool ensemble,"
    " SymInt[] grid, bool[] wanted, str? backend) -> Tensor[]",
    _render_backward_fake,
)
# Only the backend `cpu` implements it.
_decode_direct = define(
    "decode_direct",
    "(Tensor feat, Tensor coord, Tensor? cell, Tensor[] weights, Tensor[] biases, bool unfold, bool ensemble)"
    " -> Tensor",
    _direct_fake,
)


def _forward(
    inputs: Sequence[Tensor],
    coord: Tensor | None,
    cell: Tensor | None,
    switches: Switches,
    window: Window,
    grid: Sequence[int] | None,
    saved: Sequence[int],
    backend: str | None,
    steps: Sequence[float] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output at `coord`, or without it on `grid`; the saved activations; and P on the window of feat."""
    feat, *params = inputs
    weights, biases = params[: len(params) // 2], params[len(params) // 2 :]
    projected = fast_project if fast_allowed() else project
    p = projected(feat, weights[0], biases[0], switches.feat_unfold, window, backend)
    if grid is None:
        out = decode_queries(p, coord, cell, weights, biases, switches.local_ensemble, saved, backend)
    else:
        out = render_window(p, cell, weights, biases, switches.local_ensemble, grid, steps, saved, backend)
    return *out, p


class _Decoder(torch.autograd.Function):
    """Run `_forward` in `dtype` on feat, the weights and the biases, without keeping a copy of feat in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any,
        coord: Tensor | None,
        cell: Tensor | None,
        switches: Switches,
        window: Window,
        grid: Sequence[int] | None,
        saved: Sequence[int],
        dtype: torch.dtype,
        backend: str | None,
        *inputs: Tensor,
    ) -> Tensor:
        low = [t.to(dtype) for t in inputs]
        out, kept, p = _forward(low, coord, cell, switches, window, grid, saved, backend)
        ctx.switches, ctx.window, ctx.grid, ctx.dtype, ctx.backend = switches, window, grid, dtype, backend
        ctx.fast = fast_allowed()
        ctx.save_for_backward(coord, cell, p, kept, *inputs, *low[1:])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        coord, cell, p, kept, *inputs = ctx.saved_tensors
        (unfold, ensemble, _), (top, left, *_), backend = ctx.switches, ctx.window, ctx.backend
        wanted = ctx.needs_input_grad[8:]
        inputs, params = inputs[: len(wanted)], inputs[len(wanted) :]
        feat, layers = inputs[0].to(ctx.dtype), len(params) // 2
        weights, biases, places = params[:layers], params[layers:], any(ctx.needs_input_grad[:2])
        first = [wanted[0], wanted[1], wanted[1 + layers]]  # what P's gradient gives
        more = [wanted[1], *in_turn([*wanted[2 : 1 + layers], *wanted[2 + layers :]])]
        coord_grad = cell_grad = feat_grad = first_grad = bias_grad = None
        if ctx.grid is None:
            flags = [any(first), *more, places]
            *grads, at = _decode_backward(grad, p, coord, cell, weights, biases, kept, ensemble, flags, backend)
            if places:
                size = feat.shape[2], feat.shape[3], ensemble
                coord_grad, cell_grad = place_gradients(
                    at[..., :-1], at[..., -1], coord, ctx.needs_input_grad[:2], *size
                )
        else:
            flags = [any(first) or places, *more]
            grads = _render_backward(grad, p, cell, weights, biases, kept, ensemble, ctx.grid, flags, backend)
            if places:  # an image has one cell, and P's gradient is that of all its rows
                to_cell = grads[0].sum((1, 2)) @ weights[0][:, -2:].to(grads[0].dtype)
                cell_grad = scaled(to_cell, ctx.grid[0], ctx.grid[1]).to(cell.dtype)
        p_grad, affine_grad, *rest = grads
        if any(first):
            projected_backward = fast_project_backward if ctx.fast else project_backward
            feat_grad, latent_grad, bias_grad = projected_backward(
                p_grad, feat, weights[0], unfold, top, left, first, backend
            )
            first_grad = torch.cat((latent_grad, affine_grad.t()), 1) if wanted[1] else None
        grads = [feat_grad, first_grad, *rest[0::2], bias_grad, *rest[1::2]]
        return coord_grad, cell_grad, *(None,) * 6, *to_inputs(grads, inputs, wanted)


def _decoded(
    kernels: Kernels,
    feat: Tensor,
    coord: Tensor | None,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
    count: int,
    window: Window,
    grid: Sequence[int] | None,
    steps: Sequence[float] = (),
) -> Tensor:
    inputs, backend = [feat, *weights, *biases], kernels.backend
    train, dtype = trains(coord, cell, *inputs), kernels.dtype(feat)
    saved = kernels.saves(weights, 1, count, switches.corners, dtype, train, recompute)
    if train:
        out = _Decoder.apply(coord, cell, switches, window, grid, saved, dtype, backend, *inputs)
    else:
        params = [*weights, *biases]
        low = pack_once(params, ("cast", dtype), lambda: [t.to(dtype) for t in params])
        out, *_ = _forward([feat.to(dtype), *low], coord, cell, switches, window, grid, saved, backend, steps)
    return out.to(result_dtype(feat))


def decode(
    kernels: Kernels,
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
) -> Tensor:
    """Return the decoded queries, [B, Q, out]."""
    window, count = (0, 0, feat.shape[2], feat.shape[3]), coord.shape[0] * coord.shape[1]
    return _decoded(kernels, feat, coord, cell, weights, biases, switches, recompute, count, window, None)


def render(
    kernels: Kernels,
    feat: Tensor,
    size: tuple[int, int],
    region: Window,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
    place: Place | None = None,
    extent: Extent | None = None,
) -> Tensor:
    """Return the window `region` of the grid `size`, [B, out, h, w].

    Only the latents under the region are projected. `place` is the position of feat in a larger map, `extent` the part
    of the map that the grid covers; neither is for training.
    """
    top, left, *shape = (0, 0, feat.shape[2], feat.shape[3]) if place is None else place
    row, column, height, width = latent_window(size, region, (shape[0], shape[1]), extent)
    grid, window = [*shape, row, column, *size, *region], (row - top, column - left, height, width)
    steps = () if extent is None else lattice(size, extent, shape)
    count = feat.shape[0] * region[2] * region[3]
    return _decoded(kernels, feat, None, cell, weights, biases, switches, recompute, count, window, grid, steps)


class _DecodeDirect(torch.autograd.Function):
    """Decode as _Decoder does, for few queries and a large map: neither pass touches latents that no query reads."""

    @staticmethod
    def forward(
        ctx: Any, coord: Tensor, cell: Tensor | None, switches: Switches, dtype: torch.dtype, *inputs: Tensor
    ) -> Tensor:
        ctx.switches, ctx.dtype = switches, dtype
        ctx.save_for_backward(coord, cell, *inputs)
        feat, *params = [t.to(dtype) for t in inputs]
        (unfold, ensemble, _), layers = switches, len(params) // 2
        return _decode_direct(feat, coord, cell, params[:layers], params[layers:], unfold, ensemble)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        coord, cell, *inputs = ctx.saved_tensors
        feat, *params = [t.to(ctx.dtype) for t in inputs]
        (unfold, ensemble, _), layers, wanted = ctx.switches, len(params) // 2, ctx.needs_input_grad[4:]
        x, weight = gather(feat.to(grad.dtype), coord, cell, unfold, ensemble, None)
        rows = (grad.unsqueeze(2) * weight.unsqueeze(3).to(grad.dtype)).flatten(0, 2).contiguous()
        weights, biases, x = params[:layers], params[layers:], x.to(ctx.dtype)
        places = any(ctx.needs_input_grad[:2])
        flags = [wanted[0] or places, *in_turn(wanted[1:])]
        x_grad, *rest = mlp_backward(rows, x.flatten(0, 2), weights, biases, x.new_empty(0, 0), flags, None)
        x_grad = x_grad.view(x.shape).to(grad.dtype) if flags[0] else x_grad
        feat_grad = coord_grad = cell_grad = None
        if wanted[0]:
            feat_grad = gather_backward(x_grad, coord, *feat.shape[1:], unfold, ensemble, None)
        if places:
            out, _ = mlp(x.flatten(0, 2), weights, biases, (0, 0), None)
            grad_weight = (out.view(*weight.shape, -1) * grad.unsqueeze(2)).sum(-1)
            terms, size = 2 if cell is None else 4, (*feat.shape[2:], ensemble)
            coord_grad, cell_grad = place_gradients(
                x_grad[..., -terms:], grad_weight, coord, ctx.needs_input_grad[:2], *size
            )
        grads = to_inputs([feat_grad, *rest[0::2], *rest[1::2]], inputs, wanted)
        return coord_grad, cell_grad, None, None, *grads


def decode_direct(
    kernels: Kernels,
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
) -> Tensor:
    """Decode on the backend `cpu`, projecting only the latents that are read.

    The bits are those of `decode` outside `fast_convolutions`.
    """
    inputs, dtype = [feat, *weights, *biases], kernels.dtype(feat)
    if trains(coord, cell, *inputs):
        out = _DecodeDirect.apply(coord, cell, switches, dtype, *inputs)
    else:
        low, *params = [t.to(dtype) for t in inputs]
        layers, (unfold, ensemble, _) = len(weights), switches
        out = _decode_direct(low, coord, cell, params[:layers], params[layers:], unfold, ensemble)
    return out.to(result_dtype(feat))
