"""Compute the backward pass of the attention over corners, from the output's gradient to the gradient of every row.

kernels/attend_corners.py launches two kernels per block, from the last block to the first, on the activations that its
forward kernel has kept. `attend_back_kernel` computes the gradient of the attention's output. `attention_back_kernel`
computes the gradients of qkv from it. kernels/attend_corners.py then sums what both have written. One kernel for both
would need more registers than a thread has.
"""

import triton
import triton.language as tl

from .attention import (
    EPS,
    KEPT,
    MAPS,
    attention,
    attention_back,
    back_block,
    gelu_back,
    keep_all,
    kept,
    linear_back,
    mixed,
    mixed_back,
    norm_back,
    number,
    zeros,
)
from .network import columns, keep, relu


@triton.jit
def blend_back(
    rows, share, grad, row_grads, count,
    COLUMNS: tl.constexpr, VALUES: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the values; return the gradients of the weights `share`, [ROWS]."""
    row, found = tl.arange(0, ROWS), tl.zeros((ROWS,), tl.float32)
    for begin in tl.range(0, VALUES, STEP):
        column = begin + tl.arange(0, STEP)
        at = (column + (COLUMNS - VALUES))[None, :]
        mask = (row < count)[:, None] & (column < VALUES)[None, :]
        g = tl.load(grad + ((row // 4)[:, None] * VALUES + column[None, :]), mask=mask, other=0.0)
        found += tl.sum(g * tl.load(rows[:, None] + at, mask=mask, other=0.0), 1)
        tl.store(row_grads + (row[:, None] * COLUMNS + at), g * share[:, None], mask=mask)
    return found


@triton.jit
def qkv_back(
    part, kept_part, column, moved, by_rel, scale, grads, row_grads, count,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, OUTS: tl.constexpr, COLUMNS: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write `part`, the gradient of qkv's columns from `column` on; with FIRST, add its part of the sum to `moved`."""
    for i in tl.static_range(GROUP):
        to, at = tl.arange(0, BLOCK), column + i * BLOCK
        if FIRST:
            moved += tl.sum(part[i] * (kept_part[i] - tl.load(by_rel + to + (2 * COLUMNS + at))[None, :]), 1)
            keep(row_grads + at, count, to, part[i] * scale[:, None], ROWS, COLUMNS)
        else:
            keep(grads + (at - 3 * WIDTH), count, to, part[i], ROWS, OUTS)
    return moved


@triton.jit
def scale_back(
    row_grads, moved, variance, scale, rel_y, rel_x, mask,
    LINEAR: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of n1 and n0, given `moved`, the sum of the first map's products times their gradients."""
    row = tl.arange(0, ROWS)
    n0 = tl.where(variance < 0.0, 0.0, -0.5 * moved * scale * scale)
    tl.store(row_grads + (row * COLUMNS + LINEAR), n0 * rel_y, mask=mask)
    tl.store(row_grads + (row * COLUMNS + (LINEAR + 1)), n0 * rel_x, mask=mask)
    tl.store(row_grads + (row * COLUMNS + (LINEAR + 2)), n0, mask=mask)


@triton.jit
def rows_of(parts, mask, PARTS: tl.constexpr, ROWS: tl.constexpr):
    """Return rel, the first norm's variance and its scale, [ROWS] each."""
    row = tl.arange(0, ROWS)
    rel_y = tl.load(parts + row * PARTS, mask=mask, other=0.0)
    rel_x = tl.load(parts + (row * PARTS + 1), mask=mask, other=0.0)
    variance = tl.load(parts + (row * PARTS + 3), mask=mask, other=0.0)
    return rel_y, rel_x, variance, tl.rsqrt(relu(variance) + EPS)


@triton.jit(do_not_specialize=["total", "block"])
def attention_back_kernel(
    by_rel, saved, parts, grads, row_grads, total, block,
    FIRST: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr,
    COLUMNS: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a block's qkv from that of `heard`, which `saved` has in the place of `hidden`.

    With FIRST, qkv is scale * (A + R rel) + bias, with A from the table (liif_fast/backends/attention.py). Let g be its
    gradient. Then row_grads receives g * scale, the gradients of n1 and n0, and the gradient of the latent. Those of n1
    and n0 follow from the sum of g * scale * (A + R rel).
    """
    RECORD: tl.constexpr = KEPT * WIDTH * DEPTH
    GROUP: tl.constexpr = max(CHANNELS // BLOCK, 1)  # blocks that share a head
    start = tl.program_id(0).to(tl.int64) * (ROWS // 4)
    row = tl.arange(0, ROWS)
    count = tl.minimum(total - start, ROWS // 4).to(tl.int32) * 4
    mask = row < count
    saved += start * (4 * RECORD) + block * (KEPT * WIDTH)
    parts += start * (4 * PARTS)
    grads += start * (4 * OUTS) + block * (MAPS * WIDTH)
    row_grads += start * (4 * COLUMNS)
    moved = tl.zeros((ROWS,), tl.float32)
    rel_y, rel_x, variance, scale = rows_of(parts, mask, PARTS, ROWS)
    for at in tl.range(0, WIDTH, GROUP * BLOCK):
        g = kept(saved, at + 5 * WIDTH, count, GROUP, RECORD, ROWS, BLOCK)
        q = kept(saved, at, count, GROUP, RECORD, ROWS, BLOCK)
        k = kept(saved, at + WIDTH, count, GROUP, RECORD, ROWS, BLOCK)
        v = kept(saved, at + 2 * WIDTH, count, GROUP, RECORD, ROWS, BLOCK)
        weight = attention(q, k, CHANNELS, GROUP, ROWS, BLOCK)
        logit = attention_back(g, weight, v, CHANNELS, GROUP, ROWS, BLOCK)
        moved = qkv_back(
            mixed_back(weight, g, CHANNELS, GROUP, ROWS, BLOCK), v, at + 2 * WIDTH,
            moved, by_rel, scale, grads, row_grads, count, FIRST, WIDTH, OUTS, COLUMNS, GROUP, ROWS, BLOCK,
        )  # fmt: skip
        moved = qkv_back(
            mixed_back(logit, q, CHANNELS, GROUP, ROWS, BLOCK), k, at + WIDTH,
            moved, by_rel, scale, grads, row_grads, count, FIRST, WIDTH, OUTS, COLUMNS, GROUP, ROWS, BLOCK,
        )  # fmt: skip
        moved = qkv_back(
            mixed(logit, k, CHANNELS, GROUP, ROWS, BLOCK), q, at,
            moved, by_rel, scale, grads, row_grads, count, FIRST, WIDTH, OUTS, COLUMNS, GROUP, ROWS, BLOCK,
        )  # fmt: skip
        if FIRST:  # the gradient of the `out` map's output is also that of the block's input
            x_grad = kept(grads, at, count, GROUP, OUTS, ROWS, BLOCK)
            keep_all(row_grads, x_grad, at + (3 * WIDTH + 3), count, GROUP, COLUMNS, ROWS, BLOCK)
    if FIRST:
        scale_back(row_grads, moved, variance, scale, rel_y, rel_x, mask, 3 * WIDTH, COLUMNS, ROWS)


@triton.jit(do_not_specialize=["total", "block"], do_not_specialize_on_alignment=["grad", "grad_weight"])
def attend_back_kernel(
    grad, grad_weight, table, by_rel, weights, weight, saved, parts, latents, grads, row_grads, total, block,
    LAST: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr,
    COLUMNS: tl.constexpr, VALUES: tl.constexpr, STEP: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a block's attention for `total` queries whose activations `attend_kernel` has kept.

    With LAST, `block` is the last one, and the gradient comes from the output; otherwise from the qkv of block + 1.
    grads [rows, OUTS] receives the gradients of the linear maps' outputs, at the columns that the maps have in
    `weights`. `saved` receives that of `heard` in the place of `hidden`. With LAST, row_grads [rows, COLUMNS] receives
    those of the values, or of the whole row if there are no blocks.
    """
    RECORD: tl.constexpr = KEPT * WIDTH * DEPTH
    BLOCKS: tl.constexpr = WIDTH // BLOCK if DEPTH else 1
    start = tl.program_id(0).to(tl.int64) * (ROWS // 4)
    row = tl.arange(0, ROWS)
    count = tl.minimum(total - start, ROWS // 4).to(tl.int32) * 4
    mask = row < count
    saved += start * (4 * RECORD) + block * (KEPT * WIDTH)
    parts += start * (4 * PARTS)
    grads += start * (4 * OUTS) + block * (MAPS * WIDTH)
    row_grads += start * (4 * COLUMNS)
    weights += block * (MAPS * WIDTH)
    if LAST:
        rows = table + tl.load(latents + start * 4 + row, mask=mask, other=0) * COLUMNS
        share = tl.load(weight + start * 4 + row, mask=mask, other=0.0)
        g_share = tl.load(grad_weight + start * 4 + row, mask=mask, other=0.0)
        g_share += blend_back(rows, share, grad + start * VALUES, row_grads, count, COLUMNS, VALUES, STEP, ROWS)
        of_query = tl.reshape(share * g_share, (ROWS // 4, 4))
        of_query = tl.reshape(tl.broadcast_to(tl.sum(of_query, 1, keep_dims=True), (ROWS // 4, 4)), (ROWS,))
        logit = share * (g_share - of_query)
        if DEPTH:
            tl.store(grads + (row * OUTS + 3 * WIDTH), logit, mask=mask)
            g, x_grad = (), zeros(BLOCKS, ROWS, BLOCK)
            for k in tl.static_range(BLOCKS):
                head = tl.load(weights + (columns(k, BLOCK) * OUTS + 3 * WIDTH))
                g = g + (logit[:, None] * head[None, :],)
        else:
            rel_y, rel_x, variance, scale = rows_of(parts, mask, PARTS, ROWS)
            moved = logit * scale * number(rows, by_rel, 0, rel_y, rel_x, COLUMNS)
            tl.store(row_grads + row * COLUMNS, logit * scale, mask=mask)
            scale_back(row_grads, moved, variance, scale, rel_y, rel_x, mask, 1, COLUMNS, ROWS)
    else:
        g = zeros(BLOCKS, ROWS, BLOCK)
        for column in tl.range(0, 3 * WIDTH, BLOCK):
            at = column + 3 * WIDTH
            some = kept(grads, at, count, 1, OUTS, ROWS, BLOCK)
            g = back_block(g, some[0], weights, at, WIDTH, OUTS, BLOCK, PRECISION)
        x_grad = kept(grads, MAPS * WIDTH, count, BLOCKS, OUTS, ROWS, BLOCK)
    if DEPTH:
        y = kept(saved, 7 * WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK)
        y_scale = kept(parts + 2 * block, 5, count, 1, PARTS, ROWS, 1)
        x_grad = norm_back(x_grad, g, y, y_scale[0], BLOCKS, WIDTH)
        keep_all(grads, x_grad, 2 * WIDTH, count, BLOCKS, OUTS, ROWS, BLOCK)
        g = linear_back(x_grad, weights, 2 * WIDTH, WIDTH, OUTS, ROWS, BLOCK, PRECISION)
        g = gelu_back(g, kept(saved, 5 * WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK), BLOCKS)
        keep_all(grads, g, WIDTH, count, BLOCKS, OUTS, ROWS, BLOCK)
        g = linear_back(g, weights, WIDTH, WIDTH, OUTS, ROWS, BLOCK, PRECISION)
        y = kept(saved, 4 * WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK)
        y_scale = kept(parts + 2 * block, 4, count, 1, PARTS, ROWS, 1)
        x_grad = norm_back(x_grad, g, y, y_scale[0], BLOCKS, WIDTH)
        keep_all(grads, x_grad, 0, count, BLOCKS, OUTS, ROWS, BLOCK)
        g = linear_back(x_grad, weights, 0, WIDTH, OUTS, ROWS, BLOCK, PRECISION)
        tl.debug_barrier()  # because every warp must have read `hidden`
        keep_all(saved, g, 5 * WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK)
