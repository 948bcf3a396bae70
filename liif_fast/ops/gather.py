"""`gather_corners`: lookup, unfolding, rel, cell and weights in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liif_fast.call import Switches
from liif_fast.ops import define, refuse_second_order

define("gather_corners", "(Tensor feat, Tensor coord, Tensor? cell, bool unfold, bool ensemble) -> (Tensor, Tensor)")
define(
    "gather_corners_backward",
    "(Tensor grad, Tensor coord, SymInt channels, SymInt height, SymInt width, bool unfold, bool ensemble) -> Tensor",
)
gather = torch.ops.liif_fast.gather_corners.default
gather_backward = torch.ops.liif_fast.gather_corners_backward.default


@torch.library.register_fake("liif_fast::gather_corners")
def _(feat: Tensor, coord: Tensor, cell: Tensor | None, unfold: bool, ensemble: bool) -> tuple[Tensor, Tensor]:
    corners = 4 if ensemble else 1
    depth = feat.shape[1] * (9 if unfold else 1) + (2 if cell is None else 4)
    return (
        feat.new_empty(coord.shape[0], coord.shape[1], corners, depth),
        coord.new_empty(coord.shape[0], coord.shape[1], corners),
    )


@torch.library.register_fake("liif_fast::gather_corners_backward")
def _(grad: Tensor, coord: Tensor, channels: int, height: int, width: int, unfold: bool, ensemble: bool) -> Tensor:
    return grad.new_empty(grad.shape[0], channels, height, width)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, feat: Tensor, coord: Tensor, cell: Tensor | None, unfold: bool, ensemble: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.shape, ctx.switches = feat.shape[1:], (unfold, ensemble)
        ctx.save_for_backward(coord)
        x, weight = gather(feat, coord, cell, unfold, ensemble)
        ctx.mark_non_differentiable(weight)
        return x, weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        (coord,) = ctx.saved_tensors
        return gather_backward(grad.contiguous(), coord, *ctx.shape, *ctx.switches), None, None, None, None


def gather_corners(
    feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches, train: bool
) -> tuple[Tensor, Tensor]:
    """Return x [B, Q, K, in_dim] and weight [B, Q, K]."""
    function = _Gather.apply if train else gather
    return function(feat, coord, cell, switches.feat_unfold, switches.local_ensemble)
