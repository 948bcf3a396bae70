"""Define `project`: the latents' share of the first layer, P = unfold(feat) W1z^T + b1, once per latent.

The window (top, left, height, width) of P is a window of feat.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from liif_fast.ops import define, wide
from liif_fast.ops.conv3x3 import LEAST_CHANNELS, channels_last, conv3x3, conv3x3_backward, pays


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


def _backward(
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
    if grad.shape[1] != height or grad.shape[2] != width:
        below, right = height - top - grad.shape[1], width - left - grad.shape[2]
        grad = torch.nn.functional.pad(grad, (0, 0, left, right, top, below))
    of_feat, of_weight, of_bias = (grad.new_empty(0) for _ in range(3))
    if wanted[2]:  # PyTorch's convolution adds a bias's gradient in one long chain
        of_bias = grad.sum((0, 1, 2))
    if any(wanted[:2]):
        kernel, side = _kernel(feat, weight, unfold), 3 if unfold else 1
        grads = torch.ops.aten.convolution_backward(
            grad.permute(0, 3, 1, 2).to(feat.dtype),
            feat,
            kernel,
            None,
            [1, 1],
            [side // 2] * 2,
            [1, 1],
            False,
            [0, 0],
            1,
            [*wanted[:2], False],
        )
        of_feat = in_layout_of(feat, grads[0]) if wanted[0] else of_feat
        of_weight = grads[1].flatten(1).to(grad.dtype) if wanted[1] else of_weight
    return of_feat, of_weight, of_bias


def _kernel(feat: Tensor, weight: Tensor, unfold: bool) -> Tensor:
    """Return the latent columns of a weight as those of a convolution, [hidden, C, 3, 3] or [hidden, C, 1, 1]."""
    side = 3 if unfold else 1
    return weight[:, : feat.shape[1] * side * side].reshape(len(weight), feat.shape[1], side, side)


def suits_conv3x3(feat: Tensor, weight: Tensor, unfold: bool) -> bool:
    """Say whether a CPU is faster with `conv3x3`, in float32 or wider, than with the products of feat's dtype."""
    if (
        not unfold or feat.device.type != "cpu" or feat.shape[1] < LEAST_CHANNELS
    ):  # because feat's gradient has C outputs
        return False
    return pays(feat, len(weight)) and not (feat.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported())


def _conv3x3_backward(
    grad: Tensor, feat: Tensor, weight: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    grad, x, kernel = grad.permute(0, 3, 1, 2), feat.to(grad.dtype), _kernel(feat, weight, True).to(grad.dtype)
    grads = conv3x3_backward(channels_last(grad), channels_last(x), kernel, None, False, wanted, False)
    return grads[0], grads[1].flatten(1) if wanted[1] else grads[1], grads[2]


def fast_project(
    feat: Tensor, weight: Tensor, bias: Tensor, unfold: bool, window: Sequence[int], backend: str | None
) -> Tensor:
    """Compute `project`, on the backend `cpu` by Winograd's algorithm where it suits."""
    whole = tuple(window) == (0, 0, *feat.shape[2:])
    if backend is None and whole and feat.dtype == torch.float32 and suits_conv3x3(feat, weight, unfold):
        p = conv3x3(channels_last(feat), _kernel(feat, weight, True), bias, None, False, False)
        return p.permute(0, 2, 3, 1)
    return project(feat, weight, bias, unfold, window, backend)


def fast_project_backward(
    grad: Tensor,
    feat: Tensor,
    weight: Tensor,
    unfold: bool,
    top: int,
    left: int,
    wanted: Sequence[bool],
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `project_backward`, on the backend `cpu` by Winograd's algorithm where it suits."""
    if backend is None and grad.shape[1:3] == feat.shape[2:] and suits_conv3x3(feat, weight, unfold):
        return _conv3x3_backward(grad, feat, weight, wanted)
    return project_backward(grad, feat, weight, unfold, top, left, wanted, backend)


def _wide_like(feat: Tensor) -> Tensor:
    return torch.empty_like(feat, dtype=torch.promote_types(feat.dtype, torch.float32))


def in_layout_of(feat: Tensor, grad: Tensor) -> Tensor:
    """Return feat's gradient with the strides and the dtype that the fake promises."""
    like = _wide_like(feat)
    return grad if (grad.stride(), grad.dtype) == (like.stride(), like.dtype) else like.copy_(grad)


torch.library.impl("liif_fast::project_backward", "CompositeExplicitAutograd", _backward)
