"""Decode maps of amplitudes and frequencies in one pass: corners, waves, the network behind them, blend (LTE).

This is `liif_fast.functional.fourier_decode`, forward and backward. The waves are computed tile by tile, where the
first layer reads them. The backward pass is that of an MLP whose rows follow the corner plan (kernels/backward.py).
After it, `waves_back_kernel` computes the gradients of the waves' inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from liif_fast.frozen import pack_once

from . import backward, host, scatter
from .host import dot
from .network import activated, columns, hidden_layers, last_layer
from .plan import corners, located

SHIFT = tl.constexpr(1.5 * 2.0**23)  # the last bits of a + SHIFT are a rounded to an integer, while |a| < 2^22
MOST = tl.constexpr(2.0**21)
PI = tl.constexpr(math.pi)
BACK_ROWS, BACK_WAVES = 32, 32  # a tile of waves_back_kernel
SIZES = ["first", "limit", "keep_limit", "queries", "height", "width", "p_top", "p_left", "p_height", "p_width",
         "coord_image", "coord_query", "coord_axis", "cell_image", "cell_query", "cell_axis", "saved_rows"]  # fmt: skip


@triton.jit
def sin_cos_pi(a):
    """Return sin(pi a) and cos(pi a), float32: a = r + n / 2 with |r| <= 1/4 exactly, and polynomials in r.

    Beyond MOST the fraction of a float is noise, so a counts as 0. NaN and infinity give NaN. csrc/cpu/waves_impl.h has
    the same numbers. tl.sin would need pi a, whose rounding error grows with a.
    """
    a = tl.where(tl.abs(a) < MOST, a, a - a)
    counted = tl.fma(a, 2.0, SHIFT)
    r = tl.fma(counted - SHIFT, -0.5, a)
    n = counted.to(tl.int32, bitcast=True)
    z = r * r
    s = tl.fma(z, 0.0821458866, -0.599264529)
    s = tl.fma(s, z, 2.55016404)
    s = tl.fma(s, z, -5.16771278)
    s = tl.fma(s, z, 3.14159265) * r
    c = tl.fma(z, -0.0258068913, 0.235330630)
    c = tl.fma(c, z, -1.33526277)
    c = tl.fma(c, z, 4.05871213)
    c = tl.fma(c, z, -4.93480220)
    c = tl.fma(c, z, 1.0)
    odd = (n & 1) != 0
    sine, cosine = tl.where(odd, c, s), tl.where(odd, s, c)
    return tl.where((n & 2) != 0, -sine, sine), tl.where(((n + 1) & 2) != 0, -cosine, cosine)


@triton.jit
def waves_of(
    p, latent, valid, first, rel_y, rel_x, phase, cell_y, cell_x,
    HALF: tl.constexpr, ROWS: tl.constexpr, WAVES: tl.constexpr,
):  # fmt: skip
    """Return amplitudes of cosines and sines, frequencies (row's, column's), sine and cosine, each [ROWS, WAVES].

    p float32 [latents, 4 HALF]; phase float32 [HALF, 2]; first: number of the first wave. Waves from HALF on are 0.
    """
    wave = first + tl.arange(0, WAVES)
    there = wave < HALF
    mask = valid[:, None] & there[None, :]
    at = p + latent[:, None] * (4 * HALF)
    of_cosine = tl.load(at + wave[None, :], mask=mask, other=0.0)
    of_sine = tl.load(at + (HALF + wave)[None, :], mask=mask, other=0.0)
    pair = 2 * first + tl.arange(0, 2 * WAVES)  # row's and column's parts lie side by side, so they are one load
    mask = valid[:, None] & (pair < 2 * HALF)[None, :]
    both = tl.load(at + (2 * HALF + pair)[None, :], mask=mask, other=0.0)
    row, column = tl.split(tl.reshape(both, (ROWS, WAVES, 2)))
    turns = tl.load(phase + 2 * wave, mask=there, other=0.0)[None, :] * cell_y[:, None]
    turns = tl.fma(tl.load(phase + 2 * wave + 1, mask=there, other=0.0)[None, :], cell_x[:, None], turns)
    turns += tl.fma(column, rel_x[:, None], row * rel_y[:, None])
    sine, cosine = sin_cos_pi(turns)
    return of_cosine, of_sine, row, column, sine, cosine


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["coord", "cell"])
def fourier_kernel(
    p, coord, cell, phase, first_weight, first_bias, weights, biases, last, last_bias, out, saved,
    first, limit, keep_limit, queries,
    coord_image, coord_query, coord_axis, cell_image, cell_query, cell_axis,
    height, row_step, row_origin, row_minus, row_plus,
    width, column_step, column_origin, column_minus, column_plus,
    p_top, p_left, p_height, p_width, saved_rows,
    HALF: tl.constexpr, STEPS: tl.constexpr, DEPTH: tl.constexpr,
    OUT: tl.constexpr, OUT_PADDED: tl.constexpr, LAYERS: tl.constexpr, WIDEST: tl.constexpr,
    SAVE: tl.constexpr, WRITE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Decode queries first..limit of [B * queries]; those before keep_limit save activations, indexed from first.

    In first_weight [STEPS * DEPTH, padded] the rows of a wave's cosine and sine are adjacent.
    """
    QUERIES: tl.constexpr = ROWS // 4
    WAVES: tl.constexpr = DEPTH // 2
    PADDED: tl.constexpr = BLOCK * BLOCKS
    start = first + tl.program_id(0).to(tl.int64) * QUERIES
    row = tl.arange(0, ROWS)
    query = start + row // 4
    valid = query < limit
    image, inside = located(start, row // 4, queries)
    at = coord + image * coord_image + inside * coord_query
    coord_y = tl.load(at, mask=valid, other=0.0)
    coord_x = tl.load(at + coord_axis, mask=valid, other=0.0)
    y, x, rel_y, rel_x, weight = corners(
        coord_y, coord_x, row % 4,
        height, row_step, row_origin, row_minus, row_plus,
        width, column_step, column_origin, column_minus, column_plus,
        True,
    )  # fmt: skip
    at = cell + image * cell_image + inside * cell_query
    cell_y = tl.load(at, mask=valid, other=0.0) * height.to(tl.float32)
    cell_x = tl.load(at + cell_axis, mask=valid, other=0.0) * width.to(tl.float32)
    latent = (image * p_height + (y - p_top)) * p_width + (x - p_left)
    z = ()
    for _ in tl.static_range(BLOCKS):
        z = z + (tl.zeros((ROWS, BLOCK), tl.float32),)
    # Not pipelined, because on sm_90 products would still read the waves' registers while the next turn writes them.
    for step in tl.range(0, STEPS, num_stages=1):
        of_cosine, of_sine, _by_row, _by_column, sine, cosine = waves_of(
            p, latent, valid, step * WAVES, rel_y, rel_x, phase, cell_y, cell_x, HALF, ROWS, WAVES
        )  # fmt: skip
        wave = tl.reshape(tl.join(of_cosine * cosine, of_sine * sine), (ROWS, DEPTH)).to(first_weight.dtype.element_ty)
        weight_at = first_weight + (step * DEPTH + tl.arange(0, DEPTH))[:, None] * PADDED
        more = ()
        for k in tl.static_range(BLOCKS):
            more = more + (dot(wave, tl.load(weight_at + columns(k, BLOCK)[None, :]), z[k], PRECISION),)
        z = more
    saved += (start - first) * (4 * WIDEST)
    saved_count = tl.minimum(keep_limit - start, QUERIES).to(tl.int32) * 4
    h = activated(z, first_bias, first_weight.dtype.element_ty, saved, saved_count, SAVE, WIDEST, ROWS, BLOCK, BLOCKS)
    h = hidden_layers(
        h, weights, biases, saved, saved_rows, saved_count, LAYERS, SAVE, WIDEST, ROWS, BLOCK, BLOCKS, PRECISION
    )
    if WRITE:
        result = last_layer(h, weight, last, last_bias, ROWS, 4, BLOCK, BLOCKS, OUT_PADDED, PRECISION)
        target, channel = start + tl.arange(0, QUERIES), tl.arange(0, OUT_PADDED)
        mask = (target < limit)[:, None] & (channel < OUT)[None, :]
        tl.store(out + target[:, None] * OUT + channel[None, :], result, mask=mask)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["places"])
