"""`attend_corners`: a transformer over the four corners of a query; values are blended by the weights it gives them.

The latents' share is in `table` [B * H * W, T], whose columns are the products of the first linear map (3 D for qkv; 1
for the head without blocks), n1 [2], n0, the latent [D] if there are blocks, and the values [V].
`by_rel` [3, T] is added to these rows times rel_0, rel_1, and, after the norm, 1 (`liif_fast.backends.attention`).
`layers` are out, up, down of the first block, qkv, out, up, down of each other, and the head, each [out, in + 1] with
its bias as the last column; none without blocks. `queries` are [coord], or [at, rel] of a plan, both for B images or
both for one; `shape` is (B, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast.call import trains
from liif_fast.ops import define, only, refuse_second_order, to_inputs


def _fake(
    table: Tensor,
    by_rel: Tensor,
    layers: Sequence[Tensor],
    queries: Sequence[Tensor],
    shape: Sequence[int],
    wrap: bool,
    heads: int,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    before = 4 * layers[0].shape[0] + 3 if layers else 4
    sizes = shape[0], queries[0].shape[1]
    return table.new_empty(*sizes, table.shape[1] - before), table.new_empty(*sizes, 4)


def _backward_fake(
    grad: Tensor,
    grad_weight: Tensor,
    table: Tensor,
    by_rel: Tensor,
    layers: Sequence[Tensor],
    queries: Sequence[Tensor],
    shape: Sequence[int],
    wrap: bool,
    heads: int,
    wanted: Sequence[bool],
    backend: str | None,
) -> list[Tensor]:
    return only(wanted, [each.new_empty(each.shape) for each in (table, by_rel, *layers)])


_attend = define(
    "attend_corners",
    "(Tensor table, Tensor by_rel, Tensor[] layers, Tensor[] queries, SymInt[] shape, bool wrap, int heads,"
    " str? backend) -> (Tensor, Tensor)",
    _fake,
)
# Return the gradients of the table, of by_rel and of the layers.
_attend_backward = define(
    "attend_corners_backward",
    "(Tensor grad, Tensor grad_weight, Tensor table, Tensor by_rel, Tensor[] layers, Tensor[] queries, SymInt[] shape,"
    " bool wrap, int heads, bool[] wanted, str? backend) -> Tensor[]",
    _backward_fake,
)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        shape: Sequence[int],
        wrap: bool,
        heads: int,
        backend: str | None,
        planned: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.options, ctx.backend, ctx.queries = (shape, wrap, heads), backend, 2 if planned else 1
        ctx.save_for_backward(*tensors)
        queries, (table, by_rel, *layers) = tensors[: ctx.queries], tensors[ctx.queries :]
        return _attend(table, by_rel, layers, queries, *ctx.options, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_weight: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        queries, inputs = ctx.saved_tensors[: ctx.queries], ctx.saved_tensors[ctx.queries :]
        (table, by_rel, *layers), wanted = inputs, ctx.needs_input_grad[5 + ctx.queries :]
        grads = _attend_backward(
            grad.contiguous(), grad_weight.contiguous(), table, by_rel, layers, queries, *ctx.options, wanted,
            ctx.backend,
        )  # fmt: skip
        return *(None,) * (5 + ctx.queries), *to_inputs(grads, inputs, wanted)


def attend_corners(
    table: Tensor,
    by_rel: Tensor,
    layers: Sequence[Tensor],
    queries: Sequence[Tensor],
    shape: Sequence[int],
    wrap: bool,
    heads: int,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Return the blended values [B, Q, V] and the corners' weights [B, Q, 4], in the dtype of the table."""
    tensors = (table, by_rel, *layers)
    if trains(*tensors):
        out: tuple[Tensor, Tensor] = _Attend.apply(shape, wrap, heads, backend, len(queries) == 2, *queries, *tensors)
        return out
    return _attend(table, by_rel, layers, queries, shape, wrap, heads, backend)
