"""Race the decoder of LM-LIIF without its encoder: a picture of x4, and a training batch."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import eager
from benchmarks.bench import Bench, rows
from benchmarks.common import EAGER, Raced, backends, with_gradients
from liif_fast import make_cell, make_coord
from liif_fast.functional import modulated_decode
from liif_fast.layers import Chain, chain_of
from liif_fast.models import make

BACKEND_TORCH = "backend torch"
CHUNK = 30_000  # queries that the authors' test decodes at a time
NEURONS, DEPTH, FEATURES = 16, 6, 16  # of the published models


def plain(maps: Tensor, coord: Tensor, cell: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Compute LM-LIIF as its authors do: corner by corner, nearest latents by grid_sample, all of a chunk at once."""
    parts = zip(coord.split(CHUNK, 1), cell.split(CHUNK, 1), strict=True)
    return torch.cat([_plain(maps, *part, weights, biases) for part in parts], 1)


def _plain(maps: Tensor, coord: Tensor, cell: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    centres = eager.centres_of((maps.shape[2], maps.shape[3]), maps.device)
    cells = cell * cell.new_tensor(maps.shape[2:])
    outs, areas = [], []
    for latent, rel, area in eager.corners(maps, centres, coord):
        scales, shifts, x = latent.split([DEPTH * NEURONS, DEPTH * NEURONS, FEATURES], -1)
        x = torch.cat((x, rel, cells), -1)
        layers = zip(weights, biases, scales.split(NEURONS, -1), shifts.split(NEURONS, -1), strict=False)
        for weight, bias, scale, shift in layers:
            x = F.relu(F.linear(x, weight, bias) * (scale + 1) + shift)
        outs.append(F.linear(x, weights[-1], biases[-1]))
        areas.append(area)
    return sum(out * share for out, share in zip(outs, eager.shares(areas), strict=True))


def problem(bench: Bench, batch: int, side: int) -> tuple[Tensor, Chain]:
    """Return maps of modulations and features, and the network of the published widths."""
    torch.manual_seed(0)
    args = {"in_dim": FEATURES + 4, "out_dim": 3, "hidden_dim": NEURONS, "hidden_depth": DEPTH}
    chain = chain_of(make({"name": "lmmlp", "args": args}).to(bench.device))
    assert chain is not None
    return torch.randn(batch, 2 * DEPTH * NEURONS + FEATURES, side, side, device=bench.device) / 4, chain


@rows(EAGER, BACKEND_TORCH)
@torch.no_grad()
def test_modulated(bench: Bench) -> Raced:
    side = bench.pick(48, None, 4)
    maps, chain = problem(bench, 1, side)
    coord, cell = (make((4 * side, 4 * side), device=bench.device)[None] for make in (make_coord, make_cell))
    return bench.race(
        "modulated",
        f"LM-LIIF's decoder, {side}x{side} to {4 * side}x{4 * side}",
        backends(lambda backend: modulated_decode(maps, coord, cell, *chain, backend=backend), BACKEND_TORCH)
        | {EAGER: lambda: plain(maps, coord, cell, *chain)},
        rounds=5,
        seconds=6.0,
    )


@rows(EAGER, BACKEND_TORCH)
def test_modulated_backward(bench: Bench) -> Raced:
    batch, side, count = bench.pick(16, None, 1), bench.pick(48, None, 4), bench.pick(2304, None, 30)
    maps, chain = problem(bench, batch, side)
    maps.requires_grad_()
    coord = torch.rand(batch, count, 2, device=bench.device) * 2 - 1
    cell, grad = torch.full_like(coord, 2 / (3 * side)), torch.randn(batch, count, 3, device=bench.device)
    wanted = (maps, *chain[0], *chain[1])
    step = partial(with_gradients, leaves=wanted, grad=grad)

    return bench.race(
        "modulated-backward",
        f"LM-LIIF's decoder, forward + backward, {batch} x {count:,} queries",
        backends(
            lambda backend: step(lambda: modulated_decode(maps, coord, cell, *chain, backend=backend))(), BACKEND_TORCH
        )
        | {EAGER: step(lambda: plain(maps, coord, cell, *chain))},
        rounds=5,
        seconds=6.0,
    )
