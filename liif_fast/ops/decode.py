"""`decode` and `render`: from P to the output in one pass, and their gradient.

Both save the activations of the hidden layers after the first for the first `keep` queries ([rows, sum of widths], rows
in the order image, query, corner); for the other queries the backward pass computes them again, tile by tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast.call import Place, Switches, Window
from liif_fast.coord import latent_window
from liif_fast.ops import define, refuse_second_order
from liif_fast.ops.gather import gather as _gather
from liif_fast.ops.gather import gather_backward as _gather_backward
from liif_fast.ops.mlp import mlp_backward as _mlp_backward
from liif_fast.ops.mlp import saved_width as mlp_saved_width
from liif_fast.ops.project import project, project_backward

define(
    "decode",
    "(Tensor p, Tensor coord, Tensor? cell, Tensor[] weights, Tensor[] biases, bool ensemble, SymInt keep)"
    " -> (Tensor, Tensor)",
)
define(
    "decode_direct",
    "(Tensor feat, Tensor coord, Tensor? cell, Tensor[] weights, Tensor[] biases, bool unfold, bool ensemble)"
    " -> Tensor",
)
define(
    "render",
    "(Tensor p, Tensor? cell, Tensor[] weights, Tensor[] biases, bool ensemble, SymInt map_height, SymInt map_width,"
    " SymInt p_top, SymInt p_left, SymInt grid_height, SymInt grid_width, SymInt top, SymInt left, SymInt height,"
    " SymInt width, SymInt keep) -> (Tensor, Tensor)",
)
define(
    "decode_backward",
    "(Tensor grad, Tensor p, Tensor coord, Tensor? cell, Tensor[] weights, Tensor[] biases, Tensor saved,"
    " bool ensemble) -> Tensor[]",
)
define(
    "render_backward",
    "(Tensor grad, Tensor p, Tensor? cell, Tensor[] weights, Tensor[] biases, Tensor saved, bool ensemble,"
    " SymInt map_height, SymInt map_width, SymInt p_top, SymInt p_left, SymInt grid_height, SymInt grid_width,"
    " SymInt top, SymInt left, SymInt height, SymInt width) -> Tensor[]",
)
_decode = torch.ops.liif_fast.decode.default
_decode_direct = torch.ops.liif_fast.decode_direct.default
_render = torch.ops.liif_fast.render.default
_decode_backward = torch.ops.liif_fast.decode_backward.default
_render_backward = torch.ops.liif_fast.render_backward.default


def saved_width(weights: Sequence[Tensor]) -> int:
    """Return the activations that a row saves for the backward pass."""
    return sum(weight.shape[0] for weight in weights[1:-1])


def _saved(p: Tensor, weights: Sequence[Tensor], keep: int, ensemble: bool) -> Tensor:
    return p.new_empty(keep * (4 if ensemble else 1), saved_width(weights))


@torch.library.register_fake("liif_fast::decode")
def _(
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ensemble: bool,
    keep: int,
) -> tuple[Tensor, Tensor]:
    batch, queries, _ = coord.shape
    out = p.new_empty(batch, queries, weights[-1].shape[0])
    return out, _saved(p, weights, keep, ensemble)


@torch.library.register_fake("liif_fast::decode_direct")
def _(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    unfold: bool,
    ensemble: bool,
) -> Tensor:
    return feat.new_empty(coord.shape[0], coord.shape[1], weights[-1].shape[0])


@torch.library.register_fake("liif_fast::render")
def _(
    p: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ensemble: bool,
    map_height: int,
    map_width: int,
    p_top: int,
    p_left: int,
    grid_height: int,
    grid_width: int,
    top: int,
    left: int,
    height: int,
    width: int,
    keep: int,
) -> tuple[Tensor, Tensor]:
    out = p.new_empty(p.shape[0], weights[-1].shape[0], height, width)
    return out, _saved(p, weights, keep, ensemble)


def _backward_fake(p: Tensor, cell: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    layers = [t.new_empty(t.shape) for pair in zip(weights[1:], biases[1:], strict=True) for t in pair]
    return [p.new_empty(p.shape), p.new_empty(2 if cell is None else 4, p.shape[3]), *layers]


@torch.library.register_fake("liif_fast::decode_backward")
def _(
    grad: Tensor,
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    ensemble: bool,
) -> list[Tensor]:
    return _backward_fake(p, cell, weights, biases)


@torch.library.register_fake("liif_fast::render_backward")
def _(
    grad: Tensor,
    p: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    ensemble: bool,
    map_height: int,
    map_width: int,
    p_top: int,
    p_left: int,
    grid_height: int,
    grid_width: int,
    top: int,
    left: int,
    height: int,
    width: int,
) -> list[Tensor]:
    return _backward_fake(p, cell, weights, biases)


def _input_grads(
    grads: Sequence[Tensor],
    feat: Tensor,
    first: Tensor,
    unfold: bool,
    window: Window,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of feat and of the parameters (weight, bias, weight, ...), where wanted.

    Args:
        grads: what decode_backward or render_backward returned.
        first: the first layer's weight.
        window: of the latents that P holds.
        wanted: for feat and each parameter.
    """
    p_grad, affine_grad, *rest = grads
    feat_grad, latent_grad, bias_grad = project_backward(
        p_grad, feat, first, unfold, window[0], window[1], (wanted[0], wanted[1], wanted[2])
    )
    first_grad = None if latent_grad is None else torch.cat((latent_grad, affine_grad.t()), 1)
    return feat_grad, first_grad, bias_grad, *(g if want else None for g, want in zip(rest, wanted[3:], strict=True))


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches, keep: int, *params: Tensor
    ) -> Tensor:
        weights, biases = list(params[0::2]), list(params[1::2])
        p = project(feat, weights[0], biases[0], switches.feat_unfold, 0, 0, feat.shape[2], feat.shape[3])
        out, saved = _decode(p, coord, cell, weights, biases, switches.local_ensemble, keep)
        ctx.switches = switches
        ctx.save_for_backward(coord, cell, p, feat, saved, *params)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        coord, cell, p, feat, saved, *params = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], *ctx.needs_input_grad[5:])
        grads = _decode_backward(grad, p, coord, cell, params[0::2], params[1::2], saved, ctx.switches.local_ensemble)
        window = (0, 0, feat.shape[2], feat.shape[3])
        feat_grad, *layers = _input_grads(grads, feat, params[0], ctx.switches.feat_unfold, window, wanted)
        return feat_grad, None, None, None, None, *layers


