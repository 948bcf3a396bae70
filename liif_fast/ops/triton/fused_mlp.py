"""`triton_fused_mlp`: Linear, ReLU, ..., Linear over rows, all layers of a tile of rows in one go.

The hidden activations of the first `keep` rows are saved for the backward pass, those of the others computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast.ops import refuse_second_order
from liif_fast.ops.triton import cast, float32, operator, saved


def _fake(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], keep: int) -> tuple[Tensor, Tensor]:
    return float32(x, x.shape[0], weights[-1].shape[0]), saved(x, weights, keep)


def _backward_fake(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], kept: Tensor
) -> list[Tensor]:
    return [x.new_empty(x.shape), *(float32(t, *t.shape) for pair in zip(weights, biases, strict=True) for t in pair)]


_mlp = operator("fused_mlp", "(Tensor x, Tensor[] weights, Tensor[] biases, SymInt keep) -> (Tensor, Tensor)", _fake)
_mlp_backward = operator(
    "fused_mlp_backward",
    "(Tensor grad, Tensor x, Tensor[] weights, Tensor[] biases, Tensor saved) -> Tensor[]",
    _backward_fake,
)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keep: int, dtype: torch.dtype, *inputs: Tensor) -> Tensor:
        x, *params = [t.to(dtype) for t in inputs]
        out, kept = _mlp(x, params[0::2], params[1::2], keep)
        ctx.dtype = dtype
        ctx.save_for_backward(kept, *inputs)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        kept, *inputs = ctx.saved_tensors
        x, *params = [t.to(ctx.dtype) for t in inputs]
        grads = _mlp_backward(grad, x, params[0::2], params[1::2], kept)
        return None, None, *cast(grads, inputs, ctx.needs_input_grad[2:])


def fused_mlp(keep: int, dtype: torch.dtype, inputs: Sequence[Tensor], train: bool) -> Tensor:
    """Apply the MLP to rows, float32 [N, out]; inputs are x [N, in] (a row's elements contiguous), weight, bias, ..."""
    if train:
        return _Mlp.apply(keep, dtype, *inputs)
    x, *params = [t.to(dtype) for t in inputs]
    return _mlp(x, params[0::2], params[1::2], 0)[0]
