"""Autocast, and half precision: the network in the low dtype, the plan in float32."""

import pytest
import torch

from liif_fast import functional, make_cell, make_coord

from . import oracle
from .support import ALL_SWITCHES, BACKENDS, Problem, same_bits

# The C++ kernels compute in float32 and float64 only; under autocast `auto` takes another backend.
LOW = [*(name for name in BACKENDS if name != "cpu"), "auto"]


def at_scale_3(switches):
    """Every query of x3, half of which a bfloat16 coordinate would send to a wrong latent."""
    problem = Problem(shape=(9, 11), switches=switches)
    problem.coord = make_coord((27, 33)).expand(2, -1, -1)
    problem.cell = make_cell((27, 33)).expand(2, -1, -1)
    return problem


@pytest.mark.parametrize("backend", LOW)
@pytest.mark.parametrize("switches", ALL_SWITCHES)
def test_autocast(backend, switches):
    problem = at_scale_3(switches).requires_grad()
    options = {**switches._asdict(), "backend": backend}
    doubles = [t.detach().double() for t in problem.leaves]
    n = len(problem.weights)

    def plain(cast):
        """The plain form with x and the parameters in one dtype."""
        leaves = [t.to(cast).requires_grad_() for t in doubles]
        out = oracle.decode(leaves[0], problem.coord, problem.cell, leaves[1 : 1 + n], leaves[1 + n :], switches)
        return out, torch.autograd.grad(out, leaves, grad.to(cast))

    grad = torch.randn(2, problem.coord.shape[1], 3, generator=torch.Generator().manual_seed(1))
    exact, exact_grads = plain(torch.float64)
    low, low_grads = plain(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = functional.liif_decode(*problem.arguments, **options)
    assert out.dtype == torch.float32
    grads = torch.autograd.grad(out, problem.leaves, grad)

    def norm(t):
        return t.double().norm().item()

    # Promise 2: the same dtype in plain PyTorch errs at least half (a third) as much.
    assert norm(out - exact) <= 2 * norm(low - exact)
    for ours, e, each in zip(grads, exact_grads, low_grads, strict=True):
        assert ours.dtype == torch.float32
        assert norm(ours - e) <= 3 * norm(each - e)


@pytest.mark.parametrize("backend", LOW)
def test_plan_under_autocast(backend):
    problem = at_scale_3(ALL_SWITCHES[-1])
    with torch.autocast("cpu", torch.bfloat16):
        x, weight = functional.gather_corners(*problem.arguments[:3], backend=backend)
        plan = functional.corner_plan(problem.coord, (9, 11))
    expected = oracle.gather(*problem.arguments[:3], problem.switches)
    assert same_bits(x, expected[0])
    assert same_bits(weight, expected[1])
    assert same_bits(plan[1], torch.from_numpy(oracle.plan(problem.coord.numpy(), (9, 11))[1]))


def test_cpu_kernels_refuse_autocast():
    problem = Problem()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast"):
        functional.liif_decode(*problem.arguments, backend="cpu")
