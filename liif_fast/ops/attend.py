"""`attend`: the transformer over a query's four corners, the softmax, and the blend of given values, in one pass.

The table holds what the first norm and the product behind it need of each latent (liif_fast/backends/attention.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast.attention import CornerTransformer
from liif_fast.ops import define, refuse_second_order


def _fake(table: Tensor, at: Tensor, rel: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return table.new_empty(at.shape[0], values.shape[1]), table.new_empty(at.shape[0], 4)


def _backward_fake(
    grad: Tensor,
    weight_grad: Tensor,
    weight: Tensor,
    table: Tensor,
    at: Tensor,
    rel: Tensor,
    values: Tensor,
    products: Tensor,
    square: Tensor,
    bias: Tensor,
    parameters: Sequence[Tensor],
    *_: int,
) -> list[Tensor]:
    return [torch.empty_like(each) for each in (table, values, products, square, bias, *parameters)]


_attend = define(
    "attend",
    "(Tensor table, Tensor at, Tensor rel, Tensor values, Tensor products, Tensor square, Tensor bias,"
    " Tensor[] parameters, SymInt width, SymInt heads) -> (Tensor, Tensor)",
    _fake,
)
attend_backward = define(
    "attend_backward",
    "(Tensor grad, Tensor weight_grad, Tensor weight, Tensor table, Tensor at, Tensor rel, Tensor values,"
    " Tensor products, Tensor square, Tensor bias, Tensor[] parameters, SymInt width, SymInt heads) -> Tensor[]",
    _backward_fake,
)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, at: Tensor, rel: Tensor, width: int, heads: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        table, values, products, square, bias, *parameters = tensors
        out, weight = _attend(table, at, rel, values, products, square, bias, parameters, width, heads)
        ctx.save_for_backward(at, rel, weight, *tensors)
        ctx.width, ctx.heads = width, heads
        return out, weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor, weight_grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        at, rel, weight, table, values, products, square, bias, *parameters = ctx.saved_tensors
        grads = attend_backward(
            grad.contiguous(),
            weight_grad.contiguous(),
            weight,
            table,
            at,
            rel,
            values,
            products,
            square,
            bias,
            parameters,
            ctx.width,
            ctx.heads,
        )
        wanted = ctx.needs_input_grad[4:]
        return None, None, None, None, *(each if want else None for each, want in zip(grads, wanted, strict=True))


def attend(
    table: Tensor,
    at: Tensor,
    rel: Tensor,
    values: Tensor,
    products: Tensor,
    square: Tensor,
    bias: Tensor,
    net: CornerTransformer,
    train: bool,
) -> tuple[Tensor, Tensor]:
    """Attend to the corners of every query; all tensors contiguous float32, at int64.

    Args:
        table: [N, T], a row a latent: A [L], n1 [2], n0 and, with blocks, z' [D].
        at: [Q, 4], the row of every corner.
        rel: [Q, 4, 2].
        values: [N, V], what is blended.
        products: [L, 2], with blocks [L + D, 2].
        square: [2, 2].
        bias: [L].
        net: the parameters that are not in the table.
        train: whether a gradient is wanted of any of them; at and rel have none.

    Returns:
        out [Q, V] and the weights [Q, 4].
    """
    tensors = (table, values, products, square, bias, *(each.contiguous() for each in parameters_of(net)))
    width = net.position_weight.shape[0]
    if train:
        return _Attend.apply(at, rel, width, net.heads, *tensors)
    return _attend(table, at, rel, values, products, square, bias, tensors[5:], width, net.heads)


def parameters_of(net: CornerTransformer) -> list[Tensor]:
    """Return the parameters that are not in the table, in the operator's order; without blocks there are none."""
    if not net.blocks:
        return []
    found: list[Tensor] = []
    for number, block in enumerate(net.blocks):
        if number:
            found += [block.norm_weight, block.norm_bias, block.qkv]
        nothing = block.qkv.new_empty(0)
        out = (nothing, nothing) if block.out_weight is None or block.out_bias is None else block[3:5]
        found += [*out, *block[5:]]  # type: ignore[list-item]
    return [*found, net.norm_weight, net.norm_bias, net.head_weight, net.head_bias]
