"""`project`: the first layer's share of the latents, P = unfold(feat) W1z^T + b1, once per latent."""

from __future__ import annotations

import torch
from torch import Tensor

from liif_fast.ops import define

define(
    "project",
    "(Tensor feat, Tensor weight, Tensor bias, bool unfold, SymInt top, SymInt left, SymInt height, SymInt width)"
    " -> Tensor",
)
project = torch.ops.liif_fast.project.default


@torch.library.register_fake("liif_fast::project")
def _(feat: Tensor, weight: Tensor, bias: Tensor, unfold: bool, top: int, left: int, height: int, width: int) -> Tensor:
    return feat.new_empty(feat.shape[0], height, width, weight.shape[0])


def project_backward(
    grad: Tensor, feat: Tensor, weight: Tensor, unfold: bool, top: int, left: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of feat, of the weight's latent columns [h, C(*9)] and of the bias, where wanted.

    Args:
        grad: [B, h, w, hidden], of the window (top, left, h, w) of P.
        feat: [B, C, H, W].
        weight: [hidden, in_dim].
    """
    height, width = feat.shape[2:]
    side = 3 if unfold else 1
    kernel = weight[:, : feat.shape[1] * side * side].reshape(weight.shape[0], feat.shape[1], side, side)
    if grad.shape[1] != height or grad.shape[2] != width:
        below, right = height - top - grad.shape[1], width - left - grad.shape[2]
        grad = torch.nn.functional.pad(grad, (0, 0, left, right, top, below))
    feat_grad, kernel_grad, bias_grad = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        feat,
        kernel,
        [weight.shape[0]],
        [1, 1],
        [side // 2] * 2,
        [1, 1],
        False,
        [0, 0],
        1,
        wanted,
    )
    return feat_grad, None if kernel_grad is None else kernel_grad.flatten(1), bias_grad
