"""Attend over the corners of each query: from the table of latents to the blended values, in one pass.

liif_fast/ops/attend.py describes the table and the layers. kernels/attention.py describes how a tile holds its tokens.
The forward pass keeps no activations. The backward pass takes the queries in chunks. It recomputes a chunk's
activations, writes the gradients of all rows (attend_back.py), and sums them by matrix products and by latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from liif_fast.frozen import pack_once

from . import backward, host, scatter
from .attend_back import attend_back_kernel, attention_back_kernel
from .attention import (
    EPS,
    KEPT,
    MAPS,
    WIDE,
    added,
    attention,
    gelu,
    keep_all,
    kept,
    linear,
    linear_block,
    mixed,
    norm,
    number,
)
from .network import columns, keep, relu
from .plan import corners, located

ROWS, WARPS = 64, 4  # tokens of a tile
# Columns of a tile's blocks: few, because a tensor core that truncates accumulates an error with each product of a sum.
BLOCK, TRAINING_BLOCK = 32, 16  # in training, 32 columns take too many registers on sm_80
ATTENTION_ROWS = 32  # tokens of a tile of attention_back_kernel, which has no matrix products
VALUES_STEP = 8  # largest number of values that a step blends
ALIGNED = 16  # columns that the head takes among the maps, so that rows stay aligned
SIZES = ["first", "limit", "queries", "coord_image", "coord_query", "coord_axis", "at_image", "height", "width",
         "map_width"]  # fmt: skip


@triton.jit
def block_of(rows, by_rel, at, rel_y, rel_x, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Return BLOCK columns of the table from `at` on, plus by_rel times rel: `number` for a block of columns."""
    column = tl.arange(0, BLOCK)
    x = tl.load(rows[:, None] + column[None, :] + at)
    x = tl.fma(tl.load(by_rel + column + at)[None, :], rel_y[:, None], x)
    return tl.fma(tl.load(by_rel + column + (COLUMNS + at))[None, :], rel_x[:, None], x)


