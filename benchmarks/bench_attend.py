"""Measure ILN's decoder, the transformer over corners, and whole frames of 64 x 1024 from 16 x 1024."""

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench import Bench, rows
from benchmarks.common import EAGER, Raced, backends, with_gradients
from liif_fast.functional import attend_corners, plan_attention
from liif_fast.lidar import Sensor
from liif_fast.models import make

BACKEND_TORCH = "backend torch"
CHUNK = 100_000  # queries that the authors' code decodes at a time


def plain(feat: Tensor, values: Tensor, coord: Tensor, net: Any) -> Tensor:
    """Compute ILN as its authors do: every token goes through the whole first block; attention is batched products."""
    return torch.cat([_plain(feat, values, part, net) for part in coord.split(CHUNK, 1)], 1)


def _plain(feat: Tensor, values: Tensor, coord: Tensor, net: Any) -> Tensor:
    plan = plan_attention(coord, feat.shape[2:])
    flat = plan.at.flatten(1)[:, None]
    tokens = feat.flatten(2).gather(2, flat.expand(-1, feat.shape[1], -1)).transpose(1, 2).unflatten(1, (-1, 4))
    ranges = values.flatten(2).gather(2, flat.expand(-1, values.shape[1], -1)).transpose(1, 2).unflatten(1, (-1, 4))
    x = tokens + F.linear(plan.rel, net.position_weight, net.position_bias)
    width = x.shape[-1]
    for block in net.blocks:
        normed = F.layer_norm(x, (width,), block.norm_weight, block.norm_bias)
        q, k, v = (
            each.unflatten(-1, (net.heads, -1)).transpose(-2, -3) for each in F.linear(normed, block.qkv).chunk(3, -1)
        )
        weight = (q @ k.transpose(-1, -2) * (width // net.heads) ** -0.5).softmax(-1)
        x = x + F.linear((weight @ v).transpose(-2, -3).flatten(-2), block.out_weight, block.out_bias)
        normed = F.layer_norm(x, (width,), block.mlp_norm_weight, block.mlp_norm_bias)
        hidden = F.gelu(F.linear(normed, block.up_weight, block.up_bias))
        x = x + F.linear(hidden, block.down_weight, block.down_bias)
    normed = F.layer_norm(x, (width,), net.norm_weight, net.norm_bias)
    weight = F.linear(normed, net.head_weight, net.head_bias).softmax(-2)
    return (weight * ranges).sum(-2)


def problem(bench: Bench, lines: int, columns: int) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Return the model, its features, the ranges, and the coordinates of a frame with four times the lines."""
    torch.manual_seed(0)
    encoder = {"name": "edsr-lidar", "args": {}}
    model: Any = make({"name": "iln", "args": {"d": 1, "h": 8, "encoder_spec": encoder}}).eval().to(bench.device)
    low = Sensor(tuple(np.linspace(-15, 15, lines).tolist()), columns)
    row = low.row_of(low.with_lines(4 * lines).elevations)
    places = [(2 * row + 1) / lines - 1, (2 * np.arange(columns) + 1) / columns - 1]
    coord = torch.tensor(np.stack(np.meshgrid(*places, indexing="ij"), -1).reshape(1, -1, 2), dtype=torch.float32)
    feat = torch.randn(1, 64, lines, columns, device=bench.device)
    return model, feat, torch.rand(1, 1, lines, columns, device=bench.device), coord.to(bench.device)


@rows(EAGER, BACKEND_TORCH)
@torch.no_grad()
def test_attend(bench: Bench) -> Raced:
    lines, columns = bench.pick(16, None, 2), bench.pick(1024, None, 16)
    model, feat, values, coord = problem(bench, lines, columns)
    net = model.attention.transformer_of()
    plan = plan_attention(coord, (lines, columns))
    return bench.race(
        "attend",
        f"ILN's decoder, d = 1, {lines}x{columns} to {4 * lines}x{columns}",
        backends(lambda backend: attend_corners(feat, values, plan, net, backend=backend)[0], BACKEND_TORCH)
        | {EAGER: lambda: plain(feat, values, coord, net)},
        rounds=5,
        seconds=6.0,
    )


@rows(EAGER, BACKEND_TORCH)
def test_attend_backward(bench: Bench) -> Raced:
    lines, columns, count = bench.pick(16, None, 2), bench.pick(1024, None, 16), bench.pick(16_384, None, 60)
    model, feat, values, coord = problem(bench, lines, columns)
    coord = coord[:, torch.randperm(coord.shape[1])[:count]]
    feat.requires_grad_()
    net = model.attention.transformer_of()
    grad = torch.randn(1, coord.shape[1], 1, device=bench.device)
    # A shift of all logits changes nothing, so the gradients of the last two biases are rounding errors.
    wanted = [
        each
        for name, each in model.attention.named_parameters()
        if not name.startswith("mlp_head.") or "weight" in name
    ]
    step = partial(with_gradients, leaves=(feat, *wanted), grad=grad)

    return bench.race(
        "attend-backward",
        f"ILN's decoder, d = 1, forward + backward, Q = {coord.shape[1]:,}",
        backends(
            lambda backend: step(lambda: attend_corners(feat, values, coord, net, backend=backend)[0])(), BACKEND_TORCH
        )
        | {EAGER: step(lambda: plain(feat, values, coord, net))},
        rounds=5,
        seconds=6.0,
    )


@rows(EAGER, BACKEND_TORCH)
@torch.no_grad()
def test_frame(bench: Bench) -> Raced:
    lines, columns = bench.pick(16, None, 2), bench.pick(1024, None, 16)
    model, _, values, coord = problem(bench, lines, columns)
    net = model.attention.transformer_of()
    plan = plan_attention(coord, (lines, columns))
    return bench.race(
        "attend-frame",
        f"ILN, d = 1, a frame of {4 * lines}x{columns} from {lines}x{columns}, encoder included",
        backends(
            lambda backend: attend_corners(model.gen_feat(values), values, plan, net, backend=backend)[0], BACKEND_TORCH
        )
        | {EAGER: lambda: plain(model.encoder(values), values, coord, net)},
        rounds=5,
        seconds=6.0,
    )
