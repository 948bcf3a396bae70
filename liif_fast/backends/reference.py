"""Compute the plain formula of LIIF, corner by corner, on any device and in any dtype, twice differentiable.

It is never optimised, because the other backends are measured against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from liif_fast.attention import Coordinates, Corners, CornerTransformer
from liif_fast.backends import attention, corners
from liif_fast.call import Call, Extent, Place, Switches, Window, autocast_dtype, without_autocast
from liif_fast.coord import grid_axes, plan_corners

NAME = "reference"
PLACES = EXTENTS = True
RENDER_QUERIES = 1 << 16  # queries that render decodes at a time, so that its temporaries do not grow with the size


def can_run(call: Call) -> tuple[bool, str]:
    """Accept every call."""
    return True, "the plain formula, unoptimised"


def gather_corners(
    feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches, place: Place | None = None
) -> tuple[Tensor, Tensor]:
    """Return the network's input x [B, Q, K, in_dim] and the blending weight [B, Q, K]."""
    batch, channels, *held = feat.shape
    latents = feat
    if switches.feat_unfold:  # channel c*9 + ki*3 + kj, zero padded
        latents = F.unfold(feat, 3, padding=1).view(batch, channels * 9, *held)
    top, left, height, width = place or (0, 0, *held)
    index, rel, weight = plan_corners(coord, height, width, switches.local_ensemble)
    if place is not None:
        index = index - torch.tensor([top, left], device=index.device)
    image = torch.arange(batch, device=feat.device).view(-1, 1, 1).expand(index.shape[:-1])
    parts = [latents[image, :, index[..., 0], index[..., 1]], rel]
    if switches.cell_decode:
        assert cell is not None
        scaled = torch.stack((cell[..., 0] * height, cell[..., 1] * width), -1)
        parts.append(scaled.unsqueeze(2).expand(*rel.shape[:-1], 2))
    dtype = feat.dtype if autocast_dtype(feat) is None else torch.promote_types(feat.dtype, torch.float32)
    return torch.cat([part.to(dtype) for part in parts], -1), weight


def fused_mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], recompute: bool | None) -> Tensor:
    """Apply Linear, ReLU, ..., Linear to the last dimension of x."""
    low = autocast_dtype(x)
    with without_autocast(x):
        dtype = low or x.dtype
        x = x.to(dtype)
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = F.linear(F.relu(x) if layer else x, weight.to(dtype), bias.to(dtype))
    return x if low is None else x.float()


def decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
    place: Place | None = None,
) -> Tensor:
    """Return out = sum_t MLP(x_t) * weight_t, [B, Q, out]; LIIF (arXiv 2012.09161), equation 4."""
    x, weight = gather_corners(feat, coord, cell, switches, place)
    return blend(fused_mlp(x, weights, biases, recompute), weight)


def blend(prediction: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of the corners' predictions [B, Q, K, out] times their weights [B, Q, K]."""
    dtype = prediction.dtype
    prediction = prediction.to(torch.promote_types(dtype, torch.float32))
    out = prediction[:, :, 0] * weight[:, :, 0, None].to(prediction.dtype)
    for corner in range(1, weight.shape[2]):
        out = out + prediction[:, :, corner] * weight[:, :, corner, None].to(prediction.dtype)
    return out.to(dtype)


def render(
    feat: Tensor,
    size: tuple[int, int],
    region: Window,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
    place: Place | None = None,
    extent: Extent | None = None,
) -> Tensor:
    """Return the window `region` of the grid `size`, [B, out, h, w]; some rows are decoded at a time."""
    height, width = region[2:]
    shape = feat.shape[2:] if place is None else place[2:]
    rows, columns = grid_axes(size, region, extent, shape, device=feat.device)
    step = max(height, 1) if torch.compiler.is_compiling() else max(1, RENDER_QUERIES // max(width, 1))
    strips = []
    for strip in rows.split(step):
        coord = torch.stack(torch.meshgrid(strip, columns, indexing="ij"), -1).reshape(1, -1, 2)
        coord = coord.expand(feat.shape[0], -1, -1)
        cells = None if cell is None else cell.unsqueeze(1).expand(coord.shape)
        strips.append(decode(feat, coord, cells, weights, biases, switches, recompute, place))
    return torch.cat(strips, 1).transpose(1, 2).reshape(feat.shape[0], weights[-1].shape[0], height, width)


def attend_corners(
    feat: Tensor,
    values: Tensor,
    queries: Corners | Coordinates,
    transformer: CornerTransformer,
    dropout: float,
    recompute: bool | None,
) -> tuple[Tensor, Tensor]:
    """Return the values blended by the transformer's weights, [B, Q, V], and the weights [B, Q, 4]."""
    return attention.run(attention.plain, feat, values, queries, transformer, dropout)


def fourier_decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor,
    phase: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    recompute: bool | None,
    place: Place | None,
) -> Tensor:
    """Return out = sum_t MLP(A_t [cos, sin](pi a_t)) * weight_t, [B, Q, out]; LTE (arXiv 2111.08918), section 3."""
    with without_autocast(feat):
        maps = feat.to(torch.promote_types(feat.dtype, torch.float32))
        x, weight = gather_corners(maps, coord, cell, Switches(feat_unfold=False), place)
        x = corners.waves(x, phase)
    return blend(fused_mlp(x if autocast_dtype(feat) else x.to(feat.dtype), weights, biases, recompute), weight)


def modulated_decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
    place: Place | None,
) -> Tensor:
    """Return out = sum_t (W h_t + b) * weight_t, [B, Q, out], h the modulated layers; LMF (arXiv 2404.16451)."""
    dtype = autocast_dtype(feat) or feat.dtype
    with without_autocast(feat):
        maps = feat.to(torch.promote_types(feat.dtype, torch.float32))
        x, weight = gather_corners(maps, coord, cell, switches, place)
        h = corners.modulated_hidden(weights, biases, dtype)(x)
        prediction = F.linear(h.to(dtype), weights[-1].to(dtype), biases[-1].to(dtype))
    return blend(prediction.float() if autocast_dtype(feat) else prediction, weight)
