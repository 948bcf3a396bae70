"""The plain formula as LIIF's users run it in eager PyTorch: the baseline that everything is compared with.

The map is unfolded in every call; each of the four corners has its nearest latent and that latent's centre looked up by
grid_sample and runs through the network on its own; images are decoded in chunks of 30,000 queries.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from liif_fast import make_cell, make_coord

CHUNK = 30_000
EPSILON = 1e-6

Decode = Callable[[Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]


def mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Linear, ReLU, ..., Linear on the last dimension."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = F.relu(F.linear(x, weight, bias))
    return F.linear(x, weights[-1], biases[-1])


def decode(feat: Tensor, coord: Tensor, cell: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Decode queries [B, Q, 2] of feat [B, C, H, W] to [B, Q, out], with every switch of LIIF on."""
    batch, channels, height, width = feat.shape
    latents = F.unfold(feat, 3, padding=1).view(batch, channels * 9, height, width)
    centres = make_coord((height, width)).view(1, height, width, 2).permute(0, 3, 1, 2).expand(batch, 2, height, width)
    scale = coord.new_tensor((height, width))
    predictions, areas = [], []
    for row in (-1, 1):
        for column in (-1, 1):
            shift = coord.new_tensor((row / height + EPSILON, column / width + EPSILON))
            where = (coord + shift).clamp(-1 + EPSILON, 1 - EPSILON).flip(-1).unsqueeze(1)
            latent, centre = (
                F.grid_sample(image, where, mode="nearest", align_corners=False).squeeze(2).transpose(1, 2)
                for image in (latents, centres)
            )
            rel = (coord - centre) * scale
            predictions.append(mlp(torch.cat((latent, rel, cell * scale), -1), weights, biases))
            areas.append((rel[..., 0] * rel[..., 1]).abs() + 1e-9)
    total = areas[0] + areas[1] + areas[2] + areas[3]
    out = torch.zeros_like(predictions[0])
    for prediction, opposite in zip(predictions, reversed(areas), strict=True):
        out = out + prediction * (opposite / total).unsqueeze(-1)
    return out


@torch.no_grad()
def render(
    feat: Tensor,
    size: tuple[int, int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    decode: Decode = decode,
    chunks: int | None = None,
) -> Tensor:
    """Decode the grid `size` in chunks (only the first `chunks` of them, if given) to [B, queries, out]."""
    batch = feat.shape[0]
    coord, cell = (grid.expand(batch, -1, -1) for grid in (make_coord(size), make_cell(size).contiguous()))
    parts = list(zip(coord.split(CHUNK, 1), cell.split(CHUNK, 1), strict=True))
    return torch.cat([decode(feat, *part, weights, biases) for part in parts[:chunks]], 1)