def waves_back_kernel(
    grad, p, latents, parts, phase, waves, p_grad, phase_grad, places,
    rows,
    HALF: tl.constexpr, STEPS: tl.constexpr, OF_P: tl.constexpr, OF_PHASE: tl.constexpr, OF_WEIGHT: tl.constexpr,
    PLACES: tl.constexpr, ROWS: tl.constexpr, WAVES: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the waves' inputs from that of the waves, grad float32 [rows, 2 HALF].

    latents int64 [rows] and parts float32 [rows, 4] (rel and cell) are chain_kernel's. Writes with OF_WEIGHT the
    recomputed waves [rows, 2 HALF]; with OF_P p_grad float32 [rows, 4 HALF], of each row's latent; with OF_PHASE
    phase_grad float32 [programs, 2, HALF]; with PLACES the gradients of rel and cell to places float32 [rows, 5].
    """
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = start + tl.arange(0, ROWS)
    valid = row < rows
    latent = tl.load(latents + row, mask=valid, other=0)
    rel_y = tl.load(parts + row * 4, mask=valid, other=0.0)
    rel_x = tl.load(parts + row * 4 + 1, mask=valid, other=0.0)
    cell_y = tl.load(parts + row * 4 + 2, mask=valid, other=0.0)
    cell_x = tl.load(parts + row * 4 + 3, mask=valid, other=0.0)
    to_rel_y, to_rel_x = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    to_cell_y, to_cell_x = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    phase_grad += tl.program_id(0).to(tl.int64) * (2 * HALF)
    for step in tl.range(0, STEPS):
        of_cosine, of_sine, by_row, by_column, sine, cosine = waves_of(
            p, latent, valid, step * WAVES, rel_y, rel_x, phase, cell_y, cell_x, HALF, ROWS, WAVES
        )
        wave = step * WAVES + tl.arange(0, WAVES)
        there = wave < HALF
        mask = valid[:, None] & there[None, :]
        at = row[:, None] * (2 * HALF) + wave[None, :]
        if OF_WEIGHT:
            tl.store(waves + at, (of_cosine * cosine).to(waves.dtype.element_ty), mask=mask)
            tl.store(waves + at + HALF, (of_sine * sine).to(waves.dtype.element_ty), mask=mask)
        if OF_P or OF_PHASE or PLACES:
            to_cosine = tl.load(grad + at, mask=mask, other=0.0)
            to_sine = tl.load(grad + at + HALF, mask=mask, other=0.0)
            angle = PI * (to_sine * of_sine * cosine - to_cosine * of_cosine * sine)
        if OF_P:
            at = row[:, None] * (4 * HALF) + wave[None, :]
            tl.store(p_grad + at, to_cosine * cosine, mask=mask)
            tl.store(p_grad + at + HALF, to_sine * sine, mask=mask)
            pair = 2 * step * WAVES + tl.arange(0, 2 * WAVES)
            both = tl.reshape(tl.join(angle * rel_y[:, None], angle * rel_x[:, None]), (ROWS, 2 * WAVES))
            at = row[:, None] * (4 * HALF) + (2 * HALF + pair)[None, :]
            tl.store(p_grad + at, both, mask=valid[:, None] & (pair < 2 * HALF)[None, :])
        if OF_PHASE:
            tl.store(phase_grad + wave, tl.sum(angle * cell_y[:, None], 0), mask=there)
            tl.store(phase_grad + HALF + wave, tl.sum(angle * cell_x[:, None], 0), mask=there)
        if PLACES:
            to_rel_y += tl.sum(angle * by_row, 1)
            to_rel_x += tl.sum(angle * by_column, 1)
            to_cell_y += tl.sum(angle * tl.load(phase + 2 * wave, mask=there, other=0.0)[None, :], 1)
            to_cell_x += tl.sum(angle * tl.load(phase + 2 * wave + 1, mask=there, other=0.0)[None, :], 1)
    if PLACES:
        tl.store(places + row * 5, to_rel_y, mask=valid)
        tl.store(places + row * 5 + 1, to_rel_x, mask=valid)
        tl.store(places + row * 5 + 2, to_cell_y, mask=valid)
        tl.store(places + row * 5 + 3, to_cell_x, mask=valid)


def _launch(
    p: Tensor,
    coord: Tensor,
    cell: Tensor,
    phase: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    place: Sequence[int],
    queries: range,
    out: Tensor | None,
    saved: Tensor,
) -> None:
    """Decode the queries numbered `queries` of [B * Q] into out [B, Q, out_dim], saving as many as fit into `saved`.

    Args:
        phase: [K, 2], contiguous.
        saved: [hidden layers, rows, widest].
    """
    widest, dtype = host.widest(weights), weights[0].dtype
    form = host.form("recompute" if out is None else "mlp_save" if saved.shape[1] else "mlp", widest, weights[0])
    network, half = host.network(weights, biases, form, 0), phase.shape[0]

    def pack() -> tuple[Tensor, Tensor]:  # inputs in the order of waves, each with its cosine before its sine
        return host.opening(weights[0].unflatten(1, (2, half)).mT.flatten(1), biases[0], form)

    first = pack_once([weights[0], biases[0]], (_launch, form.padded, host.depth(dtype)), pack)
    top, left, height, width = place
    grid = (triton.cdiv(4 * len(queries), form.rows),)
    if not grid[0]:
        return
    with host.on(p):
        fourier_kernel[grid](
            p, coord, cell, phase, *first, *network[1:], p if out is None else out, saved,
            queries.start, queries.stop, queries.start + saved.shape[1] // 4, coord.shape[1],
            *coord.stride(), *cell.stride(),
            *host.axis(height), *host.axis(width), top, left, p.shape[1], p.shape[2], host.layer_rows(saved),
            HALF=half, STEPS=len(first[0]) // host.depth(dtype), DEPTH=host.depth(dtype),
            OUT=1 if out is None else out.shape[2], OUT_PADDED=network.last.shape[1], LAYERS=network.weights.shape[0],
            WIDEST=widest, SAVE=saved.shape[1] > 0, WRITE=out is not None, **host.tile(form, dtype),
        )  # fmt: skip


def fourier_decode(
    p: Tensor,
    coord: Tensor,
    cell: Tensor,
    phase: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    place: Sequence[int],
    shape: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the output [B, Q, out], float32, and the first queries' activations.

    Args:
        p: float32 [B, h, w, 4 K], contiguous, the part of a map at `place` (top, left, map_height, map_width).
        phase: float32 [K, 2].
        shape: shape of the activations, [hidden layers, rows, the widest layer].
    """
    batch, queries, _ = coord.shape
    out = torch.empty((batch, queries, weights[-1].shape[0]), dtype=torch.float32, device=p.device)
    saved = weights[0].new_empty(*shape)
    _launch(p, coord, cell, phase.contiguous(), weights, biases, place, range(batch * queries), out, saved)
    return out, saved


def fourier_decode_backward(
    grad: Tensor,
    p: Tensor,
    coord: Tensor,
    cell: Tensor,
    phase: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of p, of the phase [2, K], of weight, bias, ... of the layers, and those at the corners.

    All are float32; grad is [B, Q, out]. Those at the corners, [B, Q, 4, 5], are of rel, of the cell and of the weight.
    `wanted` says for each gradient whether to compute it; the others are empty.
    """
    half, total = phase.shape[0], coord.shape[0] * coord.shape[1]
    phase, shape = phase.contiguous(), (p.shape[1], p.shape[2])
    plan = backward.Plan(p, coord, cell, shape, (0, 0), 4, waves=True)
    of_p, of_phase, of_weight, *of_others, places = wanted
    p_grad, phase_grad = p.new_zeros(p.shape if of_p else 0), p.new_zeros((2, half) if of_phase else 0)
    weight_grad = torch.zeros(weights[0].shape if of_weight else 0, dtype=torch.float32, device=p.device)
    places_grad = p.new_empty((4 * total, 5) if places else 0)

    def recompute(run: slice, activations: Tensor) -> None:
        queries = range(run.start, run.stop)
        _launch(p, coord, cell, phase, weights, biases, (0, 0, *shape), queries, None, activations)

    def receive(run: slice, dz: Tensor, latents: Tensor, parts: Tensor) -> None:
        rows, waves_grad = len(dz), p
        programs = triton.cdiv(rows, BACK_ROWS)
        waves = dz.new_empty((rows, 2 * half) if of_weight else 0)
        p_rows = p.new_empty((rows, 4 * half) if of_p else 0)
        phases = p.new_empty((programs, 2, half) if of_phase else 0)
        if of_p or of_phase or places:
            waves_grad = host.product(dz, weights[0])
        with host.on(p):
            waves_back_kernel[(programs,)](
                waves_grad, p, latents, parts, phase, waves, p_rows, phases,
                places_grad[4 * run.start : 4 * run.stop] if places else p, rows,
                HALF=half, STEPS=triton.cdiv(half, BACK_WAVES), OF_P=of_p, OF_PHASE=of_phase, OF_WEIGHT=of_weight,
                PLACES=places, ROWS=BACK_ROWS, WAVES=BACK_WAVES,
                num_warps=4, num_stages=1, enable_fp_fusion=False,
            )  # fmt: skip
        if of_weight:
            weight_grad.add_(host.product(dz.t(), waves))
        if of_phase:
            phase_grad.add_(phases.sum(0))
        if of_p:
            scatter.add(p_rows, latents, p_grad.view(-1, 4 * half))

    flat = grad.float().flatten(0, 1).contiguous()
    of_corners = places_grad[:, 4:] if places else None
    row_bytes = half * (2 * 4 + 2 * saved.dtype.itemsize + 4 * 4)  # the waves' gradient, the waves, p_rows
    received = receive if of_p or of_phase or of_weight or places else None
    sums = backward.backward(recompute, received, flat, weights, biases, saved, of_others, plan, of_corners, row_bytes)
    at = places_grad.view(*coord.shape[:2], 4, 5) if places else places_grad
    return [p_grad, phase_grad, weight_grad, *sums, at]
