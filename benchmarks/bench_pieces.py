"""Measure the parts for a network of one's own: `gather_corners`, bound by memory, `fused_mlp`, bound by arithmetic."""

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks import eager
from benchmarks.bench import Bench, rows
from benchmarks.common import (
    COMPILED,
    EAGER,
    Raced,
    Result,
    backends,
    make_problem,
    make_queries,
    with_gradients,
)
from benchmarks.limits import Work
from liif_fast.functional import fused_mlp, gather_corners

BACKEND_TORCH = "backend torch"


@rows(EAGER, BACKEND_TORCH, half=True)
@torch.no_grad()
def test_gather(bench: Bench) -> Raced:
    side, count = bench.pick(48, None, 7), bench.pick(16_384, None, 60)
    feat, _, _ = make_problem((side, side), device=bench.device)
    coord, cell = make_queries(1, count, side, bench.device)
    centres = eager.centres_of((side, side), bench.device)

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        latents = F.unfold(feat, 3, padding=1).view(1, -1, side, side)
        found, rels, areas = zip(*eager.corners(latents, centres, coord), strict=True)
        cells = (cell * side).unsqueeze(2).expand(-1, -1, 4, -1)
        return torch.cat((torch.stack(found, 2), torch.stack(rels, 2), cells), -1), torch.cat(eager.shares(areas), -1)

    x, weight = gather_corners(feat, coord, cell, backend="reference")
    return bench.race(
        "gather",
        f"gather_corners, Q = {count:,}, {side}x{side}",
        backends(lambda backend: gather_corners(feat, coord, cell, backend=backend)[0], BACKEND_TORCH)
        | {EAGER: lambda: plain()[0]},
        rounds=15,
        seconds=4.0,
        work=Work(0, x.nbytes + weight.nbytes + feat.nbytes + coord.nbytes + cell.nbytes),
    )


@rows(EAGER, COMPILED, BACKEND_TORCH, half=True)
@torch.no_grad()
def test_mlp(bench: Bench) -> Raced:
    count = bench.pick(65_536, None, 200)
    _, weights, biases = make_problem((1, 1), hidden=bench.hidden, device=bench.device)
    x = torch.randn(count, weights[0].shape[1], device=bench.device)
    compiled = torch.compile(eager.mlp, dynamic=False)
    return bench.race(
        "mlp",
        f"fused_mlp, {count:,} rows, {' - '.join(str(w.shape[1]) for w in weights)} - 3",
        backends(partial(fused_mlp, x, weights, biases), BACKEND_TORCH)
        | {EAGER: lambda: eager.mlp(x, weights, biases), COMPILED: lambda: compiled(x, weights, biases)},
        rounds=9,
        work=Work(2 * count * sum(w.numel() for w in weights), x.nbytes + count * 3 * 4),
    )


@rows(BACKEND_TORCH, half=True)
def test_gather_backward(bench: Bench) -> Raced:
    side, count = bench.pick(48, None, 7), bench.pick(4096, None, 60)
    problem = make_problem((side, side), device=bench.device)
    feat = problem.feat.requires_grad_()
    coord, cell = make_queries(1, count, side, bench.device)
    grad = torch.randn_like(gather_corners(feat, coord, cell)[0])

    def step(backend: str) -> Result:
        return with_gradients(lambda: gather_corners(feat, coord, cell, backend=backend)[0], (feat,), grad)()

    return bench.race(
        "gather-backward",
        f"gather_corners, forward + backward, Q = {count:,}, {side}x{side}",
        backends(step, BACKEND_TORCH),
        rounds=15,
        seconds=3.0,
    )


@rows(EAGER, BACKEND_TORCH, half=True)
def test_mlp_backward(bench: Bench) -> Raced:
    count = bench.pick(16_384, None, 200)
    _, weights, biases = make_problem((1, 1), hidden=bench.hidden, device=bench.device)
    x = torch.randn(count, weights[0].shape[1], device=bench.device, requires_grad=True)
    grad = torch.randn(count, 3, device=bench.device)
    step = partial(with_gradients, leaves=(x, *weights, *biases), grad=grad)

    return bench.race(
        "mlp-backward",
        f"fused_mlp, forward + backward, {count:,} rows, {' - '.join(str(w.shape[1]) for w in weights)} - 3",
        backends(lambda backend: step(partial(fused_mlp, x, weights, biases, backend=backend))(), BACKEND_TORCH)
        | {EAGER: step(partial(eager.mlp, x, weights, biases))},
        rounds=9,
        seconds=5.0,
        work=Work(6 * count * sum(w.numel() for w in weights), 2 * x.nbytes),
    )
