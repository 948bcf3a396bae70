"""Project the latents' share of the first layer, P = W1z z + b1, on a window of the map.

The kernel is a matrix product over the nine taps of a 3x3 neighbourhood, or over one, and gathers them while loading.
PyTorch's convolution is not used, because it rounds to TF32 unless told otherwise, and may use Winograd's algorithm,
which spreads a NaN over a tile. The gradient of the map uses the same kernel with the taps reversed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from liif_fast.frozen import pack_once
from liif_fast.ops.project import in_layout_of

from . import host
from .host import divided, dot

LARGEST = 2.0**15  # the largest power of two in float16


@triton.jit(do_not_specialize=["rows", "height", "width", "top", "left", "source_height", "source_width"])
def project_kernel(
    source, weight, bias, out,
    rows, height, width, top, left, source_height, source_width,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SIDE: tl.constexpr, STEPS: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write out [rows = B * height * width, WIDTH], whose pixel (0, 0) is at (top, left) of the source.

    source [B, source_height, source_width, CHANNELS]; weight [SIDE * SIDE, STEPS * DEPTH, PADDED]; bias [PADDED].
    """
    start, tile_row = tl.program_id(0).to(tl.int64) * ROWS, tl.arange(0, ROWS)
    row = start + tile_row
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = row < rows
    line, more, x = divided(start, tile_row, width)
    image, more, y = divided(line, more, height)
    image, y, x = image + more, y + top, x + left
    z = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in tl.range(0, SIDE * SIDE * STEPS):
        tap, depth = step // STEPS, step % STEPS * DEPTH + tl.arange(0, DEPTH)
        from_y, from_x = y + tap // SIDE - SIDE // 2, x + tap % SIDE - SIDE // 2
        inside = valid & (from_y >= 0) & (from_y < source_height) & (from_x >= 0) & (from_x < source_width)
        at = source + ((image * source_height + from_y) * source_width + from_x)[:, None] * CHANNELS + depth[None, :]
        a = tl.load(at, mask=inside[:, None] & (depth < CHANNELS)[None, :], other=0.0)
        b = tl.load(weight + (tap * STEPS * DEPTH + depth)[:, None] * PADDED + column[None, :])
        z = dot(a, b, z, PRECISION)
    z += tl.load(bias + column)[None, :]
    mask = valid[:, None] & (column < WIDTH)[None, :]
    tl.store(out + row[:, None] * WIDTH + column[None, :], z.to(out.dtype.element_ty), mask=mask)


def _padded(taps: Tensor, bias: Tensor, form: host.ProjectionForm) -> tuple[Tensor, Tensor]:
    """Pad taps [taps, in, out] and bias [out] with zeros to whole tiles."""
    (_, ins, outs), wide = taps.shape, triton.cdiv(taps.shape[2], form.block) * form.block
    weight = F.pad(taps, (0, wide - outs, 0, triton.cdiv(ins, form.depth) * form.depth - ins)).contiguous()
    return weight, F.pad(bias.float(), (0, wide - outs))


