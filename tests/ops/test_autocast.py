"""Under autocast and in half precision the network uses the low dtype, the plan float32."""

import pytest
import torch

from liif_fast import functional, make_cell, make_coord
from liif_fast.backends import cpu

from . import oracle
from .support import ALL_SWITCHES, BACKENDS, Problem, same_bits

LOW = [*BACKENDS, "auto"]
HAS_BFLOAT16 = pytest.mark.skipif(not cpu.BFLOAT16, reason="this processor has no AVX512-BF16")


def at_scale_3(switches):
    """Test every query of x3; with a bfloat16 coordinate half of them would read a wrong latent."""
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
        """Compute the plain form with x and the parameters in one dtype."""
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

    # Promise 2: plain PyTorch in the same dtype has at least half (for gradients a third) of the error.
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


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the backend cpu is not under test")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_instructions(dtype, monkeypatch):
    """A processor without bfloat16 products computes in float32 under autocast, and refuses bfloat16 tensors."""
    monkeypatch.setattr(cpu, "BFLOAT16", False)
    problem = Problem()
    exact = functional.liif_decode(*problem.arguments, backend="cpu")
    with torch.autocast("cpu", dtype):
        assert same_bits(functional.liif_decode(*problem.arguments, backend="cpu"), exact)
        assert functional.explain(*problem.arguments).chosen == "cpu"
    low = problem.to(torch.bfloat16)
    assert functional.explain(*low.arguments).chosen == "torch"
    with pytest.raises(RuntimeError, match="AVX512-BF16"):
        functional.liif_decode(*low.arguments, backend="cpu")


@HAS_BFLOAT16
@pytest.mark.parametrize("hidden", [(), (33,), (32, 24), (64, 65, 7, 64)])
@pytest.mark.parametrize("shape", [(9, 11), (61, 70)])  # the second: few queries on a large map, the direct form
@pytest.mark.parametrize("recompute", [True, False])
def test_bfloat16_tensors(hidden, shape, recompute):
    """Over several networks, output and gradients have at most two and three times plain PyTorch's bfloat16 error."""

    def run(seed, backend, dtype):
        options = {"channels": 5, "shape": shape, "queries": 37, "hidden": hidden, "dtype": torch.bfloat16}
        problem = Problem(seed, **options).to(dtype).requires_grad()
        grad = torch.randn(2, 37, 3, generator=torch.Generator().manual_seed(seed)).bfloat16().to(dtype)
        places = problem.coord.requires_grad_(), problem.cell.requires_grad_()
        out = functional.liif_decode(*problem.arguments, backend=backend, recompute=recompute)
        results = [out, *torch.autograd.grad(out, [*problem.leaves, *places], grad)]
        assert all(each.dtype == dtype for each in results[:-2])
        assert dtype != torch.bfloat16 or functional.explain(*problem.arguments).chosen == "cpu"
        return [each.detach().double() for each in results]

    ours, plain, floor = [], [], []
    for seed in range(5):
        exact = run(seed, "reference", torch.float64)
        for errors, backend in ((ours, "cpu"), (plain, "reference")):
            results = run(seed, backend, torch.bfloat16)
            errors.append([(r - e).square().sum() for r, e in zip(results, exact, strict=True)])
        floor.append([(2**-9 * e).square().sum() for e in exact])  # one rounding to bfloat16
    sums = (torch.tensor(each).sum(0).sqrt() for each in (ours, plain, floor))
    for i, (our, low, rounding) in enumerate(zip(*sums, strict=True)):
        assert our <= (3 if i else 2) * low + rounding


@HAS_BFLOAT16
def test_whole_numbers_are_exact():
    """bfloat16 products of small whole numbers are summed exactly in float32."""
    generator = torch.Generator().manual_seed(0)

    def whole(*shape):
        return torch.randint(-2, 3, shape, generator=generator).bfloat16()

    x = whole(101, 37)
    weights, biases = [whole(35, 37), whole(5, 35)], [whole(35), whole(5)]
    x[:, 5:] = 0  # so that hidden values stay below 256
    with torch.autocast("cpu", torch.bfloat16):
        out = functional.fused_mlp(x.float(), weights, biases, backend="cpu")
    exact = functional.fused_mlp(x.double(), [w.double() for w in weights], [b.double() for b in biases])
    assert torch.equal(out.double(), exact)


@HAS_BFLOAT16
def test_same_bits_in_any_window_and_batch():
    problem = Problem(batch=3, channels=8, shape=(13, 17), hidden=(64, 64))
    feat, _, _, weights, biases = problem.arguments
    with torch.autocast("cpu", torch.bfloat16):
        whole = functional.liif_render(feat, (40, 53), weights, biases, backend="cpu")
        part = functional.liif_render(feat[1:2], (40, 53), weights, biases, region=(7, 9, 12, 31), backend="cpu")
        grid = make_coord((40, 53)).expand(3, -1, -1), make_cell((40, 53)).expand(3, -1, -1)
        decoded = functional.liif_decode(feat, *grid, weights, biases, backend="cpu")
    assert same_bits(part, whole[1:2, :, 7:19, 9:40])
    assert same_bits(decoded.transpose(1, 2).reshape(whole.shape), whole)


@HAS_BFLOAT16
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays(value):
    problem = Problem(dtype=torch.bfloat16)
    problem.feat[1, 2, 5, 6] = value
    ours = functional.liif_decode(*problem.arguments, backend="cpu")
    plain = functional.liif_decode(*problem.arguments, backend="reference")
    assert torch.equal(ours.isfinite(), plain.isfinite()) and not ours.isfinite().all()
