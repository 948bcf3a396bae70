"""Define `gather_corners`: lookup, unfolding, rel, cell and weights in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liif_fast.call import Kernels, Switches, autocast_dtype, trains
from liif_fast.coord import place_gradients
from liif_fast.ops import define, refuse_second_order


def _fake(
    feat: Tensor, coord: Tensor, cell: Tensor | None, unfold: bool, ensemble: bool, backend: str | None
) -> tuple[Tensor, Tensor]:
    corners = 4 if ensemble else 1
    depth = feat.shape[1] * (9 if unfold else 1) + (2 if cell is None else 4)
    return (
        feat.new_empty(coord.shape[0], coord.shape[1], corners, depth),
        coord.new_empty(coord.shape[0], coord.shape[1], corners),
    )


def _backward_fake(
    grad: Tensor,
    coord: Tensor,
    channels: int,
    height: int,
    width: int,
    unfold: bool,
    ensemble: bool,
    backend: str | None,
) -> Tensor:
    return grad.new_empty(grad.shape[0], channels, height, width)


gather = define(
    "gather_corners",
    "(Tensor feat, Tensor coord, Tensor? cell, bool unfold, bool ensemble, str? backend) -> (Tensor, Tensor)",
    _fake,
)
gather_backward = define(
    "gather_corners_backward",
    "(Tensor grad, Tensor coord, SymInt channels, SymInt height, SymInt width, bool unfold, bool ensemble,"
    " str? backend) -> Tensor",
    _backward_fake,
)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feat: Tensor, coord: Tensor, cell: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
        ctx.shape, ctx.terms, ctx.options = feat.shape[1:], 2 if cell is None else 4, options
        ctx.save_for_backward(coord)
        x, weight = gather(feat, coord, cell, *options)
        if not (options[1] and ctx.needs_input_grad[1]):  # the weights depend on coord alone; a single one is 1
            ctx.mark_non_differentiable(weight)
        return x, weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_weight: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        (coord,) = ctx.saved_tensors
        feat_grad = coord_grad = cell_grad = None
        if ctx.needs_input_grad[0]:
            feat_grad = gather_backward(grad.contiguous(), coord, *ctx.shape, *ctx.options)
        if any(ctx.needs_input_grad[1:3]):
            size = *ctx.shape[1:], ctx.options[1]
            coord_grad, cell_grad = place_gradients(
                grad[..., -ctx.terms :], grad_weight, coord, ctx.needs_input_grad[1:3], *size
            )
        return feat_grad, coord_grad, cell_grad, None, None, None


def gather_corners(
    kernels: Kernels, feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches
) -> tuple[Tensor, Tensor]:
    """Return the network's input x [B, Q, K, in_dim], float32 under autocast, and the blending weight [B, Q, K]."""
    feat = feat if autocast_dtype(feat) is None else feat.float()
    function = _Gather.apply if trains(feat, coord, cell) else gather
    return function(feat, coord, cell, switches.feat_unfold, switches.local_ensemble, kernels.backend)
