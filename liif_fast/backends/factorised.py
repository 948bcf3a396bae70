"""Compute the factorised form in plain PyTorch, the fallback that runs every call.

The first layer splits by columns, W1 x + b1 = (W1z z + b1) + W1r rel + W1c cell'. Its first part is one convolution of
the whole map, P [B, H, W, h]; queries gather rows of P and add the rest. The corners are summed before the last layer,
because that is linear and the weights sum to one. For few queries and a large map, the first part is applied to
gathered rows instead (the direct form, see `factorises`).

Queries are computed in chunks, so memory beyond inputs, outputs and P does not grow with their number. In training this
holds once the hidden activations exceed KEEP_BYTES, or with recompute=True, because the backward pass then recomputes
each chunk. A traced call (torch.compile, torch.export) is one chunk, so that the compiler can fuse it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from liif_fast.attention import Coordinates, Corners, CornerTransformer
from liif_fast.backends import attention, corners, factorises
from liif_fast.backends.chunks import (
    Decoder,
    Grid,
    Recomputed,
    any_requires_grad,
    chunk_bytes,
    chunk_slices,
    gather_latents,
)
from liif_fast.backends.projection import project
from liif_fast.call import Call, Extent, Place, Switches, Window, autocast_dtype, without_autocast
from liif_fast.coord import latent_window, lattice, plan_corners, scaled

NAME = "torch"
PLACES = EXTENTS = True
KEEP_BYTES = 1 << 30  # limit of hidden activations kept for the backward pass; above it they are recomputed


def can_run(call: Call) -> tuple[bool, str]:
    """Accept every call; under torch.func.vmap some then raise PyTorch's error about an in-place operation."""
    if call.op in ("decode", "render"):
        latents = call.shape[2] * call.shape[3]
        factorised = factorises(latents, call.switches.corners * call.queries)
        return True, "factorised form in plain PyTorch" if factorised else "direct form (few queries) in plain PyTorch"
    return True, "plain PyTorch"


def _decode(
    feat: Tensor,
    coord: Tensor | None,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
    queries: int,
    grid: Grid | None,
    place: Place | None = None,
) -> Tensor:
    low, traced = autocast_dtype(feat), torch.compiler.is_compiling()
    dtype = low or feat.dtype
    wide = torch.promote_types(dtype, torch.float32)  # for rel, cell, area, weights and the last layer
    batch, channels, height, width = feat.shape
    latent_dim = channels * 9 if switches.feat_unfold else channels
    rows = switches.corners * queries
    factorised = factorises(height * width, rows)
    widest = max(weight.shape[0] for weight in weights) * dtype.itemsize
    decoder = Decoder(
        shape=(batch, height, width),
        place=place,
        switches=switches,
        factorised=factorised,
        grid=grid,
        queries=queries,
        out_dim=weights[-1].shape[0],
        chunk_rows=chunk_bytes(feat) // widest,
        dtype=dtype,
    )
    with without_autocast(feat):
        feat = feat.to(dtype)
        first, bias = weights[0][:, :latent_dim].to(dtype), biases[0].to(dtype)
        params = [weights[0][:, latent_dim:].to(wide)]
        if not factorised:
            params += [first, bias]
        for layer in range(1, len(weights)):
            last = layer == len(weights) - 1
            params += [weights[layer].to(wide if last else dtype), biases[layer].to(wide if last else dtype)]
        source = project(feat, first, bias, switches.feat_unfold) if factorised else feat
        if traced:
            out = decoder.run(source, coord, cell, params, slice(0, batch), slice(0, queries))
        elif not (torch.is_grad_enabled() and any_requires_grad(source, coord, cell, *params)):
            out = decoder.run_all(source, coord, cell, params)
        else:
            if recompute is None:
                hidden = sum(weight.shape[0] for weight in weights[:-1]) * dtype.itemsize
                recompute = batch * rows * hidden > KEEP_BYTES
            if recompute:
                out = Recomputed.apply(decoder, source, coord, cell, *params)
            else:
                out = decoder.run(source, coord, cell, params, slice(0, batch), slice(0, queries))
        return out.to(feat.dtype if low is None else torch.float32)


def decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
) -> Tensor:
    """Return the decoded queries, [B, Q, out]."""
    cell = cell if switches.cell_decode else None
    return _decode(feat, coord, cell, weights, biases, switches, recompute, coord.shape[1], None)


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
    """Return the window `region` of the grid `size`, [B, out, h, w]; coordinates are made chunk by chunk."""
    top, left, height, width = region
    whole = place or (0, 0, feat.shape[2], feat.shape[3])
    grid = Grid(size, top, left, width, () if extent is None else lattice(size, extent, whole[2:]))
    if not torch.compiler.is_compiling():  # a traced call serves every region
        feat, place = under(feat, size, region, switches, whole, extent)
    out = _decode(feat, None, cell, weights, biases, switches, recompute, height * width, grid, place)
    return out.transpose(1, 2).reshape(feat.shape[0], weights[-1].shape[0], height, width)


