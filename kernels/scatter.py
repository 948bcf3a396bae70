"""Add the gradients of gathered rows to their latents.

Atomic additions do it, in any order. Under `torch.use_deterministic_algorithms` a program sums the rows of each latent
in a fixed order, after the rows have been sorted by latent.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import host

TILE = 16  # rows that a program reads at a time


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["target"])
def atomic_kernel(
    source, latents, target, rows,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, FOURS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute target[latents[r]] += source[r]; source [rows, WIDTH] with rows STRIDE apart, target float32.

    STRIDE is a width of the network, like WIDTH. It is a constant, because otherwise the compiler could not know a
    row's alignment and would read elements one at a time.

    FOURS says that an atomic addition takes four numbers. Without it, adjacent threads must have adjacent columns, or
    each addition of a warp would touch four times the memory. So the compiler is not told target's alignment then.
    """
    if FOURS:
        target = tl.multiple_of(target, 16)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = row < rows
    mask = valid[:, None] & (column < WIDTH)[None, :]
    value = tl.load(source + row[:, None] * STRIDE + column[None, :], mask=mask, other=0.0).to(tl.float32)
    latent = tl.load(latents + row, mask=valid, other=0)
    tl.atomic_add(target + latent[:, None] * WIDTH + column[None, :], value, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["height", "width"])
def segment_kernel(
    source, order, offsets, target, height, width,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the sum of a latent's rows of source to target[latent].

    With 9 taps, a row holds a latent and its neighbours, and the sum takes this latent's part of each such row.

    order [rows] sorts the rows by latent; latent n has order[offsets[n]:offsets[n + 1]]. Element c of a row's tap is at
    column tap * WIDTH + c.
    """
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y, x = latent // width % height, latent % width
    total = tl.zeros((BLOCK,), tl.float32)
    for tap in range(TAPS):
        # Latent n is the one whose neighbourhood holds this latent as tap number `tap`.
        up, left = 0, 0
        if TAPS == 9:
            up, left = tap // 3 - 1, tap % 3 - 1
        n = latent - up * width - left
        inside = (y - up >= 0) & (y - up < height) & (x - left >= 0) & (x - left < width)
        at = tl.load(offsets + n, mask=inside, other=0)
        end = tl.load(offsets + n + 1, mask=inside, other=0)
        while at < end:
            place = at + tl.arange(0, ROWS)
            valid = place < end
            row = tl.load(order + place, mask=valid, other=0)
            mask = valid[:, None] & (column < WIDTH)[None, :]
            value = tl.load(source + row[:, None] * STRIDE + (tap * WIDTH + column)[None, :], mask=mask, other=0.0)
            total += tl.sum(value.to(tl.float32), 0)
            at += ROWS
    at_target = target + latent * WIDTH + column
    mask = column < WIDTH
    tl.store(at_target, tl.load(at_target, mask=mask, other=0.0) + total, mask=mask)


def segments(latents: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the stable order that sorts rows by latent, and the start of each latent's run, [count + 1]."""
    ordered, order = latents.sort(stable=True)
    return order, torch.searchsorted(ordered, torch.arange(count + 1, device=latents.device))


def column_block(target: Tensor) -> int:
    """Return how many columns of target [latents, width] a program takes, a power of two."""
    return min(256, host.power_of_two(target.shape[1]))


def add_sorted(source: Tensor, latents: Tensor, target: Tensor, shape: tuple[int, int], taps: int = 1) -> None:
    """Add source [rows, taps * width] to target float32 [latents, width] at `latents` [rows], in a fixed order.

    Args:
        shape: (height, width) of the latents' maps, image after image.
        taps: 9 if a row holds a latent's 3x3 neighbourhood, element c of tap t at column t * width + c.
    """
    width, block = target.shape[1], column_block(target)
    order, offsets = segments(latents, target.shape[0])
    with host.on(source):
        segment_kernel[(target.shape[0], triton.cdiv(width, block))](
            source, order, offsets, target, *shape,
            WIDTH=width, STRIDE=source.stride(0), TAPS=taps, ROWS=TILE, BLOCK=block,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip


def add(source: Tensor, latents: Tensor, target: Tensor) -> None:
    """Add source [rows, width] to target float32 [latents, width] at `latents` [rows]."""
    if not (latents.numel() and target.numel()):
        return
    if torch.are_deterministic_algorithms_enabled():
        add_sorted(source, latents, target, (1, target.shape[0]))
        return
    width, block, aligned = target.shape[1], column_block(target), target.storage_offset() % 4 == 0
    with host.on(source):
        atomic_kernel[(triton.cdiv(source.shape[0], TILE), triton.cdiv(width, block))](
            source, latents, target, source.shape[0],
            WIDTH=width, STRIDE=source.stride(0), FOURS=aligned and host.architecture(source.device) >= 90,
            ROWS=TILE, BLOCK=block,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
