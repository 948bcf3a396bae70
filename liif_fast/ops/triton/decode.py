"""`triton_decode` and `triton_render`: from P to the output in one pass, and their gradient.

Both save the hidden activations of the first `keep` queries ([layers, rows, widest], rows in the order image, query,
corner); for the others the backward pass computes them again, chunk by chunk. Outputs and gradients are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast.call import Place, Switches, Window
from liif_fast.coord import latent_window
from liif_fast.ops import refuse_second_order
from liif_fast.ops.triton import cast, float32, operator, saved
from liif_fast.ops.triton.project import project, project_backward

_GRID = (
    "SymInt map_height, SymInt map_width, SymInt p_top, SymInt p_left, SymInt grid_height, SymInt grid_width,"
    " SymInt top, SymInt left, SymInt height, SymInt width"
)


def _fake(
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ensemble: bool,
    keep: int,
) -> tuple[Tensor, Tensor]:
    out = float32(p, coord.shape[0], coord.shape[1], weights[-1].shape[0])
    return out, saved(p, weights, keep * (4 if ensemble else 1))


def _render_fake(
    p: Tensor, cell: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor], ensemble: bool, *grid: int
) -> tuple[Tensor, Tensor]:
    *_, height, width, keep = grid
    return float32(p, p.shape[0], weights[-1].shape[0], height, width), saved(p, weights, keep * (4 if ensemble else 1))


def _grads_fake(p: Tensor, cell: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    rest = [float32(t, *t.shape) for pair in zip(weights[1:], biases[1:], strict=True) for t in pair]
    return [float32(p, *p.shape), float32(p, 2 if cell is None else 4, p.shape[3]), float32(p, p.shape[3]), *rest]


def _backward_fake(
    grad: Tensor,
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    kept: Tensor,
    ensemble: bool,
) -> list[Tensor]:
    return _grads_fake(p, cell, weights, biases)


def _render_backward_fake(
    grad: Tensor,
    p: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    kept: Tensor,
    ensemble: bool,
    *grid: int,
) -> list[Tensor]:
    return _grads_fake(p, cell, weights, biases)


_decode = operator(
    "decode",
    "(Tensor p, Tensor coord, Tensor? cell, Tensor[] weights, Tensor[] biases, bool ensemble, SymInt keep)"
    " -> (Tensor, Tensor)",
    _fake,
)
_decode_backward = operator(
    "decode_backward",
    "(Tensor grad, Tensor p, Tensor coord, Tensor? cell, Tensor[] weights, Tensor[] biases, Tensor saved,"
    " bool ensemble) -> Tensor[]",
    _backward_fake,
)
_render = operator(
    "render",
    f"(Tensor p, Tensor? cell, Tensor[] weights, Tensor[] biases, bool ensemble, {_GRID}, SymInt keep)"
    " -> (Tensor, Tensor)",
    _render_fake,
)
_render_backward = operator(
    "render_backward",
    "(Tensor grad, Tensor p, Tensor? cell, Tensor[] weights, Tensor[] biases, Tensor saved, bool ensemble,"
    f" {_GRID}) -> Tensor[]",
    _render_backward_fake,
)


def _input_grads(grads: Sequence[Tensor], low: Sequence[Tensor], unfold: bool, window: Window) -> list[Tensor]:
    """Return the gradients of feat and of the parameters, from those of P and of what follows it.

    Args:
        low: feat and the parameters as the kernels had them.
        window: of the latents that P holds.
    """
    p_grad, affine_grad, first_bias_grad, *rest = grads
    feat, first = low[0], low[1]
    feat_grad, latent_grad = project_backward(p_grad.to(feat.dtype), feat, first, unfold, window[0], window[1])
    return [feat_grad, torch.cat((latent_grad, affine_grad.t()), 1), first_bias_grad, *rest]


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        coord: Tensor,
        cell: Tensor | None,
        switches: Switches,
        keep: int,
        dtype: torch.dtype,
        *inputs: Tensor,
    ) -> Tensor:
        feat, *params = [t.to(dtype) for t in inputs]
        weights, biases = params[0::2], params[1::2]
        p = project(feat, weights[0], biases[0], switches.feat_unfold, 0, 0, feat.shape[2], feat.shape[3])
        out, kept = _decode(p, coord, cell, weights, biases, switches.local_ensemble, keep)
        ctx.switches, ctx.dtype = switches, dtype
        ctx.save_for_backward(coord, cell, p, kept, *inputs)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        coord, cell, p, kept, *inputs = ctx.saved_tensors
        low = [t.to(ctx.dtype) for t in inputs]
        weights, biases = low[1::2], low[2::2]
        grads = _decode_backward(grad, p, coord, cell, weights, biases, kept, ctx.switches.local_ensemble)
        window = (0, 0, low[0].shape[2], low[0].shape[3])
        all_grads = _input_grads(grads, low, ctx.switches.feat_unfold, window)
        return None, None, None, None, None, *cast(all_grads, inputs, ctx.needs_input_grad[5:])


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cell: Tensor | None,
        size: tuple[int, int],
        region: Window,
        switches: Switches,
        keep: int,
        dtype: torch.dtype,
        *inputs: Tensor,
    ) -> Tensor:
        out, kept, p, ctx.window = _rendered(cell, size, region, switches, keep, [t.to(dtype) for t in inputs])
        ctx.switches, ctx.size, ctx.region, ctx.dtype = switches, size, region, dtype
        ctx.save_for_backward(cell, p, kept, *inputs)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        cell, p, kept, *inputs = ctx.saved_tensors
        low, window = [t.to(ctx.dtype) for t in inputs], ctx.window
        weights, biases, shape = low[1::2], low[2::2], low[0].shape[2:]
        grads = _render_backward(
            grad, p, cell, weights, biases, kept, ctx.switches.local_ensemble,
            *shape, *window[:2], *ctx.size, *ctx.region,
        )  # fmt: skip
        all_grads = _input_grads(grads, low, ctx.switches.feat_unfold, window)
        return None, None, None, None, None, None, *cast(all_grads, inputs, ctx.needs_input_grad[6:])


def _rendered(
    cell: Tensor | None,
    size: tuple[int, int],
    region: Window,
    switches: Switches,
    keep: int,
    low: Sequence[Tensor],
    place: Place | None = None,
) -> tuple[Tensor, Tensor, Tensor, Window]:
    feat, *params = low
    weights, biases = params[0::2], params[1::2]
    top, left, *shape = (0, 0, feat.shape[2], feat.shape[3]) if place is None else place
    window = latent_window(size, region, (shape[0], shape[1]))
    p = project(feat, weights[0], biases[0], switches.feat_unfold, window[0] - top, window[1] - left, *window[2:])
    out, kept = _render(p, cell, weights, biases, switches.local_ensemble, *shape, *window[:2], *size, *region, keep)
    return out, kept, p, window


def decode(
    coord: Tensor,
    cell: Tensor | None,
    switches: Switches,
    keep: int,
    dtype: torch.dtype,
    inputs: Sequence[Tensor],
    train: bool,
) -> Tensor:
    """Decode queries, float32 [B, Q, out]; inputs are feat and weight, bias, weight, ..., to be computed in `dtype`."""
    if train:
        return _Decode.apply(coord, cell, switches, keep, dtype, *inputs)
    feat, *params = [t.to(dtype) for t in inputs]
    weights, biases = params[0::2], params[1::2]
    p = project(feat, weights[0], biases[0], switches.feat_unfold, 0, 0, feat.shape[2], feat.shape[3])
    return _decode(p, coord, cell, weights, biases, switches.local_ensemble, 0)[0]


def render(
    size: tuple[int, int],
    region: Window,
    cell: Tensor | None,
    switches: Switches,
    keep: int,
    dtype: torch.dtype,
    inputs: Sequence[Tensor],
    train: bool,
    place: Place | None = None,
) -> Tensor:
    """Decode the window `region` of the grid `size`, float32 [B, out, h, w]; inputs as for `decode`.

    place: (top, left) of feat in a map of (height, width); None, if feat is the whole map, where `train`.
    """
    if train:
        return _Render.apply(cell, size, region, switches, keep, dtype, *inputs)
    return _rendered(cell, size, region, switches, 0, [t.to(dtype) for t in inputs], place)[0]
