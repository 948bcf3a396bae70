"""`triton_project`: the first layer's share of the latents, P = W1z z + b1, on a window of the map."""

from __future__ import annotations

from torch import Tensor

from liif_fast.ops.triton import float32, operator


def _fake(
    feat: Tensor, weight: Tensor, bias: Tensor, unfold: bool, top: int, left: int, height: int, width: int
) -> Tensor:
    return feat.new_empty(feat.shape[0], height, width, weight.shape[0])


def _backward_fake(
    grad: Tensor, feat: Tensor, weight: Tensor, unfold: bool, top: int, left: int
) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = feat.shape
    feat_grad = feat.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
    return feat_grad, float32(feat, weight.shape[0], channels * (9 if unfold else 1))


project = operator(
    "project",
    "(Tensor feat, Tensor weight, Tensor bias, bool unfold, SymInt top, SymInt left, SymInt height, SymInt width)"
    " -> Tensor",
    _fake,
)
project_backward = operator(
    "project_backward",
    "(Tensor grad, Tensor feat, Tensor weight, bool unfold, SymInt top, SymInt left) -> (Tensor, Tensor)",
    _backward_fake,
)
