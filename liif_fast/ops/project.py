"""Define `project`: the latents' share of the first layer, P = unfold(feat) W1z^T + b1, once per latent.

The window (top, left, height, width) of P is a window of feat.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from liif_fast.ops import define, wide


def _fake(
    feat: Tensor, weight: Tensor, bias: Tensor, unfold: bool, window: Sequence[int], backend: str | None
) -> Tensor:
    return feat.new_empty(feat.shape[0], window[2], window[3], weight.shape[0])


def _backward_fake(
    grad: Tensor,
    feat: Tensor,
    weight: Tensor,
    unfold: bool,
    top: int,
    left: int,
    wanted: Sequence[bool],
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    latent = feat.shape[1] * (9 if unfold else 1)
    return (
        _wide_like(feat) if wanted[0] else wide(feat, 0),
        wide(feat, weight.shape[0], latent) if wanted[1] else wide(feat, 0),
        wide(feat, weight.shape[0]) if wanted[2] else wide(feat, 0),
    )


project = define(
    "project",
    "(Tensor feat, Tensor weight, Tensor bias, bool unfold, SymInt[] window, str? backend) -> Tensor",
    _fake,
)
# Returns the gradients of feat (in its layout), of the weight's latent columns [hidden, C(*9)] and of the bias, in
# float32 or wider; an unwanted one is empty. grad [B, h, w, hidden] is the gradient of P's window at (top, left).
project_backward = define(
    "project_backward",
    "(Tensor grad, Tensor feat, Tensor weight, bool unfold, SymInt top, SymInt left, bool[3] wanted, str? backend)"
    " -> (Tensor, Tensor, Tensor)",
    _backward_fake,
)


def _convolution_backward(
    grad: Tensor,
    feat: Tensor,
    weight: Tensor,
    unfold: bool,
    top: int,
    left: int,
    wanted: Sequence[bool],
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = feat.shape[2:]
    side = 3 if unfold else 1
    kernel = weight[:, : feat.shape[1] * side * side].reshape(weight.shape[0], feat.shape[1], side, side)
    if grad.shape[1] != height or grad.shape[2] != width:
        below, right = height - top - grad.shape[1], width - left - grad.shape[2]
        grad = torch.nn.functional.pad(grad, (0, 0, left, right, top, below))
    feat_grad, kernel_grad, bias_grad = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2).to(feat.dtype),
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
    return (
        in_layout_of(feat, feat_grad) if wanted[0] else grad.new_empty(0),
        kernel_grad.flatten(1).to(grad.dtype) if wanted[1] else grad.new_empty(0),
        bias_grad.to(grad.dtype) if wanted[2] else grad.new_empty(0),
    )


def _wide_like(feat: Tensor) -> Tensor:
    return torch.empty_like(feat, dtype=torch.promote_types(feat.dtype, torch.float32))


def in_layout_of(feat: Tensor, grad: Tensor) -> Tensor:
    """Return feat's gradient with the strides and the dtype that the fake promises."""
    like = _wide_like(feat)
    return grad if (grad.stride(), grad.dtype) == (like.stride(), like.dtype) else like.copy_(grad)


torch.library.impl("liif_fast::project_backward", "CompositeExplicitAutograd", _convolution_backward)
