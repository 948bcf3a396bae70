"""Go back through the attention over corners: from the output's gradient to those of every row, in one kernel.

kernels/attend_corners.py launches it on what its own kernel has kept, and sums what it writes.
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
    """Write the gradients of the values, and return those of the weights `share`, [ROWS]."""
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
    part, column, y_grad, moved, weights, map_at, kept_at, by_rel, scale, saved, grads, row_grads, count,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, OUTS: tl.constexpr, COLUMNS: tl.constexpr, RECORD: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradient `part` of some columns of qkv, and add to y_grad or moved (`block_back`) what it gives."""
    for i in tl.static_range(GROUP):
        to = tl.arange(0, BLOCK) + (column + i * BLOCK)
        if FIRST:
            raw = kept(saved, kept_at + column + i * BLOCK, count, 1, RECORD, ROWS, BLOCK)
            moved += tl.sum(part[i] * (raw[0] - tl.load(by_rel + 2 * COLUMNS + to)[None, :]), 1)
            keep(row_grads, count, to, part[i] * scale[:, None], ROWS, COLUMNS)
        else:
            keep(grads, count, to + (map_at - 3 * WIDTH), part[i], ROWS, OUTS)
            y_grad = back_block(
                y_grad, part[i], weights, map_at - 3 * WIDTH + column + i * BLOCK, WIDTH, OUTS, BLOCK, PRECISION
            )
    return y_grad, moved


