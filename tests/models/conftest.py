"""Provide stand-ins for the original's classes, and the names and shapes of its tensors."""

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class PlainMLP(nn.Module):
    def __init__(self, widths):
        super().__init__()
        layers = [nn.Linear(widths[0], widths[1])]
        for a, b in itertools.pairwise(widths[1:]):
            layers += [nn.ReLU(), nn.Linear(a, b)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class PlainEncoder(nn.Module):
    def __init__(self, out_dim):
        super().__init__()
        self.conv = nn.Conv2d(3, out_dim, 3, padding=1)
        self.out_dim = out_dim

    def forward(self, inp):
        return self.conv(inp)


class PlainLIIF(nn.Module):
    """Have the original's attributes, and compute the decoder's formula corner by corner."""

    shift = 1e-6

    def __init__(self, local_ensemble=True, feat_unfold=True, cell_decode=True, channels=4, hidden=(16, 16)):
        super().__init__()
        self.local_ensemble, self.feat_unfold, self.cell_decode = local_ensemble, feat_unfold, cell_decode
        self.encoder = PlainEncoder(channels)
        in_dim = channels * (9 if feat_unfold else 1) + 2 + 2 * cell_decode
        self.imnet = PlainMLP([in_dim, *hidden, 3])

    def gen_feat(self, inp):
        self.feat = self.encoder(inp)
        return self.feat

    def query_rgb(self, coord, cell=None):
        feat = self.feat
        height, width = feat.shape[-2:]
        n = torch.tensor([height, width], dtype=torch.float32)
        z = feat
        if self.feat_unfold:
            z = F.unfold(feat, 3, padding=1).unflatten(2, (height, width))
        preds, areas = [], []
        corners = [(a, b) for a in (-1, 1) for b in (-1, 1)] if self.local_ensemble else [None]
        for corner in corners:
            moved = coord
            if corner is not None:
                moved = torch.stack(
                    [coord[..., k] + (corner[k] / feat.shape[2 + k] + self.shift) for k in (0, 1)], dim=-1
                )
            index = (((moved.clamp(-1 + 1e-6, 1 - 1e-6) + 1) * n - 1) / 2).round()
            centre = index * (2 / n) + torch.tensor([-1 + 1 / height, -1 + 1 / width])
            rel = (coord - centre) * n
            flat = (index[..., 0] * width + index[..., 1]).long()
            rows = [zb.flatten(1)[:, i].T for zb, i in zip(z, flat, strict=True)]
            x = [torch.stack(rows), rel.to(feat.dtype)]
            if self.cell_decode:
                x.append((cell * n).to(feat.dtype))
            preds.append(self.imnet(torch.cat(x, -1)))
            areas.append((rel[..., 0] * rel[..., 1]).abs() + 1e-9)
        if not self.local_ensemble:
            return preds[0]
        total = ((areas[0] + areas[1]) + areas[2]) + areas[3]
        return sum(p * (a / total)[..., None] for p, a in zip(preds, areas[::-1], strict=True))

    def forward(self, inp, coord, cell):
        self.gen_feat(inp)
        return self.query_rgb(coord, cell)


class PlainMetaSR(nn.Module):
    """Have the original's attributes, and compute MetaSR's formula: a matrix for every query, one neighbour."""

    def __init__(self, channels=4):
        super().__init__()
        self.encoder = PlainEncoder(channels)
        self.imnet = PlainMLP([3, 256, channels * 9 * 3])

    def gen_feat(self, inp):
        self.feat = self.encoder(inp)
        return self.feat

    def query_rgb(self, coord, cell=None):
        height, width = self.feat.shape[-2:]
        n = torch.tensor([height, width], dtype=torch.float32)
        z = F.unfold(self.feat, 3, padding=1).transpose(1, 2)
        q = coord - cell / 2
        index = ((((q + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6) + 1) * n - 1) / 2).round()
        corner = index * (2 / n) + (-1 + 1 / n) - 1 / n
        inp = torch.cat([(q - corner) * n / 2, cell[..., :1] * height / 2], -1)
        weights = self.imnet(inp).unflatten(-1, (-1, 3))
        flat = (index[..., 0] * width + index[..., 1]).long()
        rows = torch.stack([zb[i] for zb, i in zip(z, flat, strict=True)])
        return (rows[:, :, None] @ weights)[:, :, 0]

    def forward(self, inp, coord, cell):
        self.gen_feat(inp)
        return self.query_rgb(coord, cell)


@pytest.fixture
def plain():
    """Return the stand-in classes."""
    return SimpleNamespace(LIIF=PlainLIIF, MetaSR=PlainMetaSR, MLP=PlainMLP, Encoder=PlainEncoder)


@pytest.fixture
def tiny_spec():
    """Return a function that makes the spec of a small LIIF with changed arguments."""

    def make_spec(**args):
        encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
        imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [16, 16]}}
        return {"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet, **args}}

    return make_spec
