"""`triton_gather_corners`: lookup, unfolding, rel, cell and weights in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liif_fast.ops import refuse_second_order
from liif_fast.ops.triton import float32, operator


def _fake(feat: Tensor, coord: Tensor, cell: Tensor | None, unfold: bool, ensemble: bool) -> tuple[Tensor, Tensor]:
    corners = 4 if ensemble else 1
    depth = feat.shape[1] * (9 if unfold else 1) + (2 if cell is None else 4)
    x = feat.new_empty(coord.shape[0], coord.shape[1], corners, depth)
    return x, float32(coord, coord.shape[0], coord.shape[1], corners)


def _backward_fake(
    grad: Tensor, coord: Tensor, channels: int, height: int, width: int, unfold: bool, ensemble: bool
) -> Tensor:
    return grad.new_empty(grad.shape[0], height, width, channels).permute(0, 3, 1, 2)


_gather = operator(
    "gather_corners",
    "(Tensor feat, Tensor coord, Tensor? cell, bool unfold, bool ensemble) -> (Tensor, Tensor)",
    _fake,
)
_gather_backward = operator(
    "gather_corners_backward",
    "(Tensor grad, Tensor coord, SymInt channels, SymInt height, SymInt width, bool unfold, bool ensemble) -> Tensor",
    _backward_fake,
)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, feat: Tensor, coord: Tensor, cell: Tensor | None, unfold: bool, ensemble: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.shape, ctx.switches = feat.shape[1:], (unfold, ensemble)
        ctx.save_for_backward(coord)
        x, weight = _gather(feat, coord, cell, unfold, ensemble)
        ctx.mark_non_differentiable(weight)
        return x, weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        (coord,) = ctx.saved_tensors
        return _gather_backward(grad.contiguous(), coord, *ctx.shape, *ctx.switches), None, None, None, None


def gather_corners(
    feat: Tensor, coord: Tensor, cell: Tensor | None, unfold: bool, ensemble: bool, train: bool
) -> tuple[Tensor, Tensor]:
    """Return x [B, Q, K, in_dim] in the dtype of feat, and weight [B, Q, K]."""
    return (_Gather.apply if train else _gather)(feat, coord, cell, unfold, ensemble)
