"""Define `fused_mlp`: Linear, ReLU, ..., Linear over rows, all layers of a tile of rows in one pass.

The hidden activations of the first rows are saved for the backward pass, in a tensor of the shape `saved`,
[..., rows, width], which the backend chooses. Those of the other rows are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast.call import Kernels, result_dtype, trains
from liif_fast.ops import define, in_turn, only, refuse_second_order, to_inputs, wide, wide_in_turn


def _fake(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], saved: Sequence[int], backend: str | None
) -> tuple[Tensor, Tensor]:
    return wide(x, x.shape[0], weights[-1].shape[0]), x.new_empty(saved)


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    wanted: Sequence[bool],
    backend: str | None,
) -> list[Tensor]:
    return only(wanted, [x.new_empty(x.shape), *wide_in_turn(weights, biases)])


mlp = define(
    "fused_mlp",
    "(Tensor x, Tensor[] weights, Tensor[] biases, SymInt[] saved, str? backend) -> (Tensor, Tensor)",
    _fake,
)
# Return the gradients of x and of the layers' weight, bias, weight, ...
mlp_backward = define(
    "fused_mlp_backward",
    "(Tensor grad, Tensor x, Tensor[] weights, Tensor[] biases, Tensor saved, bool[] wanted, str? backend) -> Tensor[]",
    _backward_fake,
)


class _Mlp(torch.autograd.Function):
    """Run the MLP in `dtype` on x, the weights and the biases, without keeping copies in `dtype`."""

    @staticmethod
    def forward(ctx: Any, saved: Sequence[int], dtype: torch.dtype, backend: str | None, *inputs: Tensor) -> Tensor:
        x, *params = [t.to(dtype) for t in inputs]
        layers = len(params) // 2
        out, kept = mlp(x, params[:layers], params[layers:], saved, backend)
        ctx.dtype, ctx.backend = dtype, backend
        ctx.save_for_backward(kept, *inputs)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        kept, *inputs = ctx.saved_tensors
        x, *params = [t.to(ctx.dtype) for t in inputs]
        layers, wanted = len(params) // 2, ctx.needs_input_grad[3:]
        flags = [wanted[0], *in_turn(wanted[1:])]
        x_grad, *rest = mlp_backward(grad.contiguous(), x, params[:layers], params[layers:], kept, flags, ctx.backend)
        grads = [x_grad, *rest[0::2], *rest[1::2]]
        return None, None, None, *to_inputs(grads, inputs, wanted)


def fused_mlp(
    kernels: Kernels, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], recompute: bool | None
) -> Tensor:
    """Apply Linear, ReLU, ..., Linear to the last dimension of x, [..., out]."""
    shape = (*x.shape[:-1], weights[-1].shape[0])
    rows = x.reshape(math.prod(shape[:-1]), x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    train, dtype, backend = trains(x, *weights, *biases), kernels.dtype(x), kernels.backend
    saved = kernels.saves(weights, 0, rows.shape[0], 1, dtype, train, recompute)
    if train:
        out = _Mlp.apply(saved, dtype, backend, rows, *weights, *biases)
    else:
        params = [t.to(dtype) for t in (*weights, *biases)]
        out, _ = mlp(rows.to(dtype), params[: len(weights)], params[len(weights) :], saved, backend)
    return out.to(result_dtype(x)).reshape(shape)
