"""The two pieces for networks of one's own: `gather_corners`, bound by memory, and `fused_mlp`, bound by arithmetic."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks import eager
from benchmarks.common import COMPILED, EAGER, OURS, REFERENCE, Raced, make_problem, make_queries
from benchmarks.limits import Work
from liif_fast.functional import fused_mlp, gather_corners

BACKEND_TORCH = "backend torch"


@pytest.fixture(scope="module")
@torch.no_grad()
def gather(half: bool, device: torch.device, race: Callable[..., Raced], pick: Callable[..., Any]) -> Raced:
    side, count = pick(48, None, 7), pick(16_384, None, 60)
    feat, _, _ = make_problem((side, side), device=device)
    coord, cell = make_queries(1, count, side, device)
    centres = eager.centres_of((side, side), device)

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        latents = F.unfold(feat, 3, padding=1).view(1, -1, side, side)
        found, rels, areas = zip(*eager.corners(latents, centres, coord), strict=True)
        cells = (cell * side).unsqueeze(2).expand(-1, -1, 4, -1)
        return torch.cat((torch.stack(found, 2), torch.stack(rels, 2), cells), -1), torch.cat(eager.shares(areas), -1)

    x, weight = gather_corners(feat, coord, cell, backend="reference")
    return race(
        "gather",
        f"gather_corners, Q = {count:,}, {side}x{side}",
        {
            OURS: lambda: gather_corners(feat, coord, cell)[0],
            REFERENCE: lambda: gather_corners(feat, coord, cell, backend="reference")[0],
            EAGER: lambda: plain()[0],
            BACKEND_TORCH: lambda: gather_corners(feat, coord, cell, backend="torch")[0],
        },
        rounds=15,
        seconds=4.0,
        work=Work(0, x.nbytes + weight.nbytes + feat.nbytes + coord.nbytes + cell.nbytes),
        half=half,
    )


@pytest.mark.variants(EAGER, BACKEND_TORCH)
def test_gather(gather: Raced, row: Callable[[Raced], None]) -> None:
    row(gather)


@pytest.fixture(scope="module")
@torch.no_grad()
def mlp(half: bool, device: torch.device, race: Callable[..., Raced], pick: Callable[..., Any]) -> Raced:
    rows = pick(65_536, None, 200)
    _, weights, biases = make_problem((1, 1), hidden=pick((256,) * 4, (256,) * 4, (16, 16)), device=device)
    x = torch.randn(rows, weights[0].shape[1], device=device)
    compiled = torch.compile(eager.mlp, dynamic=False)
    return race(
        "mlp",
        f"fused_mlp, {rows:,} rows, {' - '.join(str(w.shape[1]) for w in weights)} - 3",
        {
            OURS: lambda: fused_mlp(x, weights, biases),
            REFERENCE: lambda: fused_mlp(x, weights, biases, backend="reference"),
            EAGER: lambda: eager.mlp(x, weights, biases),
            COMPILED: lambda: compiled(x, weights, biases),
            BACKEND_TORCH: lambda: fused_mlp(x, weights, biases, backend="torch"),
        },
        rounds=9,
        work=Work(2 * rows * sum(w.numel() for w in weights), x.nbytes + rows * 3 * 4),
        half=half,
    )


@pytest.mark.variants(EAGER, COMPILED, BACKEND_TORCH)
def test_mlp(mlp: Raced, row: Callable[[Raced], None]) -> None:
    row(mlp)


@pytest.fixture(scope="module")
def gather_backward(half: bool, device: torch.device, race: Callable[..., Raced], pick: Callable[..., Any]) -> Raced:
    side, count = pick(48, None, 7), pick(4096, None, 60)
    problem = make_problem((side, side), device=device)
    feat = problem.feat.requires_grad_()
    coord, cell = make_queries(1, count, side, device)
    grad = torch.randn_like(gather_corners(feat, coord, cell)[0])

    def step(**options: Any) -> list[torch.Tensor]:
        x, _ = gather_corners(feat, coord, cell, **options)
        return [x.detach(), *torch.autograd.grad(x, feat, grad)]

    return race(
        "gather-backward",
        f"gather_corners, forward + backward, Q = {count:,}, {side}x{side}",
        {
            OURS: step,
            REFERENCE: lambda: step(backend="reference"),
            BACKEND_TORCH: lambda: step(backend="torch"),
        },
        rounds=15,
        seconds=3.0,
        half=half,
    )


@pytest.mark.variants(BACKEND_TORCH)
def test_gather_backward(gather_backward: Raced, row: Callable[[Raced], None]) -> None:
    row(gather_backward)


@pytest.fixture(scope="module")
def mlp_backward(half: bool, device: torch.device, race: Callable[..., Raced], pick: Callable[..., Any]) -> Raced:
    rows = pick(16_384, None, 200)
    _, weights, biases = make_problem((1, 1), hidden=pick((256,) * 4, (256,) * 4, (16, 16)), device=device)
    x = torch.randn(rows, weights[0].shape[1], device=device, requires_grad=True)
    grad = torch.randn(rows, 3, device=device)

    def step(mlp: Callable[..., torch.Tensor], **options: Any) -> list[torch.Tensor]:
        out = mlp(x, weights, biases, **options)
        return [out.detach(), *torch.autograd.grad(out, (x, *weights, *biases), grad.to(out.dtype))]

    return race(
        "mlp-backward",
        f"fused_mlp, forward + backward, {rows:,} rows, {' - '.join(str(w.shape[1]) for w in weights)} - 3",
        {
            OURS: lambda: step(fused_mlp),
            REFERENCE: lambda: step(fused_mlp, backend="reference"),
            EAGER: lambda: step(eager.mlp),
            BACKEND_TORCH: lambda: step(fused_mlp, backend="torch"),
        },
        rounds=9,
        seconds=5.0,
        work=Work(6 * rows * sum(w.numel() for w in weights), 2 * x.nbytes),
        half=half,
    )


@pytest.mark.variants(EAGER, BACKEND_TORCH)
def test_mlp_backward(mlp_backward: Raced, row: Callable[[Raced], None]) -> None:
    row(mlp_backward)
