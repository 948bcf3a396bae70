"""Race the decoder of LTE without its encoder: a picture of x4, and the training setting of its authors."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import eager
from benchmarks.bench import Bench, rows
from benchmarks.common import EAGER, Raced, backends, with_gradients
from liif_fast import make_cell, make_coord
from liif_fast.functional import fourier_decode
from liif_fast.models import make

BACKEND_TORCH = "backend torch"
CHUNK = 30_000  # queries that the authors' test decodes at a time


def plain(maps: Tensor, coord: Tensor, cell: Tensor, phase: Tensor, network: Any) -> Tensor:
    """Compute LTE as its authors do: corner by corner, nearest latents by grid_sample, all of a chunk at once."""
    parts = zip(coord.split(CHUNK, 1), cell.split(CHUNK, 1), strict=True)
    return torch.cat([_plain(maps, *part, phase, network) for part in parts], 1)


def _plain(maps: Tensor, coord: Tensor, cell: Tensor, phase: Tensor, network: Any) -> Tensor:
    centres = eager.centres_of((maps.shape[2], maps.shape[3]), maps.device)
    cells = cell * cell.new_tensor(maps.shape[2:])
    outs, areas = [], []
    for latent, rel, area in eager.corners(maps, centres, coord):
        amplitude, frequency = latent.chunk(2, -1)
        turns = (frequency.unflatten(-1, (-1, 2)) * rel.unsqueeze(-2)).sum(-1) + F.linear(cells, phase)
        angle = torch.pi * turns
        outs.append(network(amplitude * torch.cat((angle.cos(), angle.sin()), -1)))
        areas.append(area)
    return sum(out * share for out, share in zip(outs, eager.shares(areas), strict=True))


def problem(bench: Bench, batch: int, side: int) -> tuple[Tensor, Any, Any]:
    """Return maps of amplitudes and frequencies, and a model of the published widths with a very small encoder."""
    torch.manual_seed(0)
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [256, 256, 256]}}
    encoder = {"name": "edsr-baseline", "args": {"no_upsampling": True, "n_resblocks": 1}}
    model: Any = make({"name": "lte", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}).to(bench.device)
    return torch.randn(batch, 512, side, side, device=bench.device), model, model.network()[1]


@rows(EAGER, BACKEND_TORCH)
@torch.no_grad()
def test_fourier(bench: Bench) -> Raced:
    side = bench.pick(48, None, 4)
    maps, model, chain = problem(bench, 1, side)
    coord, cell = (make((4 * side, 4 * side), device=bench.device)[None] for make in (make_coord, make_cell))
    phase = model.phase.weight
    return bench.race(
        "fourier",
        f"LTE's decoder, {side}x{side} to {4 * side}x{4 * side}",
        backends(lambda backend: fourier_decode(maps, coord, cell, phase, *chain, backend=backend), BACKEND_TORCH)
        | {EAGER: lambda: plain(maps, coord, cell, phase, model.imnet)},
        rounds=5,
        seconds=6.0,
    )


@rows(EAGER, BACKEND_TORCH)
def test_fourier_backward(bench: Bench) -> Raced:
    batch, side, count = bench.pick(16, None, 1), bench.pick(48, None, 4), bench.pick(2304, None, 30)
    maps, model, chain = problem(bench, batch, side)
    maps.requires_grad_()
    coord = torch.rand(batch, count, 2, device=bench.device) * 2 - 1
    cell = torch.full_like(coord, 2 / (3 * side))
    phase, grad = model.phase.weight, torch.randn(batch, count, 3, device=bench.device)
    wanted = (maps, phase, *model.imnet.parameters())
    step = partial(with_gradients, leaves=wanted, grad=grad)

    return bench.race(
        "fourier-backward",
        f"LTE's decoder, forward + backward, {batch} x {count:,} queries",
        backends(
            lambda backend: step(lambda: fourier_decode(maps, coord, cell, phase, *chain, backend=backend))(),
            BACKEND_TORCH,
        )
        | {EAGER: step(lambda: plain(maps, coord, cell, phase, model.imnet))},
        rounds=5,
        seconds=6.0,
    )