@triton.jit
def block_back(
    x_grad, weights, map_at, block, by_rel, scale, saved, parts, grads, row_grads, count,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr, COLUMNS: tl.constexpr,
    RECORD: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go from the gradient of a block's output to that of its input, and write those of its linear maps' outputs.

    The first block's qkv is scale * (A + R rel) + bias, with A from the table (liif_fast/backends/attention.py). Let g
    be its gradient. Write g * scale to row_grads and return sum(g * scale * (A + R rel)), [ROWS].
    """
    BLOCKS: tl.constexpr = WIDTH // BLOCK
    GROUP: tl.constexpr = max(CHANNELS // BLOCK, 1)  # blocks that share a head
    kept_at = block * (KEPT * WIDTH)
    keep_all(grads, x_grad, map_at + 2 * WIDTH, count, BLOCKS, OUTS, ROWS, BLOCK)
    g = linear_back(x_grad, weights, map_at + 2 * WIDTH, WIDTH, OUTS, ROWS, BLOCK, PRECISION)
    g = gelu_back(g, kept(saved, kept_at + 5 * WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK), BLOCKS)
    keep_all(grads, g, map_at + WIDTH, count, BLOCKS, OUTS, ROWS, BLOCK)
    g = linear_back(g, weights, map_at + WIDTH, WIDTH, OUTS, ROWS, BLOCK, PRECISION)
    y, y_scale = (
        kept(saved, kept_at + 4 * WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK),
        kept(parts, 4 + 2 * block, count, 1, PARTS, ROWS, 1),
    )
    x_grad = norm_back(x_grad, g, y, y_scale[0], BLOCKS, WIDTH)
    keep_all(grads, x_grad, map_at, count, BLOCKS, OUTS, ROWS, BLOCK)
    g = linear_back(x_grad, weights, map_at, WIDTH, OUTS, ROWS, BLOCK, PRECISION)
    moved, y_grad = tl.zeros((ROWS,), tl.float32), zeros(BLOCKS, ROWS, BLOCK)
    for group in tl.static_range(BLOCKS // GROUP):
        # In this order, with k read twice, because everything at once takes more registers than there are.
        at_q, some = group * GROUP * BLOCK, g[GROUP * group : GROUP * (group + 1)]
        q = kept(saved, kept_at + at_q, count, GROUP, RECORD, ROWS, BLOCK)
        k = kept(saved, kept_at + at_q + WIDTH, count, GROUP, RECORD, ROWS, BLOCK)
        weight = attention(q, k, CHANNELS, GROUP, ROWS, BLOCK)
        v = kept(saved, kept_at + at_q + 2 * WIDTH, count, GROUP, RECORD, ROWS, BLOCK)
        logit = attention_back(some, weight, v, CHANNELS, GROUP, ROWS, BLOCK)
        y_grad, moved = qkv_back(
            mixed_back(weight, some, CHANNELS, GROUP, ROWS, BLOCK), at_q + 2 * WIDTH,
            y_grad, moved, weights, map_at, kept_at, by_rel, scale, saved, grads, row_grads, count,
            FIRST, WIDTH, OUTS, COLUMNS, RECORD, GROUP, ROWS, BLOCK, PRECISION,
        )  # fmt: skip
        y_grad, moved = qkv_back(
            mixed_back(logit, q, CHANNELS, GROUP, ROWS, BLOCK), at_q + WIDTH,
            y_grad, moved, weights, map_at, kept_at, by_rel, scale, saved, grads, row_grads, count,
            FIRST, WIDTH, OUTS, COLUMNS, RECORD, GROUP, ROWS, BLOCK, PRECISION,
        )  # fmt: skip
        k = kept(saved, kept_at + at_q + WIDTH, count, GROUP, RECORD, ROWS, BLOCK)
        y_grad, moved = qkv_back(
            mixed(logit, k, CHANNELS, GROUP, ROWS, BLOCK), at_q,
            y_grad, moved, weights, map_at, kept_at, by_rel, scale, saved, grads, row_grads, count,
            FIRST, WIDTH, OUTS, COLUMNS, RECORD, GROUP, ROWS, BLOCK, PRECISION,
        )  # fmt: skip
    if not FIRST:
        y = kept(saved, kept_at - WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK)
        y_scale = kept(parts, 3 + 2 * block, count, 1, PARTS, ROWS, 1)
        x_grad = norm_back(x_grad, y_grad, y, y_scale[0], BLOCKS, WIDTH)
    return x_grad, moved


@triton.jit(do_not_specialize=["total"], do_not_specialize_on_alignment=["grad", "grad_weight"])
def attend_back_kernel(
    grad, grad_weight, table, by_rel, weights, weight, saved, parts, latents, grads, row_grads, total,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr,
    COLUMNS: tl.constexpr, VALUES: tl.constexpr, STEP: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute, for `total` queries whose activations `attend_kernel` has kept, the gradients of their rows.

    Writes grads [rows, OUTS], of the linear maps' outputs, where `weights` has their columns, and row_grads
    [rows, COLUMNS], of the rows of the table.
    """
    LINEAR: tl.constexpr = 3 * WIDTH if DEPTH else 1
    RECORD: tl.constexpr = KEPT * WIDTH * DEPTH
    BLOCKS: tl.constexpr = WIDTH // BLOCK if DEPTH else 1
    start = tl.program_id(0).to(tl.int64) * (ROWS // 4)
    row = tl.arange(0, ROWS)
    count = tl.minimum(total - start, ROWS // 4).to(tl.int32) * 4
    mask = row < count
    saved += start * (4 * RECORD)
    parts += start * (4 * PARTS)
    grads += start * (4 * OUTS)
    row_grads += start * (4 * COLUMNS)
    rows = table + tl.load(latents + start * 4 + row, mask=mask, other=0) * COLUMNS
    rel_y = tl.load(parts + row * PARTS, mask=mask, other=0.0)
    rel_x = tl.load(parts + (row * PARTS + 1), mask=mask, other=0.0)
    variance = tl.load(parts + (row * PARTS + 3), mask=mask, other=0.0)
    scale = tl.rsqrt(relu(variance) + EPS)
    share = tl.load(weight + start * 4 + row, mask=mask, other=0.0)
    g_share = tl.load(grad_weight + start * 4 + row, mask=mask, other=0.0)
    g_share += blend_back(rows, share, grad + start * VALUES, row_grads, count, COLUMNS, VALUES, STEP, ROWS)
    of_query = tl.reshape(share * g_share, (ROWS // 4, 4))
    of_query = tl.reshape(tl.broadcast_to(tl.sum(of_query, 1, keep_dims=True), (ROWS // 4, 4)), (ROWS,))
    logit = share * (g_share - of_query)
    if DEPTH:
        tl.store(grads + (row * OUTS + (MAPS * WIDTH * DEPTH - 3 * WIDTH)), logit, mask=mask)
        g = ()
        for k in tl.static_range(BLOCKS):
            head = tl.load(weights + (columns(k, BLOCK) * OUTS + (MAPS * WIDTH * DEPTH - 3 * WIDTH)))
            g = g + (logit[:, None] * head[None, :],)
        y = kept(saved, RECORD - WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK)
        y_scale = kept(parts, PARTS - 1, count, 1, PARTS, ROWS, 1)
        x_grad = norm_back(zeros(BLOCKS, ROWS, BLOCK), g, y, y_scale[0], BLOCKS, WIDTH)
        for later in tl.range(1, DEPTH):
            x_grad, _ = block_back(
                x_grad, weights, (DEPTH - later) * (MAPS * WIDTH), DEPTH - later, by_rel, scale,
                saved, parts, grads, row_grads, count,
                False, WIDTH, CHANNELS, OUTS, COLUMNS, RECORD, PARTS, ROWS, BLOCK, PRECISION,
            )  # fmt: skip
        x_grad, moved = block_back(
            x_grad, weights, 0, 0, by_rel, scale, saved, parts, grads, row_grads, count,
            True, WIDTH, CHANNELS, OUTS, COLUMNS, RECORD, PARTS, ROWS, BLOCK, PRECISION,
        )  # fmt: skip
        keep_all(row_grads, x_grad, LINEAR + 3, count, BLOCKS, COLUMNS, ROWS, BLOCK)
    else:
        moved = logit * scale * number(rows, by_rel, 0, rel_y, rel_x, COLUMNS)
        tl.store(row_grads + row * COLUMNS, logit * scale, mask=mask)
    n0 = tl.where(variance < 0.0, 0.0, -0.5 * moved * scale * scale)
    tl.store(row_grads + (row * COLUMNS + LINEAR), n0 * rel_y, mask=mask)
    tl.store(row_grads + (row * COLUMNS + (LINEAR + 1)), n0 * rel_x, mask=mask)
    tl.store(row_grads + (row * COLUMNS + (LINEAR + 2)), n0, mask=mask)
