"""Decode LIIF's relatives in plain PyTorch: gather at the corners, apply a network of their own, blend by area.

A corner's row x is the gathered latent, rel, and the cell. A relative is a function from rows to the input of a last
linear layer: LTE's waves and MLP, LM-LIIF's modulated layers. The plain form applies it as the formula reads. The other
form takes chunks of queries and blends before the last layer, because that layer is linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from liif_fast.call import Place, Switches, autocast_dtype, without_autocast
from liif_fast.coord import plan_corners, scaled

CHUNK_QUERIES = 1 << 11
KEEP_BYTES = 1 << 28  # limit of hidden activations kept for the backward pass; above it they are recomputed

Hidden = Callable[[Tensor], Tensor]  # from rows x [..., C + 2 or 4] to the last layer's input [..., h], in any dtype


def waves(x: Tensor, phase: Tensor) -> Tensor:
    """Return LTE's network input [..., D] from rows [..., 2 D + 4] of amplitudes, frequencies, rel and cell.

    It is A * [cos(pi a), sin(pi a)] with a_k = F_2k rel_row + F_2k+1 rel_column + (phase cell)_k. The first layer
    cannot be moved to the latents, as LIIF's can, because rel is inside the cosine.
    """
    amplitude, frequency, rel, cell = x.split([*[x.shape[-1] // 2 - 2] * 2, 2, 2], -1)
    turns = (frequency.unflatten(-1, (-1, 2)) * rel.unsqueeze(-2)).sum(-1) + F.linear(cell, phase.to(x.dtype))
    angle = math.pi * turns
    return amplitude * torch.cat((angle.cos(), angle.sin()), -1)


def fourier_hidden(phase: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype) -> Hidden:
    """Return LTE's hidden layers; their products are in `dtype`."""

    def hidden(x: Tensor) -> Tensor:
        x = waves(x, phase)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = F.relu(F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype)))
        return x

    return hidden


def modulated_hidden(weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype) -> Hidden:
    """Return LM-LIIF's hidden layers h = relu((W h + b) * (1 + scale) + shift), whose products are in `dtype`.

    A row [2 L h + ...] begins with the scales of L layers of width h, L h values; then come as many shifts.
    """
    depth, width = len(weights) - 1, weights[0].shape[0]

    def hidden(x: Tensor) -> Tensor:
        scales, shifts, x = x.split([depth * width, depth * width, x.shape[-1] - 2 * depth * width], -1)
        layers = zip(weights[:-1], biases[:-1], scales.split(width, -1), shifts.split(width, -1), strict=True)
        for weight, bias, scale, shift in layers:
            x = F.relu(F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype)) * (scale + 1) + shift)
        return x

    return hidden


def decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    switches: Switches,
    hidden: Hidden,
    last: tuple[Tensor, Tensor],
    recompute: bool | None,
    place: Place | None,
    width: int,
) -> Tensor:
    """Return the output [B, Q, out], chunk by chunk; in training, recompute chunks if activations exceed KEEP_BYTES.

    Args:
        feat: [B, C, H, W], not unfolded.
        last: weight [out, h] and bias of the last layer.
        width: approximate number of values per corner that the backward pass needs.
    """
    mixed, queries, whole = autocast_dtype(feat), coord.shape[1], torch.compiler.is_compiling()
    with without_autocast(feat):
        table = feat.permute(0, 2, 3, 1).flatten(0, 2).to(torch.promote_types(feat.dtype, torch.float32))
        coord, cell = coord.flatten(0, 1), None if cell is None else cell.flatten(0, 1)
        if torch.is_grad_enabled() and recompute is None:
            recompute = not whole and switches.corners * len(coord) * width * table.itemsize > KEEP_BYTES
        shape = (feat.shape[2], feat.shape[3])
        run: Callable[..., Tensor] = partial(
            _chunk, table, switches=switches, hidden=hidden, last=last, per_image=queries, shape=shape, place=place
        )
        if torch.is_grad_enabled() and recompute:
            run = partial(checkpoint, run, use_reentrant=False)
        step = max(len(coord), 1) if whole else CHUNK_QUERIES
        starts = (0,) if whole else range(0, max(len(coord), 1), step)
        chunks = [slice(first, first + step) for first in starts]
        parts = [run(coord[each], None if cell is None else cell[each], each.start) for each in chunks]
    out = torch.cat(parts).unflatten(0, (len(feat), queries))
    return out.to(feat.dtype if mixed is None else torch.float32)


def _chunk(
    table: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    first: int,
    switches: Switches,
    hidden: Hidden,
    last: tuple[Tensor, Tensor],
    per_image: int,
    shape: tuple[int, int],
    place: Place | None,
) -> Tensor:
    """Return the output [n, out], in table's dtype, of the queries from number `first` on; coord and cell [n, 2]."""
    top, left, height, width = place or (0, 0, *shape)
    index, rel, weight = plan_corners(coord.unsqueeze(0), height, width, switches.local_ensemble)
    image = torch.arange(first, first + len(coord), device=coord.device) // per_image
    row = (image.unsqueeze(1) * shape[0] + index[0, ..., 0] - top) * shape[1] + index[0, ..., 1] - left
    parts = [table.index_select(0, row.flatten()).unflatten(0, row.shape), rel[0].to(table.dtype)]  # [n, K, ...]
    if cell is not None:
        parts.append(scaled(cell, height, width).to(table.dtype).unsqueeze(1).expand(rel[0].shape))
    share = weight[0].to(table.dtype).unsqueeze(-1)
    blended = (share * hidden(torch.cat(parts, -1)).to(table.dtype)).sum(1)
    return F.linear(blended, last[0].to(table.dtype)) + share.sum(1) * last[1].to(table.dtype)