@triton.jit
def attend_kept(
    saved, count,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, RECORD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Read a block's qkv from `saved`, and write the attention's output there."""
    BLOCK: tl.constexpr = min(WIDTH, WIDE)
    GROUP: tl.constexpr = max(CHANNELS // BLOCK, 1)
    for at in tl.range(0, WIDTH, GROUP * BLOCK):
        q = kept(saved, at, count, GROUP, RECORD, ROWS, BLOCK)
        k = kept(saved, at + WIDTH, count, GROUP, RECORD, ROWS, BLOCK)
        weight = attention(q, k, CHANNELS, GROUP, ROWS, BLOCK)
        v = kept(saved, at + 2 * WIDTH, count, GROUP, RECORD, ROWS, BLOCK)
        heard = mixed(weight, v, CHANNELS, GROUP, ROWS, BLOCK)
        keep_all(saved, heard, at + 3 * WIDTH, count, GROUP, RECORD, ROWS, BLOCK)


@triton.jit
def block_forward(
    x, y, weights, rows, by_rel, rel_y, rel_x, scale, saved, parts, count,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr, COLUMNS: tl.constexpr,
    KEEP: tl.constexpr, RECORD: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Run a block on its input x and the norm y of x; return both for the next block. The table has the first's qkv.

    `weights` point at the block's `out` map, `saved` at its first activation, `parts` at the scale of its second norm.
    """
    BLOCKS: tl.constexpr = WIDTH // BLOCK
    GROUP: tl.constexpr = max(CHANNELS // BLOCK, 1)  # blocks that share a head
    heard = ()
    for group in tl.static_range(BLOCKS // GROUP):
        qkv = ()
        for i in tl.static_range(3 * GROUP):
            column = i // GROUP * WIDTH + (group * GROUP + i % GROUP) * BLOCK
            if FIRST:
                part = block_of(rows, by_rel, column, rel_y, rel_x, COLUMNS, BLOCK)
                bias = tl.load(by_rel + tl.arange(0, BLOCK) + (2 * COLUMNS + column))
                part = tl.fma(part, scale[:, None], bias[None, :])
            else:
                part = linear_block(y, weights, column - 3 * WIDTH, WIDTH, OUTS, ROWS, BLOCK, PRECISION)
            if KEEP:
                keep(saved + column, count, tl.arange(0, BLOCK), part, ROWS, RECORD)
            else:
                qkv = qkv + (part,)
        if not KEEP:
            weight = attention(qkv[:GROUP], qkv[GROUP : 2 * GROUP], CHANNELS, GROUP, ROWS, BLOCK)
            heard = heard + mixed(weight, qkv[2 * GROUP :], CHANNELS, GROUP, ROWS, BLOCK)
    # Activations that are kept anyway need no registers: each part is written once it is complete, and read again.
    if KEEP:
        tl.debug_barrier()
        attend_kept(saved, count, WIDTH, CHANNELS, RECORD, ROWS)
        tl.debug_barrier()
        heard = kept(saved, 3 * WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK)
    if FIRST:  # read only here, so that x takes no registers before
        x = ()
        for k in tl.static_range(BLOCKS):
            x = x + (block_of(rows, by_rel, 3 * WIDTH + 3 + k * BLOCK, rel_y, rel_x, COLUMNS, BLOCK),)
    x = added(x, linear(heard, weights, 0, WIDTH, OUTS, ROWS, BLOCK, PRECISION), BLOCKS)
    between, between_scale = norm(x, BLOCKS, WIDTH)
    if KEEP:
        keep(parts, count, tl.arange(0, 1), between_scale, ROWS, PARTS)
        keep_all(saved, between, 4 * WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK)
    hidden = linear(between, weights, WIDTH, WIDTH, OUTS, ROWS, BLOCK, PRECISION)
    if KEEP:
        keep_all(saved, hidden, 5 * WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK)
    active = gelu(hidden, BLOCKS)
    if KEEP:
        keep_all(saved, active, 6 * WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK)
    x = added(x, linear(active, weights, 2 * WIDTH, WIDTH, OUTS, ROWS, BLOCK, PRECISION), BLOCKS)
    y, y_scale = norm(x, BLOCKS, WIDTH)
    if KEEP:
        keep(parts + 1, count, tl.arange(0, 1), y_scale, ROWS, PARTS)
        keep_all(saved, y, 7 * WIDTH, count, BLOCKS, RECORD, ROWS, BLOCK)
    return x, y


@triton.jit
def blend(
    rows, share, out, count,
    COLUMNS: tl.constexpr, VALUES: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write the corners' values, the last columns of the table, summed with weights `share` [ROWS]."""
    query = tl.arange(0, ROWS // 4)
    for begin in tl.range(0, VALUES, STEP):
        column = begin + tl.arange(0, STEP)
        inside = (column < VALUES)[None, :]
        value = tl.load(rows[:, None] + (column + (COLUMNS - VALUES))[None, :], mask=inside, other=0.0)
        total = tl.sum(tl.reshape(share[:, None] * value, (ROWS // 4, 4, STEP)), 1)
        mask = (query < count // 4)[:, None] & inside
        tl.store(out + (query[:, None] * VALUES + column[None, :]), total, mask=mask)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["coord", "at"])
def attend_kernel(
    table, by_rel, weights, coord, at, out, weight, saved, parts, latents,
    first, limit, queries, coord_image, coord_query, coord_axis, at_image,
    height, row_step, row_origin, row_minus, row_plus,
    width, column_step, column_origin, column_minus, column_plus,
    map_width, inner,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, OUTS: tl.constexpr,
    COLUMNS: tl.constexpr, VALUES: tl.constexpr, STEP: tl.constexpr, PARTS: tl.constexpr,
    PLANNED: tl.constexpr, WRAP: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute queries first..limit of [B * queries]; outputs are indexed from first.

    Writes weight [count, 4] and out [count, VALUES]. With KEEP, for the backward pass, it writes these instead of out:
    latents int64 [rows], the rows of the table; parts [rows, PARTS], which are rel, 1 / scale of the first norm, its
    variance, and the scales of the other norms; saved [rows, KEPT * WIDTH * DEPTH], the activations. coord is
    [B, Q, 2]; with PLANNED it is rel, and `at` has the corners' positions in the map. With WRAP, `width` is the map's
    width plus a column at either side.
    """
    LINEAR: tl.constexpr = 3 * WIDTH if DEPTH else 1
    RECORD: tl.constexpr = KEPT * WIDTH * DEPTH
    start = tl.program_id(0).to(tl.int64) * (ROWS // 4)
    row = tl.arange(0, ROWS)
    count = tl.minimum(limit - first - start, ROWS // 4).to(tl.int32) * 4
    corner = row % 4
    # Rows beyond the end repeat the last query, so that only stores need a mask.
    image, inside = located(first + start, tl.minimum(row, count - 1) // 4, queries)
    if PLANNED:
        place = coord + image * coord_image + inside * 8 + 2 * corner
        rel_y, rel_x = tl.load(place), tl.load(place + 1)
        latent = image * height * map_width + tl.load(at + image * at_image + inside * 4 + corner)
    else:
        place = coord + image * coord_image + inside * coord_query
        coord_y, coord_x = tl.load(place), tl.load(place + coord_axis)
        if WRAP:
            coord_x = coord_x * inner
        y, x, rel_y, rel_x, _ = corners(
            coord_y, coord_x, corner,
            height, row_step, row_origin, row_minus, row_plus,
            width, column_step, column_origin, column_minus, column_plus,
            True,
        )  # fmt: skip
        if WRAP:
            x = (x + (map_width - 1)) % map_width
        latent = (image * height + y) * map_width + x
    rows = table + latent * COLUMNS
    n1_y = number(rows, by_rel, LINEAR, rel_y, rel_x, COLUMNS)
    n1_x = number(rows, by_rel, LINEAR + 1, rel_y, rel_x, COLUMNS)
    n0 = number(rows, by_rel, LINEAR + 2, rel_y, rel_x, COLUMNS)
    variance = n0 + (rel_y * n1_y + rel_x * n1_x)
    scale = tl.rsqrt(relu(variance) + EPS)
    saved += start * (4 * RECORD)
    parts += start * (4 * PARTS)
    if KEEP:
        tl.store(latents + start * 4 + row, latent, mask=row < count)
        tl.store(parts + row * PARTS, rel_y, mask=row < count)
        tl.store(parts + (row * PARTS + 1), rel_x, mask=row < count)
        tl.store(parts + (row * PARTS + 2), (relu(variance) + EPS) * scale, mask=row < count)
        tl.store(parts + (row * PARTS + 3), variance, mask=row < count)
    if DEPTH:
        x, y = block_forward(
            (), (), weights, rows, by_rel, rel_y, rel_x, scale, saved, parts + 4, count,
            True, WIDTH, CHANNELS, OUTS, COLUMNS, KEEP, RECORD, PARTS, ROWS, BLOCK, PRECISION,
        )  # fmt: skip
        for block in tl.range(1, DEPTH):
            x, y = block_forward(
                x, y, weights + block * (MAPS * WIDTH), rows, by_rel, rel_y, rel_x, scale,
                saved + block * (KEPT * WIDTH), parts + (4 + 2 * block), count,
                False, WIDTH, CHANNELS, OUTS, COLUMNS, KEEP, RECORD, PARTS, ROWS, BLOCK, PRECISION,
            )  # fmt: skip
        logit = tl.load(weights + (WIDTH * OUTS + MAPS * WIDTH * DEPTH - 3 * WIDTH)) + tl.zeros((ROWS,), tl.float32)
        for k in tl.static_range(WIDTH // BLOCK):
            head = tl.load(weights + (columns(k, BLOCK) * OUTS + (MAPS * WIDTH * DEPTH - 3 * WIDTH)))
            logit += tl.sum(y[k] * head[None, :], 1)
    else:
        logit = number(rows, by_rel, 0, rel_y, rel_x, COLUMNS) * scale + tl.load(by_rel + 2 * COLUMNS)
    logit = tl.reshape(logit, (ROWS // 4, 4))
    share = tl.exp(logit - tl.max(logit, 1, keep_dims=True))
    share = tl.reshape(share / tl.sum(share, 1, keep_dims=True), (ROWS,))
    tl.store(weight + start * 4 + row, share, mask=row < count)
    if not KEEP:
        blend(rows, share, out + start * VALUES, count, COLUMNS, VALUES, STEP, ROWS)


class Net(NamedTuple):
    """Hold a transformer for the kernels: its constants, and its linear maps side by side."""

    constants: dict[str, Any]
    weights: Tensor  # [WIDTH + 1, OUTS]


def packed(layers: Sequence[Tensor], width: int) -> Tensor:
    """Lay out linear maps [out, in + 1] side by side as [width + 1, OUTS], hidden layers padded with zeros to width."""
    rows = []
    for at, layer in enumerate(layers):
        if at % 4 == 1 and len(layer) < width:  # up
            layer = F.pad(layer, (0, 0, 0, width - len(layer)))
        elif layer.shape[1] <= width:  # down
            layer = torch.cat((F.pad(layer[:, :-1], (0, width + 1 - layer.shape[1])), layer[:, -1:]), 1)
        rows.append(layer)
    rows.append(layers[-1].new_zeros(ALIGNED - 1, width + 1))  # behind the head's single output
    return torch.cat(rows).t().contiguous()


def network(table: Tensor, layers: Sequence[Tensor], heads: int, block: int = BLOCK) -> Net:
    """Return the constants and the packed maps of a transformer."""
    depth = len(layers) // 4
    width = layers[0].shape[0] if depth else 1
    block = 16 if width <= 32 else block
    channels = width // heads if depth else 1
    values = table.shape[1] - (4 * width + 3 if depth else 4)
    weights = pack_once(layers, (packed, width), lambda: packed(layers, width)) if depth else table
    constants = {
        "DEPTH": depth, "WIDTH": width, "CHANNELS": channels, "OUTS": weights.shape[1] if depth else 1,
        "COLUMNS": table.shape[1], "VALUES": values, "STEP": min(VALUES_STEP, host.power_of_two(values)),
        "PARTS": 4 + 2 * depth, "ROWS": ROWS, "BLOCK": block, "PRECISION": host.dot_precision(table.dtype),
        "num_warps": WARPS, "num_stages": 1, "enable_fp_fusion": False,
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
        at_image, rel_image = (0 if len(each) == 1 else each.stride(0) for each in queries)
        strides = (rel_image, 0, 0, at_image)
    else:
        strides = (*place.stride(), 0)
    across = width + 2 if wrap else width
    with host.on(table):
        attend_kernel[(triton.cdiv(4 * len(part), ROWS),)](
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
    """Let a plan that points outside the map fail as PyTorch's indexing does, without waiting for the device."""
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
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of the table, of by_rel and of the layers; grad [B, Q, V], grad_weight [B, Q, 4].

    `wanted` says for each gradient whether to sum it; the others are empty. The pass goes through every layer anyway.
    """
    net = network(table, layers, heads, TRAINING_BLOCK)
    constants, columns, depth = net.constants, table.shape[1], net.constants["DEPTH"]
    narrow = {name: value for name, value in constants.items() if name not in ("VALUES", "STEP", "PRECISION")}
    narrow |= {"ROWS": ATTENTION_ROWS, "BLOCK": min(constants["WIDTH"], WIDE.value)}
    total = shape[0] * queries[0].shape[1]
    sums = [
        each.new_zeros(each.shape if want else 0) for each, want in zip((table, by_rel, *layers), wanted, strict=True)
    ]
    of_table, of_rel, *of_layers = wanted
    flat, flat_weight = grad.flatten(0, 1), grad_weight.flatten(0, 1)
    record, outs = KEPT.value * constants["WIDTH"] * depth, constants["OUTS"]
    widths = record, constants["PARTS"], outs, columns
    step = 1 << (backward.CHUNK_BYTES // (16 * sum(widths))).bit_length() - 1
    most = min(step, total)
    memory = [table.new_empty(4 * most, width) for width in widths]
    latents_memory = torch.empty(4 * most, dtype=torch.int64, device=table.device)
    weight = table.new_empty(most, 4)
    for where in backward.steps((0, total), step):
        part = range(where.start, where.stop)
        saved, parts, grads, row_grads, latents = (each[: 4 * len(part)] for each in (*memory, latents_memory))
        launch(table, by_rel, net, queries, shape, wrap, part, weight, weight, (saved, parts, latents))
        with host.on(table):
            for block in reversed(range(max(depth, 1))):
                attend_back_kernel[(triton.cdiv(4 * len(part), ROWS),)](
                    flat[where], flat_weight[where], table, by_rel, net.weights, weight,
                    saved, parts, latents, grads, row_grads, len(part), block,
                    LAST=block >= depth - 1, **net.constants,
                )  # fmt: skip
                if depth:
                    attention_back_kernel[(triton.cdiv(4 * len(part), ATTENTION_ROWS),)](
                        by_rel, saved, parts, grads, row_grads, len(part), block, FIRST=block == 0, **narrow,
                    )  # fmt: skip
        if of_rel:
            sums[1] += host.product(parts[:, :3].t(), row_grads)
        for at, layer in enumerate(layers):
            if of_layers[at]:
                add_layer(sums[at + 2], at, layer, grads, saved, net.constants["WIDTH"])
        if of_table:
            scatter.add(row_grads, latents, sums[0])
    return sums


def add_layer(to: Tensor, at: int, layer: Tensor, grads: Tensor, saved: Tensor, width: int) -> None:
    """Add a chunk's gradient of a layer to `to` [out, in + 1]."""
    outs, ins = layer.shape[0], layer.shape[1] - 1
    block, kind = divmod(at, 4)
    output = (block * MAPS.value + kind) * width
    source = (block * KEPT.value + (3, 4, 6, 7)[kind]) * width  # heard, between, active, next
    g = grads[:, output : output + outs]
    to[:, :-1] += host.product(g.t(), saved[:, source : source + ins])
    to[:, -1] += g.sum(0)
