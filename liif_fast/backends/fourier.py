"""`fourier_decode` in plain PyTorch: the plain form, and one that goes through the queries in chunks.

A query's corner reads D amplitudes A and D frequencies F of its latent; with a_k = F_2k rel_row + F_2k+1 rel_column +
(phase cell)_k the network's input is A * [cos(pi a), sin(pi a)]. The first layer cannot be moved to the latents as
LIIF's can, because rel is inside the cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from liif_fast.call import Place, autocast_dtype, without_autocast
from liif_fast.coord import plan_corners, scaled

CHUNK_QUERIES = 1 << 11
KEEP_BYTES = 1 << 28  # hidden activations kept for the backward pass; above, they are computed again


def features(x: Tensor, phase: Tensor) -> Tensor:
    """Return the network's input [..., D] from gathered rows [..., 2 D + 4], the last four rel and cell."""
    amplitude, frequency, rel, cell = x.split([*[x.shape[-1] // 2 - 2] * 2, 2, 2], -1)
    turns = (frequency.unflatten(-1, (-1, 2)) * rel.unsqueeze(-2)).sum(-1) + F.linear(cell, phase.to(x.dtype))
    angle = math.pi * turns
    return amplitude * torch.cat((angle.cos(), angle.sin()), -1)


def _chunk(
    table: Tensor,
    coord: Tensor,
    cell: Tensor,
    first: int,
    per_image: int,
    shape: tuple[int, int],
    place: Place,
    phase: Tensor,
    params: Sequence[Tensor],
    low: torch.dtype,
) -> Tensor:
    """Return the output [n, out] of the queries from number `first` on, coord and cell [n, 2], in table's dtype."""
    top, left, height, width = place
    index, rel, weight = plan_corners(coord.unsqueeze(0), height, width, True)
    image = torch.arange(first, first + len(coord), device=coord.device) // per_image
    row = (image.unsqueeze(1) * shape[0] + index[0, ..., 0] - top) * shape[1] + index[0, ..., 1] - left
    gathered = table.index_select(0, row.flatten()).unflatten(0, row.shape)  # [n, 4, 2 D]
    scaled_cell = scaled(cell, height, width).unsqueeze(1).expand(rel[0].shape)
    hidden = features(torch.cat((gathered, rel[0].to(table.dtype), scaled_cell.to(table.dtype)), -1), phase)
    *layers, last_weight, last_bias = params
    for number in range(0, len(layers), 2):
        hidden = F.relu(F.linear(hidden.to(low), layers[number].to(low), layers[number + 1].to(low)))
    share = weight[0].to(table.dtype).unsqueeze(-1)
    blended = (share * hidden.to(table.dtype)).sum(1)  # the last layer is linear
    return F.linear(blended, last_weight.to(table.dtype)) + share.sum(1) * last_bias.to(table.dtype)


def chunked(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor,
    phase: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    recompute: bool | None,
    place: Place | None,
) -> Tensor:
    """Return the output [B, Q, out], chunk by chunk; in training chunks are computed again where they take much."""
    mixed = autocast_dtype(feat)
    low, queries = mixed or feat.dtype, coord.shape[1]
    params = [tensor for layer in zip(weights, biases, strict=True) for tensor in layer]
    whole = torch.compiler.is_compiling()
    with without_autocast(feat):
        table = feat.permute(0, 2, 3, 1).flatten(0, 2).to(torch.promote_types(feat.dtype, torch.float32))
        coord, cell = coord.flatten(0, 1), cell.flatten(0, 1)
        grad = torch.is_grad_enabled()
        if grad and recompute is None:
            width = 3 * feat.shape[1] + sum(weight.shape[0] for weight in weights)
            recompute = not whole and 4 * len(coord) * width * low.itemsize > KEEP_BYTES
        step = max(len(coord), 1) if whole else CHUNK_QUERIES
        shape = (feat.shape[2], feat.shape[3])
        run: Callable[..., Tensor] = partial(
            _chunk,
            table,
            per_image=queries,
            shape=shape,
            place=place or (0, 0, *shape),
            phase=phase,
            params=params,
            low=low,
        )
        if grad and recompute:
            run = partial(checkpoint, run, use_reentrant=False)
        starts = (0,) if whole else range(0, max(len(coord), 1), step)
        parts = [run(coord[first : first + step], cell[first : first + step], first) for first in starts]
    out = torch.cat(parts).unflatten(0, (len(feat), queries))
    return out.to(feat.dtype if mixed is None else torch.float32)
