"""Implement LIIF a second time: the plan in numpy float32, the network in plain PyTorch of any dtype.

It uses nothing of liif_fast. Every backend, including the reference, is compared with it.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

f32 = np.float32


class Switches(NamedTuple):
    """Hold the decoder's options, which are passed on as keyword arguments."""

    feat_unfold: bool = True
    local_ensemble: bool = True
    cell_decode: bool = True


def centres(n):
    """Return the pixel centres of an axis, fl(fl(fl(2/n) * i) + fl(-1 + 1/n)); numpy rounds after every operation."""
    return f32(2 / n) * np.arange(n, dtype=f32) + f32(-1 + 1 / n)


def grid(size):
    """Return (row, column) of every pixel of a grid, float32 [H*W, 2]."""
    rows, columns = np.meshgrid(centres(size[0]), centres(size[1]), indexing="ij")
    return np.stack((rows, columns), -1).reshape(-1, 2)


def axis_plan(coord, n, ensemble):
    """Plan one axis: coord [...] to index int64 and rel float32, [..., V] for the shifts -1, +1 (or none)."""
    indices, rels = [], []
    for shift in (f32(-1 / n + 1e-6), f32(1 / n + 1e-6)) if ensemble else (None,):
        moved = coord if shift is None else coord + shift
        moved = np.clip(moved, f32(-1 + 1e-6), f32(1 - 1e-6))
        index = np.rint(((moved + f32(1)) * f32(n) - f32(1)) / f32(2))  # half to even
        index = np.nan_to_num(index, nan=0.0).astype(np.int64)
        indices.append(index)
        rels.append((coord - centres(n)[index]) * f32(n))
    return np.stack(indices, -1), np.stack(rels, -1)


def plan(coord, shape, ensemble=True):
    """Plan coord float32 [..., 2]: index int64 [..., K, 2], rel [..., K, 2], weight [..., K] (diagonal swap done)."""
    with np.errstate(all="ignore"):  # infinities and NaN are tested too
        (row, row_rel), (column, column_rel) = (axis_plan(coord[..., k], shape[k], ensemble) for k in (0, 1))
        if not ensemble:
            rel = np.concatenate((row_rel, column_rel), -1)[..., None, :]
            return np.concatenate((row, column), -1)[..., None, :], rel, np.ones_like(rel[..., 0])
        order = [(0, 0), (0, 1), (1, 0), (1, 1)]
        index = np.stack([np.stack((row[..., a], column[..., b]), -1) for a, b in order], -2)
        rel = np.stack([np.stack((row_rel[..., a], column_rel[..., b]), -1) for a, b in order], -2)
        area = np.abs(rel[..., 0] * rel[..., 1]) + f32(1e-9)
        total = ((area[..., 0] + area[..., 1]) + area[..., 2]) + area[..., 3]
        return index, rel, area[..., ::-1] / total[..., None]


def gather(feat, coord, cell, switches):
    """Return the network's input x [B, Q, K, in_dim] in feat's dtype, and weight float32 [B, Q, K]."""
    batch, _, height, width = feat.shape
    planned = plan(coord.cpu().numpy(), (height, width), switches.local_ensemble)
    index, rel, weight = (torch.from_numpy(part).to(feat.device) for part in planned)
    if switches.feat_unfold:  # channel c*9 + ki*3 + kj
        wide = F.pad(feat, (1, 1, 1, 1))
        feat = torch.stack([wide[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)], 2).flatten(
            1, 2
        )
    image = torch.arange(batch, device=feat.device).view(-1, 1, 1).expand(index.shape[:-1])
    parts = [feat[image, :, index[..., 0], index[..., 1]], rel]
    if switches.cell_decode:
        scaled = cell * cell.new_tensor([height, width])
        parts.append(scaled.unsqueeze(2).expand(rel.shape))
    return torch.cat([part.to(feat.dtype) for part in parts], -1), weight


def mlp(x, weights, biases, hidden=None):
    """Apply Linear, ReLU, ..., Linear; `hidden` collects the inputs of the ReLUs."""
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if layer:
            if hidden is not None:
                hidden.append(x)
            x = F.relu(x)
        x = F.linear(x, weight, bias)
    return x


def decode(feat, coord, cell, weights, biases, switches, hidden=None):
    """Decode by the plain form, every corner through the network, then the blend: [B, Q, out]."""
    x, weight = gather(feat, coord, cell, switches)
    return (mlp(x, weights, biases, hidden) * weight.unsqueeze(-1).to(feat.dtype)).sum(2)


def render(feat, size, region, cell, weights, biases, switches, hidden=None):
    """Decode a window (top, left, height, width) of a grid by the plain form; cell [B, 2]. [B, out, h, w]."""
    top, left, height, width = region
    coord = grid(size).reshape(*size, 2)[top : top + height, left : left + width].reshape(1, -1, 2)
    coord = torch.from_numpy(coord).to(feat.device).expand(feat.shape[0], -1, -1)
    out = decode(feat, coord, cell.unsqueeze(1).expand(coord.shape), weights, biases, switches, hidden)
    return out.transpose(1, 2).unflatten(2, (height, width))