def under(
    feat: Tensor,
    size: tuple[int, int],
    region: Window,
    switches: Switches,
    place: Place,
    extent: Extent | None = None,
) -> tuple[Tensor, Place | None]:
    """Return the part of feat that a region reads, and its place, so that only this part is projected."""
    at, shape = place[:2], place[2:]
    window, reach = latent_window(size, region, shape, extent), int(switches.feat_unfold)
    first = [max(window[axis] - reach, at[axis]) for axis in (0, 1)]
    last = [min(window[axis] + window[axis + 2] + reach, at[axis] + feat.shape[axis + 2]) for axis in (0, 1)]
    feat = feat[:, :, first[0] - at[0] : last[0] - at[0], first[1] - at[1] : last[1] - at[1]]
    return feat, None if tuple(feat.shape[2:]) == shape else (first[0], first[1], *shape)


def gather_corners(feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches) -> tuple[Tensor, Tensor]:
    """Return the network's input x [B, Q, K, in_dim] and the blending weight [B, Q, K], without unfolding the map."""
    dtype = feat.dtype if autocast_dtype(feat) is None else torch.promote_types(feat.dtype, torch.float32)
    cell = cell if switches.cell_decode else None
    (batch, queries), device, corners = coord.shape[:2], feat.device, switches.corners
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any_requires_grad(feat, coord, cell)):
        return _gather_corners(feat, coord, cell, switches, dtype, torch.arange(batch, device=device))
    in_dim = feat.shape[1] * (9 if switches.feat_unfold else 1) + (2 if cell is None else 4)
    x = torch.empty((batch, queries, corners, in_dim), dtype=dtype, device=device)
    weight = torch.empty((batch, queries, corners), dtype=coord.dtype, device=device)
    for i, q in chunk_slices(batch, queries, chunk_bytes(feat) // (corners * in_dim * dtype.itemsize)):
        images = torch.arange(i.start, i.stop, device=device)
        some = None if cell is None else cell[i, q]
        x[i, q], weight[i, q] = _gather_corners(feat, coord[i, q], some, switches, dtype, images)
    return x, weight


def _gather_corners(
    feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches, dtype: torch.dtype, images: Tensor
) -> tuple[Tensor, Tensor]:
    height, width = feat.shape[2:]
    index, rel, weight = plan_corners(coord, height, width, switches.local_ensemble)
    images = images.view(-1, 1, 1).expand(index.shape[:-1])
    parts = [gather_latents(feat, images, index, switches.feat_unfold), rel]
    if cell is not None:
        parts.append(scaled(cell, height, width).unsqueeze(2).expand(rel.shape))
    return torch.cat([part.to(dtype) for part in parts], -1), weight


def fused_mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], recompute: bool | None) -> Tensor:
    """Apply Linear, ReLU, ..., Linear to the last dimension of x, [..., out], some rows at a time."""
    low = autocast_dtype(x)
    dtype = low or x.dtype
    shape = (*x.shape[:-1], weights[-1].shape[0])
    hidden = sum(weight.shape[0] for weight in weights) * dtype.itemsize
    with without_autocast(x):
        x = x.reshape(math.prod(shape[:-1]), x.shape[-1])
        params = [t.to(dtype) for pair in zip(weights, biases, strict=True) for t in pair]
        training = torch.is_grad_enabled() and any_requires_grad(x, *params)
        if training and recompute is None and not torch.compiler.is_compiling():
            recompute = x.shape[0] * hidden > KEEP_BYTES
        if torch.compiler.is_compiling() or (training and not recompute):
            out = _mlp(x.to(dtype), *params)
        else:
            parts = x.split(max(1, chunk_bytes(x) // hidden))
            if training:
                outs = [checkpoint(_mlp, part.to(dtype), *params, use_reentrant=False) for part in parts]
                out = torch.cat(outs)
            else:
                out = torch.empty((x.shape[0], shape[-1]), dtype=dtype, device=x.device)
                for part, target in zip(parts, out.split(parts[0].shape[0] or 1), strict=True):
                    target.copy_(_mlp(part.to(dtype), *params))
        return (out if low is None else out.float()).reshape(shape)


def _mlp(x: Tensor, *params: Tensor) -> Tensor:
    for layer in range(0, len(params), 2):
        x = F.linear(F.relu(x) if layer else x, params[layer], params[layer + 1])
    return x


def attend_corners(
    feat: Tensor,
    values: Tensor,
    queries: Corners | Coordinates,
    transformer: CornerTransformer,
    dropout: float,
    recompute: bool | None,
) -> tuple[Tensor, Tensor]:
    """Return the values blended by the transformer's weights, [B, Q, V], and the weights [B, Q, 4]."""
    form = partial(attention.factorised, recompute=recompute)
    return attention.run(form, feat, values, queries, transformer, dropout)


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
    """Return the output [B, Q, out] of queries on maps of amplitudes and frequencies."""
    hidden = corners.fourier_hidden(phase, weights, biases, autocast_dtype(feat) or feat.dtype)
    width = 3 * feat.shape[1] + sum(weight.shape[0] for weight in weights)
    last = weights[-1], biases[-1]
    return corners.decode(feat, coord, cell, Switches(feat_unfold=False), hidden, last, recompute, place, width)


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
    """Return the output [B, Q, out] of queries on maps of modulations and features."""
    hidden = corners.modulated_hidden(weights, biases, autocast_dtype(feat) or feat.dtype)
    width = feat.shape[1] + 3 * sum(weight.shape[0] for weight in weights)
    return corners.decode(feat, coord, cell, switches, hidden, (weights[-1], biases[-1]), recompute, place, width)
