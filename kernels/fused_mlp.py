"""Apply an MLP (Linear, ReLU, ..., Linear) to rows, all layers of a tile in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from liif_fast.frozen import pack_once

from . import backward, host
from .host import dot
from .network import activated, columns, hidden_layers, last_layer


@triton.jit(do_not_specialize=["rows", "stride", "keep_limit", "saved_rows"])
def mlp_kernel(
    x, first, first_bias, weights, biases, last, last_bias, out, saved,
    rows, stride, keep_limit, saved_rows,
    WIDTH: tl.constexpr, UNIT: tl.constexpr, STEPS: tl.constexpr, DEPTH: tl.constexpr,
    OUT: tl.constexpr, OUT_PADDED: tl.constexpr, LAYERS: tl.constexpr, WIDEST: tl.constexpr,
    SAVE: tl.constexpr, WRITE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Apply the MLP to x [rows, WIDTH], rows `stride` times UNIT apart; first [STEPS * DEPTH, padded].

    UNIT elements, up to 16 bytes, are read at a time. Rows below keep_limit save activations.
    """
    PADDED: tl.constexpr = BLOCK * BLOCKS
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = start + tl.arange(0, ROWS)
    valid = row < rows
    saved += start * WIDEST
    saved_count = tl.minimum(keep_limit - start, ROWS).to(tl.int32)
    z = ()
    for _ in tl.static_range(BLOCKS):
        z = z + (tl.zeros((ROWS, BLOCK), tl.float32),)
    for step in tl.range(0, STEPS):
        depth = step * DEPTH + tl.arange(0, DEPTH)
        mask = valid[:, None] & (depth < WIDTH)[None, :]
        a = tl.load(x + row[:, None] * stride * UNIT + depth[None, :], mask=mask, other=0.0)
        more = ()
        for k in tl.static_range(BLOCKS):
            w = tl.load(first + depth[:, None] * PADDED + columns(k, BLOCK)[None, :])
            more = more + (dot(a, w, z[k], PRECISION),)
        z = more
    h = activated(z, first_bias, first.dtype.element_ty, saved, saved_count, SAVE, WIDEST, ROWS, BLOCK, BLOCKS)
    h = hidden_layers(
        h, weights, biases, saved, saved_rows, saved_count, LAYERS, SAVE, WIDEST, ROWS, BLOCK, BLOCKS, PRECISION
    )
    if WRITE:
        one = tl.full((ROWS,), 1.0, tl.float32)
        result = last_layer(h, one, last, last_bias, ROWS, 1, BLOCK, BLOCKS, OUT_PADDED, PRECISION)
        row, channel = tl.arange(0, ROWS), tl.arange(0, OUT_PADDED)  # anew, because kept rows would cost registers
        mask = (row < tl.minimum(rows - start, ROWS).to(tl.int32))[:, None] & (channel < OUT)[None, :]
        tl.store(out + start * OUT + (row[:, None] * OUT + channel[None, :]), result, mask=mask)


def _launch(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], out: Tensor | None, saved: Tensor) -> None:
    """Apply the MLP to rows x [N, in] into out [N, out], saving the activations of as many rows as fit into `saved`."""
    rows, width = x.shape
    if not rows:
        return
    widest = host.widest(weights)
    form = host.form("recompute" if out is None else "mlp_save" if saved.shape[1] else "mlp", widest, x)
    network, depth = host.network(weights, biases, form, 0), host.depth(x.dtype)

    def pack() -> tuple[Tensor, Tensor]:
        return host.opening(weights[0], biases[0], form)

    first = pack_once([weights[0], biases[0]], (_launch, form.padded, depth), pack)
    unit = math.gcd(x.stride(0), 16 // x.element_size())
    with host.on(x):
        mlp_kernel[(triton.cdiv(rows, form.rows),)](
            x, *first, *network[1:], x if out is None else out, saved,
            rows, x.stride(0) // unit, saved.shape[1], host.layer_rows(saved),
            WIDTH=width, UNIT=unit, STEPS=len(first[0]) // depth, DEPTH=depth, OUT=1 if out is None else out.shape[1],
            OUT_PADDED=network.last.shape[1], LAYERS=network.weights.shape[0], WIDEST=widest,
            SAVE=saved.shape[1] > 0, WRITE=out is not None, **host.tile(form, x.dtype),
        )  # fmt: skip


def fused_mlp(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the MLP's output, float32 [N, out], and the saved activations; x [N, in] has contiguous rows.

    shape: shape of the activations, [hidden layers, rows, the widest layer].
    """
    out = torch.empty((x.shape[0], weights[-1].shape[0]), dtype=torch.float32, device=x.device)
    saved = x.new_empty(*shape)
    _launch(x, weights, biases, out, saved)
    return out, saved


def fused_mlp_backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Return the wanted gradients of x and of the parameters (weight, bias, weight, ...); grad [N, out]."""
    of_x, of_first, *of_others = wanted
    x_grad = torch.empty_like(x) if of_x else x.new_empty(0)
    first_grad = torch.zeros(weights[0].shape if of_first else 0, dtype=torch.float32, device=x.device)

    def recompute(run: slice, activations: Tensor) -> None:
        _launch(x[run], weights, biases, None, activations)

    def receive(run: slice, dz: Tensor, *_: Tensor) -> None:
        if of_x:
            torch.mm(dz, weights[0], out=x_grad[run])
        if of_first:
            first_grad.add_(host.product(dz.t(), x[run]))

    received = receive if of_x or of_first else None
    sums = backward.backward(recompute, received, grad.float().contiguous(), weights, biases, saved, of_others)
    return [x_grad, first_grad, *sums]
