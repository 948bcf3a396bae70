"""`mlp`: Linear, ReLU, ..., Linear over rows, all layers of a tile of rows in one go.

The hidden activations of the first `keep` rows are saved for the backward pass, those of the others computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast.ops import define, refuse_second_order

define("mlp", "(Tensor x, Tensor[] weights, Tensor[] biases, SymInt keep) -> (Tensor, Tensor)")
define("mlp_backward", "(Tensor grad, Tensor x, Tensor[] weights, Tensor[] biases, Tensor saved) -> Tensor[]")
_mlp = torch.ops.liif_fast.mlp.default
mlp_backward = torch.ops.liif_fast.mlp_backward.default


def saved_width(weights: Sequence[Tensor]) -> int:
    """Return the activations that a row saves for the backward pass."""
    return sum(weight.shape[0] for weight in weights[:-1])


@torch.library.register_fake("liif_fast::mlp")
def _(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], keep: int) -> tuple[Tensor, Tensor]:
    width = saved_width(weights)
    return x.new_empty(x.shape[0], weights[-1].shape[0]), x.new_empty(keep if width else 0, width)


@torch.library.register_fake("liif_fast::mlp_backward")
def _(grad: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], saved: Tensor) -> list[Tensor]:
    layers = [t.new_empty(t.shape) for pair in zip(weights, biases, strict=True) for t in pair]
    return [x.new_empty(x.shape), *layers]


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: int, *params: Tensor) -> Tensor:
        out, saved = _mlp(x, list(params[0::2]), list(params[1::2]), keep)
        ctx.save_for_backward(x, saved, *params)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        x, saved, *params = ctx.saved_tensors
        x_grad, *grads = mlp_backward(grad.contiguous(), x, params[0::2], params[1::2], saved)
        wanted = ctx.needs_input_grad
        return x_grad, None, *(g if want else None for g, want in zip(grads, wanted[2:], strict=True))


def mlp(x: Tensor, params: Sequence[Tensor], train: bool, keep: int) -> Tensor:
    """Apply the MLP to rows x [N, in] (a row's elements contiguous), [N, out]."""
    if train:
        return _Mlp.apply(x, keep, *params)
    return _mlp(x, list(params[0::2]), list(params[1::2]), 0)[0]
