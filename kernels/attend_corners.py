"""Attend over the corners of each query: from the table of latents to the blended values, in one pass.

liif_fast/ops/attend.py says what the table and the layers hold, kernels/attention.py how a tile holds its tokens. The
forward pass keeps nothing. The backward pass goes through the queries in chunks: it computes a chunk's activations
again, writes the gradients of all rows (`back_kernel`), and sums them by matrix products and by latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from . import backward, host, scatter
from .attention import (
    EPS,
    added,
    attend,
    attend_back,
    back,
    back_block,
    gelu,
    gelu_back,
    linear,
    linear_block,
    norm,
    norm_back,
    softmax,
    softmax_back,
    zeros,
)
from .network import columns, relu
from .plan import nearest

TILE = 16  # queries: the fewest rows of a matrix product
VALUES_BLOCK = 8  # most values that a step blends
ALIGNED = 16  # columns that the head takes among the maps, so that rows stay aligned
KEPT = tl.constexpr(8)  # widths of a block's activations: q, k, v, mixed, between, hidden, active, next
MAPS = tl.constexpr(6)  # widths of a block's linear maps: out, up, down, and the next block's qkv
SIZES = ["first", "limit", "queries", "coord_image", "coord_query", "coord_axis", "at_image", "height", "width",
         "map_width"]  # fmt: skip


@triton.jit
def keep(
    memory, x, at, count,
    COUNT: tl.constexpr, STRIDE: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a tuple to the columns from `at` on of a tile's rows [4 * QUERIES, STRIDE], a query's corners together."""
    query = tl.arange(0, QUERIES)
    for i in tl.static_range(COUNT):
        where = (query * 4 + i % 4)[:, None] * STRIDE + (columns(i // 4, BLOCK) + at)[None, :]
        tl.store(memory + where, x[i], mask=(query < count)[:, None])


@triton.jit
def kept(
    memory, at, count,
    COUNT: tl.constexpr, STRIDE: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Read back what `keep` wrote; zeros behind the last query."""
    query, x = tl.arange(0, QUERIES), ()
    for i in tl.static_range(COUNT):
        where = (query * 4 + i % 4)[:, None] * STRIDE + (columns(i // 4, BLOCK) + at)[None, :]
        x = x + (tl.load(memory + where, mask=(query < count)[:, None], other=0.0),)
    return x


@triton.jit
def keep_numbers(memory, x, at, count, STRIDE: tl.constexpr, QUERIES: tl.constexpr):
    """Write a number per corner to column `at` of a tile's rows."""
    query = tl.arange(0, QUERIES)
    for t in tl.static_range(4):
        tl.store(memory + ((query * 4 + t) * STRIDE + at), x[t], mask=query < count)


@triton.jit
def kept_numbers(memory, at, count, STRIDE: tl.constexpr, QUERIES: tl.constexpr):
    """Read a number per corner; zeros behind the last query."""
    query, x = tl.arange(0, QUERIES), ()
    for t in tl.static_range(4):
        x = x + (tl.load(memory + ((query * 4 + t) * STRIDE + at), mask=query < count, other=0),)
    return x


@triton.jit
def numbers(rows, by_rel, column, rel_y, rel_x, COLUMNS: tl.constexpr):
    """Return a column of the table at each corner, plus by_rel times rel; rows are pointers to the latents' rows."""
    step_y, step_x, x = tl.load(by_rel + column), tl.load(by_rel + COLUMNS + column), ()
    for t in tl.static_range(4):
        x = x + (tl.load(rows[t] + column) + rel_y[t] * step_y + rel_x[t] * step_x,)
    return x


@triton.jit
def block_of(rows, by_rel, at, rel_y, rel_x, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Return `numbers` of BLOCK columns from `at` on."""
    column, x = tl.arange(0, BLOCK) + at, ()
    step_y, step_x = tl.load(by_rel + column)[None, :], tl.load(by_rel + COLUMNS + column)[None, :]
    for t in tl.static_range(4):
        value = tl.fma(step_y, rel_y[t][:, None], tl.load(rows[t][:, None] + column[None, :]))
        x = x + (tl.fma(step_x, rel_x[t][:, None], value),)
    return x


@triton.jit
def block_forward(
    x, y, weights, at, block, rows, by_rel, rel_y, rel_x, scale, saved, parts, count,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr,
    COLUMNS: tl.constexpr, KEEP: tl.constexpr, RECORD: tl.constexpr, PARTS: tl.constexpr,
    QUERIES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Run a block on its input x and the norm y of it; return those of the next. The first's qkv is in the table."""
    COUNT: tl.constexpr = 4 * (WIDTH // BLOCK)
    GROUP: tl.constexpr = max(CHANNELS // BLOCK, 1)  # blocks that share a head
    to = block * (KEPT * WIDTH)
    mixed = ()
    for group in tl.static_range(WIDTH // (GROUP * BLOCK)):
        qkv = ()
        for i in tl.static_range(3 * GROUP):
            column = i // GROUP * WIDTH + (group * GROUP + i % GROUP) * BLOCK
            if FIRST:
                raw = block_of(rows, by_rel, column, rel_y, rel_x, COLUMNS, BLOCK)
                bias = tl.load(by_rel + 2 * COLUMNS + column + tl.arange(0, BLOCK))[None, :]
                part = ()
                for t in tl.static_range(4):
                    part = part + (tl.fma(raw[t], scale[t][:, None], bias),)
            else:
                part = linear_block(y, weights, at - 3 * WIDTH + column, WIDTH, OUTS, QUERIES, BLOCK, PRECISION)
            if KEEP:
                keep(saved, part, to + column, count, 4, RECORD, QUERIES, BLOCK)
            qkv = qkv + part
        q, k, v = qkv[: 4 * GROUP], qkv[4 * GROUP : 8 * GROUP], qkv[8 * GROUP :]
        mixed = mixed + attend(q, k, v, CHANNELS, QUERIES, BLOCK)
    x = added(x, linear(mixed, weights, at, WIDTH, OUTS, QUERIES, BLOCK, PRECISION), COUNT)
    between, between_scale = norm(x, WIDTH, BLOCK)
    hidden = linear(between, weights, at + WIDTH, WIDTH, OUTS, QUERIES, BLOCK, PRECISION)
    active = gelu(hidden, COUNT)
    x = added(x, linear(active, weights, at + 2 * WIDTH, WIDTH, OUTS, QUERIES, BLOCK, PRECISION), COUNT)
    y, y_scale = norm(x, WIDTH, BLOCK)
    if KEEP:
        keep(saved, mixed, to + 3 * WIDTH, count, COUNT, RECORD, QUERIES, BLOCK)
        keep(saved, between, to + 4 * WIDTH, count, COUNT, RECORD, QUERIES, BLOCK)
        keep(saved, hidden, to + 5 * WIDTH, count, COUNT, RECORD, QUERIES, BLOCK)
        keep(saved, active, to + 6 * WIDTH, count, COUNT, RECORD, QUERIES, BLOCK)
        keep(saved, y, to + 7 * WIDTH, count, COUNT, RECORD, QUERIES, BLOCK)
        keep_numbers(parts, between_scale, 4 + 2 * block, count, PARTS, QUERIES)
        keep_numbers(parts, y_scale, 5 + 2 * block, count, PARTS, QUERIES)
    return x, y


@triton.jit
def blend(
    rows, share, out, count,
    COLUMNS: tl.constexpr, VALUES: tl.constexpr, STEP: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Write the corners' values, the last columns of the table, summed with weights `share`."""
    query = tl.arange(0, QUERIES)
    for begin in tl.range(0, VALUES, STEP):
        column = begin + tl.arange(0, STEP)
        inside = (column < VALUES)[None, :]
        total = tl.zeros((QUERIES, STEP), tl.float32)
        for t in tl.static_range(4):
            value = tl.load(rows[t][:, None] + (column + (COLUMNS - VALUES))[None, :], mask=inside, other=0.0)
            total = tl.fma(share[t][:, None], value, total)
        mask = (query < count)[:, None] & inside
        tl.store(out + (query[:, None] * VALUES + column[None, :]), total, mask=mask)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["coord", "at"])
def attend_kernel(
    table, by_rel, weights, coord, at, out, weight, saved, parts, latents,
    first, limit, queries, coord_image, coord_query, coord_axis, at_image,
    height, row_step, row_origin, row_minus, row_plus,
    width, column_step, column_origin, column_minus, column_plus,
    map_width, inner,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr,
    COLUMNS: tl.constexpr, VALUES: tl.constexpr, VALUES_BLOCK: tl.constexpr,
    PLANNED: tl.constexpr, WRAP: tl.constexpr, KEEP: tl.constexpr, PARTS: tl.constexpr,
    QUERIES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute queries first..limit of [B * queries]; what is written is counted from first.

    Writes weight [count, 4] and out [count, VALUES], or with KEEP, for the backward pass, instead of out: latents, rows
    of the table, int64 [count * 4]; parts [count * 4, PARTS], which are rel, 1 / scale of the first norm, its variance,
    and the scales of the other norms; saved [count * 4, KEPT * WIDTH * DEPTH], the activations. coord is [B, Q, 2], or
    with PLANNED rel, and `at` the corners' positions in the map. With WRAP `width` is that of the map and of a column
    at either side.
    """
    LINEAR: tl.constexpr = 3 * WIDTH if DEPTH else 1
    RECORD: tl.constexpr = KEPT * WIDTH * DEPTH
    start = tl.program_id(0).to(tl.int64) * QUERIES
    count = tl.minimum(limit - first - start, QUERIES).to(tl.int32)
    # Behind the end the last query again, so that only stores are masked.
    query = first + start + tl.minimum(tl.arange(0, QUERIES), count - 1)
    image, inside = query // queries, query % queries
    latent, rel_y, rel_x = (), (), ()
    if PLANNED:
        for t in tl.static_range(4):
            place = coord + image * coord_image + inside * 8 + 2 * t
            rel_y, rel_x = rel_y + (tl.load(place),), rel_x + (tl.load(place + 1),)
            latent = latent + (image * height * map_width + tl.load(at + image * at_image + inside * 4 + t),)
    else:
        place = coord + image * coord_image + inside * coord_query
        row, column = tl.load(place), tl.load(place + coord_axis)
        if WRAP:
            column = column * inner
        y0, rel_y0 = nearest(row, row + row_minus, height, row_step, row_origin)
        y1, rel_y1 = nearest(row, row + row_plus, height, row_step, row_origin)
        x0, rel_x0 = nearest(column, column + column_minus, width, column_step, column_origin)
        x1, rel_x1 = nearest(column, column + column_plus, width, column_step, column_origin)
        if WRAP:
            x0, x1 = (x0 + map_width - 1) % map_width, (x1 + map_width - 1) % map_width
        top, bottom = (image * height + y0) * map_width, (image * height + y1) * map_width
        latent = (top + x0, top + x1, bottom + x0, bottom + x1)
        rel_y, rel_x = (rel_y0, rel_y0, rel_y1, rel_y1), (rel_x0, rel_x1, rel_x0, rel_x1)
    rows, scale, inverse, variance = (), (), (), ()
    for t in tl.static_range(4):
        rows = rows + (table + latent[t] * COLUMNS,)
    n1_y = numbers(rows, by_rel, LINEAR, rel_y, rel_x, COLUMNS)
    n1_x = numbers(rows, by_rel, LINEAR + 1, rel_y, rel_x, COLUMNS)
    n0 = numbers(rows, by_rel, LINEAR + 2, rel_y, rel_x, COLUMNS)
    for t in tl.static_range(4):
        variance = variance + (n0[t] + (rel_y[t] * n1_y[t] + rel_x[t] * n1_x[t]),)
        level = relu(variance[t]) + EPS
        scale = scale + (tl.rsqrt(level),)
        inverse = inverse + (level * scale[t],)
    saved += start * (4 * RECORD)
    parts += start * (4 * PARTS)
    if KEEP:
        keep_numbers(latents + start * 4, latent, 0, count, 1, QUERIES)
        keep_numbers(parts, rel_y, 0, count, PARTS, QUERIES)
        keep_numbers(parts, rel_x, 1, count, PARTS, QUERIES)
        keep_numbers(parts, inverse, 2, count, PARTS, QUERIES)
        keep_numbers(parts, variance, 3, count, PARTS, QUERIES)
    logit = ()
    if DEPTH:
        x = ()
        for k in tl.static_range(WIDTH // BLOCK):
            x = x + block_of(rows, by_rel, LINEAR + 3 + k * BLOCK, rel_y, rel_x, COLUMNS, BLOCK)
        x, y = block_forward(
            x, x, weights, 0, 0, rows, by_rel, rel_y, rel_x, scale, saved, parts, count,
            True, WIDTH, CHANNELS, OUTS, COLUMNS, KEEP, RECORD, PARTS, QUERIES, BLOCK, PRECISION,
        )  # fmt: skip
        for block in tl.range(1, DEPTH):
            x, y = block_forward(
                x, y, weights, block * (MAPS * WIDTH), block, rows, by_rel, rel_y, rel_x, scale, saved, parts, count,
                False, WIDTH, CHANNELS, OUTS, COLUMNS, KEEP, RECORD, PARTS, QUERIES, BLOCK, PRECISION,
            )  # fmt: skip
        head = MAPS * WIDTH * DEPTH - 3 * WIDTH
        for t in tl.static_range(4):
            total = tl.load(weights + (WIDTH * OUTS + head)) + tl.zeros((QUERIES,), tl.float32)
            for k in tl.static_range(WIDTH // BLOCK):
                total += tl.sum(y[4 * k + t] * tl.load(weights + columns(k, BLOCK) * OUTS + head)[None, :], 1)
            logit = logit + (total,)
    else:
        raw = numbers(rows, by_rel, 0, rel_y, rel_x, COLUMNS)
        for t in tl.static_range(4):
            logit = logit + (tl.fma(raw[t], scale[t], tl.load(by_rel + 2 * COLUMNS)),)
    share = softmax(logit)
    keep_numbers(weight + start * 4, share, 0, count, 1, QUERIES)
    if not KEEP:
        blend(rows, share, out + start * VALUES, count, COLUMNS, VALUES, VALUES_BLOCK, QUERIES)


@triton.jit
def blend_back(
    weight_grad, rows, share, grad, row_grads, count,
    COLUMNS: tl.constexpr, VALUES: tl.constexpr, STEP: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the values, and add to those of the weights what the outputs' gradient gives."""
    query = tl.arange(0, QUERIES)
    for begin in tl.range(0, VALUES, STEP):
        column, more = begin + tl.arange(0, STEP), ()
        inside = (column < VALUES)[None, :]
        mask = (query < count)[:, None] & inside
        g = tl.load(grad + (query[:, None] * VALUES + column[None, :]), mask=mask, other=0.0)
        for t in tl.static_range(4):
            value = tl.load(rows[t][:, None] + (column + (COLUMNS - VALUES))[None, :], mask=mask, other=0.0)
            more = more + (weight_grad[t] + tl.sum(g * value, 1),)
            to = (query * 4 + t)[:, None] * COLUMNS + (column + (COLUMNS - VALUES))[None, :]
            tl.store(row_grads + to, g * share[t][:, None], mask=mask)
        weight_grad = more
    return weight_grad


@triton.jit
def block_back(
    x_grad, weights, at, block, by_rel, scale, saved, parts, grads, row_grads, count,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr, COLUMNS: tl.constexpr,
    RECORD: tl.constexpr, PARTS: tl.constexpr,
    QUERIES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go from the gradient of a block's output to that of its input, and write those of its linear maps' outputs.

    The first block's qkv is in the table. Its gradients go to row_grads, and the sums of them times what the first
    norm's scale multiplied are returned, too.
    """
    COUNT: tl.constexpr = 4 * (WIDTH // BLOCK)
    GROUP: tl.constexpr = max(CHANNELS // BLOCK, 1)  # blocks that share a head
    of = block * (KEPT * WIDTH)
    keep(grads, x_grad, at + 2 * WIDTH, count, COUNT, OUTS, QUERIES, BLOCK)
    g = back(x_grad, weights, at + 2 * WIDTH, WIDTH, OUTS, QUERIES, BLOCK, PRECISION)
    g = gelu_back(g, kept(saved, of + 5 * WIDTH, count, COUNT, RECORD, QUERIES, BLOCK), COUNT)
    keep(grads, g, at + WIDTH, count, COUNT, OUTS, QUERIES, BLOCK)
    g = back(g, weights, at + WIDTH, WIDTH, OUTS, QUERIES, BLOCK, PRECISION)
    between = kept(saved, of + 4 * WIDTH, count, COUNT, RECORD, QUERIES, BLOCK)
    x_grad = norm_back(x_grad, g, between, kept_numbers(parts, 4 + 2 * block, count, PARTS, QUERIES), WIDTH, BLOCK)
    keep(grads, x_grad, at, count, COUNT, OUTS, QUERIES, BLOCK)
    g = back(x_grad, weights, at, WIDTH, OUTS, QUERIES, BLOCK, PRECISION)
    total, y_grad = (), zeros(COUNT, QUERIES, BLOCK)
    for _ in tl.static_range(4):
        total = total + (tl.zeros((QUERIES,), tl.float32),)
    for group in tl.static_range(WIDTH // (GROUP * BLOCK)):
        qkv = ()
        for i in tl.static_range(3):
            column = i * WIDTH + group * GROUP * BLOCK
            qkv = qkv + kept(saved, of + column, count, 4 * GROUP, RECORD, QUERIES, BLOCK)
        q, k, v = qkv[: 4 * GROUP], qkv[4 * GROUP : 8 * GROUP], qkv[8 * GROUP :]
        q, k, v = attend_back(g[4 * GROUP * group : 4 * GROUP * (group + 1)], q, k, v, CHANNELS, QUERIES, BLOCK)
        qkv_grad = q + k + v
        for i in tl.static_range(3 * GROUP):
            column = i // GROUP * WIDTH + (group * GROUP + i % GROUP) * BLOCK
            if FIRST:
                bias = tl.load(by_rel + 2 * COLUMNS + column + tl.arange(0, BLOCK))[None, :]
                more, raw = (), ()
                for t in tl.static_range(4):
                    one = qkv_grad[4 * i + t]
                    more = more + (total[t] + tl.sum(one * (qkv[4 * i + t] - bias), 1),)
                    raw = raw + (one * scale[t][:, None],)
                total = more
                keep(row_grads, raw, column, count, 4, COLUMNS, QUERIES, BLOCK)
            else:
                part = qkv_grad[4 * i : 4 * i + 4]
                keep(grads, part, at - 3 * WIDTH + column, count, 4, OUTS, QUERIES, BLOCK)
                y_grad = back_block(part, y_grad, weights, at - 3 * WIDTH + column, WIDTH, OUTS, BLOCK, PRECISION)
    if not FIRST:
        y = kept(saved, of - WIDTH, count, COUNT, RECORD, QUERIES, BLOCK)
        y_scale = kept_numbers(parts, 3 + 2 * block, count, PARTS, QUERIES)
        x_grad = norm_back(x_grad, y_grad, y, y_scale, WIDTH, BLOCK)
    return x_grad, total


@triton.jit(do_not_specialize=["total"], do_not_specialize_on_alignment=["grad", "grad_weight"])
def attend_back_kernel(
    grad, grad_weight, table, by_rel, weights, weight, saved, parts, latents, grads, row_grads, total,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr,
    COLUMNS: tl.constexpr, VALUES: tl.constexpr, VALUES_BLOCK: tl.constexpr, PARTS: tl.constexpr,
    QUERIES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute, for `total` queries that `attend_kernel` has kept activations of, the gradients of all rows.

    Writes grads [rows, OUTS], of the linear maps' outputs, where `weights` has their columns, and row_grads
    [rows, COLUMNS], of the rows of the table.
    """
    LINEAR: tl.constexpr = 3 * WIDTH if DEPTH else 1
    RECORD: tl.constexpr = KEPT * WIDTH * DEPTH
    start = tl.program_id(0).to(tl.int64) * QUERIES
    count = tl.minimum(total - start, QUERIES).to(tl.int32)
    saved += start * (4 * RECORD)
    parts += start * (4 * PARTS)
    grads += start * (4 * OUTS)
    row_grads += start * (4 * COLUMNS)
    latent = kept_numbers(latents + start * 4, 0, count, 1, QUERIES)
    rel_y, rel_x = kept_numbers(parts, 0, count, PARTS, QUERIES), kept_numbers(parts, 1, count, PARTS, QUERIES)
    variance = kept_numbers(parts, 3, count, PARTS, QUERIES)
    share = kept_numbers(weight + start * 4, 0, count, 1, QUERIES)
    rows, scale = (), ()
    for t in tl.static_range(4):
        rows = rows + (table + latent[t] * COLUMNS,)
        scale = scale + (tl.rsqrt(relu(variance[t]) + EPS),)
    logit = kept_numbers(grad_weight + start * 4, 0, count, 1, QUERIES)
    logit = blend_back(
        logit, rows, share, grad + start * VALUES, row_grads, count, COLUMNS, VALUES, VALUES_BLOCK, QUERIES
    )
    logit = softmax_back(logit, share)
    if DEPTH:
        keep_numbers(grads, logit, MAPS * WIDTH * DEPTH - 3 * WIDTH, count, OUTS, QUERIES)
        g = ()
        for k in tl.static_range(WIDTH // BLOCK):
            head = tl.load(weights + columns(k, BLOCK) * OUTS + (MAPS * WIDTH * DEPTH - 3 * WIDTH))
            for t in tl.static_range(4):
                g = g + (logit[t][:, None] * head[None, :],)
        y = kept(saved, RECORD - WIDTH, count, 4 * (WIDTH // BLOCK), RECORD, QUERIES, BLOCK)
        y_scale = kept_numbers(parts, PARTS - 1, count, PARTS, QUERIES)
        x_grad = norm_back(zeros(4 * (WIDTH // BLOCK), QUERIES, BLOCK), g, y, y_scale, WIDTH, BLOCK)
        for later in tl.range(1, DEPTH):
            x_grad, _ = block_back(
                x_grad, weights, (DEPTH - later) * (MAPS * WIDTH), DEPTH - later, by_rel, scale,
                saved, parts, grads, row_grads, count,
                False, WIDTH, CHANNELS, OUTS, COLUMNS, RECORD, PARTS, QUERIES, BLOCK, PRECISION,
            )  # fmt: skip
        x_grad, moved = block_back(
            x_grad, weights, 0, 0, by_rel, scale, saved, parts, grads, row_grads, count,
            True, WIDTH, CHANNELS, OUTS, COLUMNS, RECORD, PARTS, QUERIES, BLOCK, PRECISION,
        )  # fmt: skip
        keep(row_grads, x_grad, LINEAR + 3, count, 4 * (WIDTH // BLOCK), COLUMNS, QUERIES, BLOCK)
    else:
        raw, first, moved = numbers(rows, by_rel, 0, rel_y, rel_x, COLUMNS), (), ()
        for t in tl.static_range(4):
            first = first + (logit[t] * scale[t],)
            moved = moved + (first[t] * raw[t],)
        keep_numbers(row_grads, first, 0, count, COLUMNS, QUERIES)
    n0, n1_y, n1_x = (), (), ()
    for t in tl.static_range(4):
        change = tl.where(variance[t] < 0.0, 0.0, -0.5 * moved[t] * scale[t] * scale[t])
        n0, n1_y, n1_x = n0 + (change,), n1_y + (change * rel_y[t],), n1_x + (change * rel_x[t],)
    keep_numbers(row_grads, n1_y, LINEAR, count, COLUMNS, QUERIES)
    keep_numbers(row_grads, n1_x, LINEAR + 1, count, COLUMNS, QUERIES)
    keep_numbers(row_grads, n0, LINEAR + 2, count, COLUMNS, QUERIES)


class Net(NamedTuple):
    """Hold what the kernels need to know of a transformer: its constants, and its linear maps side by side."""

    constants: dict[str, Any]
    weights: Tensor  # [WIDTH + 1, OUTS]


def packed(layers: Sequence[Tensor], width: int) -> Tensor:
    """Lay out linear maps [out, in + 1] side by side as [width + 1, OUTS], hidden layers padded with zeros to width."""
    rows = []
    for number, layer in enumerate(layers):
        if number % 4 == 1 and len(layer) < width:  # up
            layer = F.pad(layer, (0, 0, 0, width - len(layer)))
        elif layer.shape[1] <= width:  # down
            layer = torch.cat((F.pad(layer[:, :-1], (0, width + 1 - layer.shape[1])), layer[:, -1:]), 1)
        rows.append(layer)
    rows.append(layers[-1].new_zeros(ALIGNED - 1, width + 1))  # behind the head's single output
    return torch.cat(rows).t().contiguous()


def network(table: Tensor, layers: Sequence[Tensor], heads: int) -> Net:
    """Return the constants and the packed maps of a transformer."""
    depth = len(layers) // 4
    width = layers[0].shape[0] if depth else 1
    # The fewer products are added in one tensor core's sum, the smaller its error where it truncates.
    block = min(width, 16 if width <= 32 else 32) if depth else ALIGNED
    channels = width // heads if depth else 1
    values = table.shape[1] - (4 * width + 3 if depth else 4)
    weights = packed(layers, width) if depth else table
    constants = {
        "DEPTH": depth, "WIDTH": width, "CHANNELS": channels, "OUTS": weights.shape[1] if depth else 1, "COLUMNS": table.shape[1], "VALUES": values,
        "VALUES_BLOCK": min(VALUES_BLOCK, host.power_of_two(values)), "PARTS": 4 + 2 * depth,
        "QUERIES": TILE, "BLOCK": block, "PRECISION": host.dot_precision(table.dtype),
        "num_warps": 4, "num_stages": 1, "enable_fp_fusion": False,
    }  # fmt: skip
    return Net(constants, weights)


def launch(
    table: Tensor,
    by_rel: Tensor,
    net: Net,
    queries: Sequence[Tensor],
    shape: Sequence[int],
    wrap: bool,
    part: range,
    out: Tensor,
    weight: Tensor,
    kept: Sequence[Tensor],
) -> None:
    """Run the forward kernel on the queries numbered `part` of [B * Q]; `kept` are saved, parts, latents, or none."""
    _, height, width = shape
    place, planned = queries[-1], len(queries) == 2
    count = place.shape[1]
    if planned:
        shared = place.shape[0] == 1
        strides = (0 if shared else 8 * count, 0, 0, 0 if shared else 4 * count)
    else:
        strides = (*place.stride(), 0)
    across = width + 2 if wrap else width
    with host.on(table):
        attend_kernel[(triton.cdiv(len(part), TILE),)](
            table, by_rel, net.weights, place, queries[0], out, weight, *(kept or (out, out, weight)),
            part.start, part.stop, count, *strides, *host.axis(height), *host.axis(across), width, width / across,
            PLANNED=planned, WRAP=wrap and not planned, KEEP=len(kept) > 0, **net.constants,
        )  # fmt: skip


def attend_corners(
    table: Tensor,
    by_rel: Tensor,
    layers: Sequence[Tensor],
    queries: Sequence[Tensor],
    shape: Sequence[int],
    wrap: bool,
    heads: int,
) -> tuple[Tensor, Tensor]:
    """Return the blended values [B, Q, V] and the corners' weights [B, Q, 4]."""
    net = network(table, layers, heads)
    batch, count = shape[0], queries[0].shape[1]
    out, weight = table.new_empty(batch, count, net.constants["VALUES"]), table.new_empty(batch, count, 4)
    if batch * count:
        check_plan(queries, shape)
        launch(table, by_rel, net, queries, shape, wrap, range(batch * count), out, weight, ())
    return out, weight


def check_plan(queries: Sequence[Tensor], shape: Sequence[int]) -> None:
    """Let a plan that points outside of the map fail as PyTorch's indexing does, without waiting for the device."""
    if len(queries) == 2:
        low, high = torch.aminmax(queries[0])
        torch._assert_async((low >= 0) & (high < shape[1] * shape[2]), "liif_fast: at must be positions of the map")


def attend_corners_backward(
    grad: Tensor,
    grad_weight: Tensor,
    table: Tensor,
    by_rel: Tensor,
    layers: Sequence[Tensor],
    queries: Sequence[Tensor],
    shape: Sequence[int],
    wrap: bool,
    heads: int,
) -> list[Tensor]:
    """Return the gradients of the table, of by_rel and of the layers; grad [B, Q, V], grad_weight [B, Q, 4]."""
    net = network(table, layers, heads)
    constants, columns = net.constants, table.shape[1]
    table_grad, total = torch.zeros_like(table), shape[0] * queries[0].shape[1]
    sums = [torch.zeros_like(each) for each in (by_rel, *layers)]
    flat, flat_weight = grad.flatten(0, 1), grad_weight.flatten(0, 1)
    record, outs = KEPT.value * constants["WIDTH"] * constants["DEPTH"], constants["OUTS"]
    widths = record, constants["PARTS"], outs, columns
    step = 1 << (backward.CHUNK_BYTES // (16 * sum(widths))).bit_length() - 1
    most = min(step, total)
    memory = [table.new_empty(4 * most, width) for width in widths]
    latents_memory = torch.empty(4 * most, dtype=torch.int64, device=table.device)
    weight = table.new_empty(most, 4)
    for start, stop in backward.steps((0, total), step):
        saved, parts, grads, row_grads = (each[: 4 * (stop - start)] for each in memory)
        latents = latents_memory[: 4 * (stop - start)]
        launch(
            table, by_rel, net, queries, shape, wrap, range(start, stop), weight, weight, (saved, parts, latents)
        )  # fmt: skip
        with host.on(table):
            attend_back_kernel[(triton.cdiv(stop - start, TILE),)](
                flat[start:stop], flat_weight[start:stop], table, by_rel, net.weights, weight,
                saved, parts, latents, grads, row_grads, stop - start, **constants,
            )  # fmt: skip
        sums[0] += host.product(parts[:, :3].t(), row_grads)
        for number, layer in enumerate(layers):
            add_layer(sums[number + 1], number, layer, grads, saved, constants["WIDTH"])
        scatter.add(row_grads, latents, table_grad)
    return [table_grad, *sums]


def add_layer(to: Tensor, number: int, layer: Tensor, grads: Tensor, saved: Tensor, width: int) -> None:
    """Add to the gradient of a layer [out, in + 1] that of a chunk's rows."""
    outs, ins = layer.shape[0], layer.shape[1] - 1
    block, kind = divmod(number, 4)
    output = (block * MAPS.value + kind) * width
    source = (block * KEPT.value + (3, 4, 6, 7)[kind]) * width  # mixed, between, active, next
    g = grads[:, output : output + outs]
    to[:, :-1] += host.product(g.t(), saved[:, source : source + ins])
    to[:, -1] += g.sum(0)
