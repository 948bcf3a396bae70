"""Compute the formula in plain PyTorch, twice: as LIIF's users run it, and factorised.

`decode` is the plain formula as the original computes it, the baseline of all comparisons. Every call unfolds the map.
For each of the four corners, grid_sample looks up the nearest latent and its centre, and the corner runs through the
network separately. Images are decoded in chunks of 30,000 queries.

`project` and `decode_projected` compute what our backend `torch` computes, in a form that other runtimes accept as a
graph. The first layer is one convolution of the whole map, and the corners are summed before the last layer.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from liif_fast import make_cell, make_coord

CHUNK = 30_000
EPSILON = 1e-6

Decode = Callable[[Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]


def mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Apply Linear, ReLU, ..., Linear to the last dimension."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = F.relu(F.linear(x, weight, bias))
    return F.linear(x, weights[-1], biases[-1])


def centres_of(size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the latents' centres as a map [1, 2, H, W]."""
    return make_coord(size, device=device).view(1, *size, 2).permute(0, 3, 1, 2)


def corners(latents: Tensor, centres: Tensor, coord: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield latent [B, Q, C], relative coordinate [B, Q, 2] and area [B, Q, 1] of the corners of queries [B, Q, 2]."""
    batch, _, height, width = latents.shape
    scale = coord.new_tensor((height, width))
    for row in (-1, 1):
        for column in (-1, 1):
            shift = coord.new_tensor((row / height + EPSILON, column / width + EPSILON))
            where = (coord + shift).clamp(-1 + EPSILON, 1 - EPSILON).flip(-1).unsqueeze(1)
            latent, centre = (
                F.grid_sample(image, where, mode="nearest", align_corners=False).squeeze(2).transpose(1, 2)
                for image in (latents, centres.expand(batch, 2, height, width))
            )
            rel = (coord - centre) * scale
            yield latent, rel, (rel[..., :1] * rel[..., 1:]).abs() + 1e-9


def shares(areas: Sequence[Tensor]) -> list[Tensor]:
    """Return each corner's weight, the opposite corner's share of the area."""
    total = areas[0] + areas[1] + areas[2] + areas[3]
    return [area / total for area in reversed(areas)]


def decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    centres: Tensor | None = None,
) -> Tensor:
    """Decode queries [B, Q, 2] on feat [B, C, H, W] to [B, Q, out], with every switch of LIIF on."""
    if centres is None:
        centres = centres_of((feat.shape[2], feat.shape[3]), feat.device)
    batch, channels, height, width = feat.shape
    cell = cell * coord.new_tensor((height, width))
    latents = F.unfold(feat, 3, padding=1).view(batch, channels * 9, height, width)
    predictions, areas = [], []
    for latent, rel, area in corners(latents, centres, coord):
        predictions.append(mlp(torch.cat((latent, rel, cell), -1), weights, biases))
        areas.append(area)
    out = torch.zeros_like(predictions[0])
    for prediction, share in zip(predictions, shares(areas), strict=True):
        out = out + prediction * share
    return out


def project(feat: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return P = W1z z + b1 [B, hidden, H, W], the part of the first layer that depends only on the latent."""
    channels = feat.shape[1]
    return F.conv2d(feat, weight[:, : 9 * channels].reshape(-1, channels, 3, 3), bias, padding=1)


def decode_projected(
    rows: Tensor,
    coord: Tensor,
    cell: Tensor,
    centres: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    corner_sum: bool = True,
) -> Tensor:
    """Decode queries [1, Q, 2] on one map's projection, given as rows [H*W, hidden], to [1, Q, out].

    Without corner_sum the last layer comes before the sum, as in the plain formula.
    """
    height, width = centres.shape[2:]
    index = torch.arange(height * width, dtype=torch.float32, device=rows.device).view(1, 1, height, width)
    positions, rels, areas = zip(*corners(index, centres, coord), strict=True)
    queries = torch.cat((torch.cat(rels, 1), (cell * coord.new_tensor((height, width))).repeat(1, 4, 1)), -1)
    hidden = rows[torch.cat(positions, 1).long().view(-1)]
    hidden = F.relu(hidden + (queries @ weights[0][:, -4:].t()).squeeze(0))
    for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
        hidden = F.relu(F.linear(hidden, weight, bias))
    if not corner_sum:
        hidden = F.linear(hidden, weights[-1], biases[-1])
    blended = (hidden * torch.cat(shares(areas), 1).view(-1, 1)).view(4, -1, hidden.shape[1]).sum(0, keepdim=True)
    return F.linear(blended, weights[-1], biases[-1]) if corner_sum else blended


def grid(size: tuple[int, int], feat: Tensor) -> tuple[Tensor, Tensor]:
    """Return coord and cell [B, queries, 2] for every pixel of an image."""
    coord, cell = make_coord(size, device=feat.device), make_cell(size, device=feat.device)
    return tuple(each.expand(feat.shape[0], -1, -1).contiguous() for each in (coord, cell))


@torch.no_grad()
def decode_chunks(
    feat: Tensor,
    queries: tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    decode: Decode = decode,
    chunks: int | None = None,
) -> Tensor:
    """Decode coord and cell in chunks of 30,000 (only the first `chunks` of them, if given) to [B, queries, out]."""
    parts = list(zip(*(each.split(CHUNK, 1) for each in queries), strict=True))
    return torch.cat([decode(feat, *part, weights, biases) for part in parts[:chunks]], 1)


def render(
    feat: Tensor, size: tuple[int, int], weights: Sequence[Tensor], biases: Sequence[Tensor], **options: Any
) -> Tensor:
    """Decode every pixel of an image of `size`; options as for `decode_chunks`."""
    return decode_chunks(feat, grid(size, feat), weights, biases, **options)


@torch.no_grad()
def decode_projected_chunks(
    feat: Tensor,
    queries: tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    chunk: int,
    decode: Callable[..., Tensor] = decode_projected,
) -> Tensor:
    """Decode one map [1, C, H, W] by the factorised form: project the map once, decode it in chunks."""
    rows = project(feat, weights[0], biases[0]).flatten(2)[0].t().contiguous()
    centres = centres_of((feat.shape[2], feat.shape[3]), feat.device)
    parts = zip(*(each.split(chunk, 1) for each in queries), strict=True)
    return torch.cat([decode(rows, *part, centres, weights, biases) for part in parts], 1)