def _launch(
    source: Tensor, packed: tuple[Tensor, Tensor], outs: int, window: Sequence[int], dtype: torch.dtype | None = None
) -> Tensor:
    """Return source [B, h, w, in] times padded taps, on the window (top, left, height, width), with `outs` channels."""
    (batch, source_height, source_width, channels), (top, left, height, width) = source.shape, window
    form, weight = host.projection_form(source), packed[0]
    side, (depth, padded) = math.isqrt(len(weight)), weight.shape[1:]
    out = source.new_empty(batch, height, width, outs, dtype=dtype)
    rows = batch * height * width
    if rows:
        with host.on(source):
            project_kernel[(triton.cdiv(rows, form.rows), padded // form.block)](
                source, *packed, out,
                rows, height, width, top, left, source_height, source_width,
                CHANNELS=channels, WIDTH=outs, SIDE=side, STEPS=depth // form.depth, PADDED=padded,
                ROWS=form.rows, BLOCK=form.block, DEPTH=form.depth, PRECISION=host.dot_precision(source.dtype),
                num_warps=form.warps, num_stages=form.stages, enable_fp_fusion=False,
            )  # fmt: skip
    return out


def _taps(weight: Tensor, channels: int, unfold: bool) -> Tensor:
    """Return the first layer's columns for the latent, as [taps, C, hidden]."""
    count = 9 if unfold else 1
    return weight[:, : channels * count].unflatten(1, (channels, count)).permute(2, 1, 0)


def project(feat: Tensor, weight: Tensor, bias: Tensor, unfold: bool, window: Sequence[int]) -> Tensor:
    """Return P [B, h, w, hidden] on the window (top, left, h, w) of feat [B, C, H, W]."""
    source = feat.permute(0, 2, 3, 1).contiguous()
    form, channels = host.projection_form(feat), feat.shape[1]

    def pack() -> tuple[Tensor, Tensor]:
        return _padded(_taps(weight, channels, unfold), bias, form)

    packed = pack_once([weight, bias], (project, form, channels, unfold), pack)
    return _launch(source, packed, weight.shape[0], window)


def project_backward(
    grad: Tensor, feat: Tensor, weight: Tensor, unfold: bool, top: int, left: int, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of feat, of the weight's columns for the latent [hidden, C * taps] and of the bias.

    grad, float32 [B, h, w, hidden], is that of P on the window at (top, left). A gradient that is not wanted is empty.
    """
    feat_grad = latent_grad = grad.new_empty(0)
    if wanted[0] or wanted[1]:
        low, scale = _lowered(grad, feat.dtype)
        if wanted[0]:
            feat_grad = _feat_grad(low, feat, _taps(weight, feat.shape[1], unfold), (-top, -left))
            feat_grad = in_layout_of(feat, feat_grad if scale is None else feat_grad.mul_(scale))
        if wanted[1]:
            latent_grad = _latent_grad(low, feat, 3 if unfold else 1, top, left)
            latent_grad = latent_grad if scale is None else latent_grad.mul_(scale)
    return feat_grad, latent_grad, grad.sum((0, 1, 2)) if wanted[2] else grad.new_empty(0)


def _lowered(grad: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return P's gradient in `dtype` and None; for float16, the gradient divided by a scale, and that scale.

    An element is a sum over the rows that read its latent, so it may exceed float16's range though no row's part does.
    """
    if dtype != torch.float16 or not grad.numel():
        return grad.to(dtype), None
    # Only finite elements count, so that a NaN or an infinity in one latent does not change the others' scale.
    largest = torch.linalg.vector_norm(grad.nan_to_num(0.0, posinf=0.0, neginf=0.0), math.inf)
    scale = (largest / LARGEST).clamp(min=1)
    return torch.div(grad, scale, out=torch.empty_like(grad, dtype=dtype)), scale


def _feat_grad(grad: Tensor, feat: Tensor, taps: Tensor, origin: tuple[int, int]) -> Tensor:
    no_bias = torch.zeros(feat.shape[1], dtype=torch.float32, device=feat.device)
    packed = _padded(taps.flip(0).transpose(1, 2), no_bias, host.projection_form(grad))
    maps = _launch(grad, packed, feat.shape[1], (*origin, *feat.shape[2:]), torch.float32)
    return maps.permute(0, 3, 1, 2)


def _latent_grad(grad: Tensor, feat: Tensor, side: int, top: int, left: int) -> Tensor:
    """Return the latent columns' gradient, a product per tap, because in padded flat maps a tap is a constant shift."""
    border, (rows, wide) = side // 2, grad.shape[1:3]
    around = F.pad(feat, (border,) * 4)[:, :, top : top + rows + 2 * border, left : left + wide + 2 * border]
    around = around.permute(0, 2, 3, 1).flatten(0, 2)
    ours = F.pad(grad, (0, 0, 0, 2 * border, 0, 2 * border)).flatten(0, 2)
    stride = wide + 2 * border
    ours = ours[: max(len(ours) - 2 * border * (stride + 1), 0)].t()  # without padding at the end
    shifts = (row * stride + column for row in range(side) for column in range(side))
    taps = [host.product(ours, around[shift : shift + ours.shape[1]]) for shift in shifts]
    return torch.stack(taps, -1).flatten(1)