class _DecodeDirect(torch.autograd.Function):
    """As _Decode where few queries read a large map: neither pass touches latents that no query reads."""

    @staticmethod
    def forward(
        ctx: Any, feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches, *params: Tensor
    ) -> Tensor:
        ctx.switches = switches
        ctx.save_for_backward(coord, cell, feat, *params)
        return decode_direct(feat, coord, cell, params, switches)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        coord, cell, feat, *params = ctx.saved_tensors
        unfold, ensemble = ctx.switches.feat_unfold, ctx.switches.local_ensemble
        x, weight = _gather(feat, coord, cell, unfold, ensemble)
        rows = (grad.unsqueeze(2) * weight.unsqueeze(3).to(grad.dtype)).flatten(0, 2).contiguous()
        x_grad, *layers = _mlp_backward(
            rows, x.flatten(0, 2), params[0::2], params[1::2], x.new_empty(0, mlp_saved_width(params[0::2]))
        )
        feat_grad = None
        if ctx.needs_input_grad[0]:
            feat_grad = _gather_backward(x_grad.view(x.shape), coord, *feat.shape[1:], unfold, ensemble)
        wanted = ctx.needs_input_grad[4:]
        return feat_grad, None, None, None, *(g if want else None for g, want in zip(layers, wanted, strict=True))


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        feat: Tensor,
        cell: Tensor | None,
        size: tuple[int, int],
        region: Window,
        switches: Switches,
        keep: int,
        *params: Tensor,
    ) -> Tensor:
        weights, biases = list(params[0::2]), list(params[1::2])
        out, saved, p, ctx.window = _rendered(feat, cell, size, region, switches, keep, weights, biases, None)
        ctx.switches, ctx.size, ctx.region = switches, size, region
        ctx.save_for_backward(cell, p, feat, saved, *params)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        cell, p, feat, saved, *params = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], *ctx.needs_input_grad[6:])
        weights, biases, window = params[0::2], params[1::2], ctx.window
        ensemble = ctx.switches.local_ensemble
        grads = _render_backward(
            grad, p, cell, weights, biases, saved, ensemble, *feat.shape[2:], *window[:2], *ctx.size, *ctx.region
        )
        feat_grad, *layers = _input_grads(grads, feat, params[0], ctx.switches.feat_unfold, window, wanted)
        return feat_grad, None, None, None, None, None, *layers


def _rendered(
    feat: Tensor,
    cell: Tensor | None,
    size: tuple[int, int],
    region: Window,
    switches: Switches,
    keep: int,
    weights: list[Tensor],
    biases: list[Tensor],
    place: Place | None,
) -> tuple[Tensor, Tensor, Tensor, Window]:
    top, left, *shape = (0, 0, feat.shape[2], feat.shape[3]) if place is None else place
    window = latent_window(size, region, (shape[0], shape[1]))
    held = (window[0] - top, window[1] - left, *window[2:])
    p = project(feat, weights[0], biases[0], switches.feat_unfold, *held)
    out, saved = _render(p, cell, weights, biases, switches.local_ensemble, *shape, *window[:2], *size, *region, keep)
    return out, saved, p, window


def decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    params: Sequence[Tensor],
    switches: Switches,
    train: bool,
    keep: int,
) -> Tensor:
    """Decode queries, [B, Q, out]; params are weight, bias, weight, ... of the MLP."""
    if train:
        return _Decode.apply(feat, coord, cell, switches, keep, *params)
    weights, biases = list(params[0::2]), list(params[1::2])
    p = project(feat, weights[0], biases[0], switches.feat_unfold, 0, 0, feat.shape[2], feat.shape[3])
    return _decode(p, coord, cell, weights, biases, switches.local_ensemble, 0)[0]


def decode_direct(
    feat: Tensor, coord: Tensor, cell: Tensor | None, params: Sequence[Tensor], switches: Switches, train: bool = False
) -> Tensor:
    """As `decode`, bit for bit, projecting only the latents that are read."""
    if train:
        return _DecodeDirect.apply(feat, coord, cell, switches, *params)
    return _decode_direct(
        feat, coord, cell, list(params[0::2]), list(params[1::2]), switches.feat_unfold, switches.local_ensemble
    )


def render(
    feat: Tensor,
    size: tuple[int, int],
    region: Window,
    cell: Tensor | None,
    params: Sequence[Tensor],
    switches: Switches,
    train: bool,
    keep: int,
    place: Place | None = None,
) -> Tensor:
    """Decode the window `region` of the grid `size`, [B, out, h, w]; `place` (not in training) says where feat lies."""
    if train:
        return _Render.apply(feat, cell, size, region, switches, keep, *params)
    return _rendered(feat, cell, size, region, switches, 0, list(params[0::2]), list(params[1::2]), place)[0]
