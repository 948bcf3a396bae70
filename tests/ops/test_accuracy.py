"""Check promise 2 where it is hardest: gradients summed over many rows, without test_random.py's floor.

Rounding errors of a chain of n additions grow with n; those of PyTorch's blocked sums hardly do. The root mean square
over a gradient of some hundreds of elements or more, where luck averages out, must be at most 3 times that of plain
PyTorch (2 times for the output).
"""

import pytest
import torch

from liif_fast import functional

from . import oracle
from .support import BACKENDS, DEVICE, Problem

ROWS = 16384


def rms(tensor):
    return tensor.double().square().mean().sqrt().item()


def clear_of_zero(hidden):
    """Return which queries have no pre-activation near 0, whose sign rounding may change (as in test_random.py)."""
    closest = torch.cat([h.abs() for h in hidden], -1).amin(-1)
    return closest if closest.ndim == 2 else closest.amin(-1)


def run(backend, problem, grad, recompute):
    """Return output and gradients of a backend, or of the plain form in the problem's dtype (backend None)."""
    problem.requires_grad()
    if backend is None:
        out = oracle.decode(*problem.arguments, problem.switches)
    else:
        options = {**problem.switches._asdict(), "backend": backend, "recompute": recompute}
        out = functional.liif_decode(*problem.arguments, **options)
    return [out.detach(), *torch.autograd.grad(out, problem.leaves, grad.to(out.dtype))]


@pytest.mark.parametrize("shape", [(24, 25), (12, 11), (3, 3)])
def test_many_queries(shape):
    """Test about 25, 120 and 1,800 queries per latent, 65,536 rows."""
    options = {"seed": 5, "batch": 1, "channels": 8, "shape": shape, "queries": ROWS, "hidden": (32, 24)}
    problem, double = Problem(**options), Problem(**options)
    double.to(torch.float64)
    hidden = []
    oracle.decode(*double.arguments, double.switches, hidden)
    grad = torch.randn(1, ROWS, 3, generator=torch.Generator().manual_seed(6))
    grad = grad.to(DEVICE) * clear_of_zero(hidden).gt(4e-6).unsqueeze(-1)
    exact = run(None, double, grad, None)
    plain = run(None, problem, grad, None)
    names = ["output", "feat", *(f"weights[{i}]" for i in range(3)), *(f"biases[{i}]" for i in range(3))]
    for backend in BACKENDS:
        for recompute in (True, False):
            for name, ours, p, e in zip(names, run(backend, problem, grad, recompute), plain, exact, strict=True):
                times = 2 if name == "output" else 3
                if e.numel() > 100:
                    assert rms(ours - e) <= times * rms(p - e), f"{backend}, recompute={recompute}: {name}"


def test_fused_mlp():
    problem = Problem(seed=7, channels=30, shape=(1, 1), hidden=(64, 64), out_dim=64)
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(4 * ROWS, 274, generator=generator).to(DEVICE)
    grad = torch.randn(4 * ROWS, 64, generator=generator).to(DEVICE)
    hidden = []
    doubles = [[p.double().requires_grad_() for p in ps] for ps in (problem.weights, problem.biases)]
    out = oracle.mlp(x.double(), *doubles, hidden)
    grad *= torch.cat([h.detach().abs() for h in hidden], -1).amin(-1, keepdim=True) > 4e-6
    exact = torch.autograd.grad(out, [*doubles[0], *doubles[1]], grad.double())
    singles = [[p.requires_grad_() for p in ps] for ps in (problem.weights, problem.biases)]
    leaves = [*singles[0], *singles[1]]
    plain = torch.autograd.grad(oracle.mlp(x, *singles), leaves, grad)
    for backend in BACKENDS:
        for recompute in (True, False):
            out = functional.fused_mlp(x, *singles, backend=backend, recompute=recompute)
            for i, (o, p, e) in enumerate(zip(torch.autograd.grad(out, leaves, grad), plain, exact, strict=True)):
                if e.numel() > 100:
                    assert rms(o - e) <= 3 * rms(p - e), f"{backend}, recompute={recompute}: gradient {i}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_psnr_does_not_move(backend):
    """At a trained model's usual output, PSNR against a target 30 dB away moves by less than 0.005 dB."""
    problem = Problem(channels=16, hidden=(64, 64), queries=1)
    feat, _, _, weights, biases = problem.arguments
    size = 31, 40
    expected = oracle.render(
        feat, size, (0, 0, *size), feat.new_tensor([[2 / 31, 2 / 40]] * 2), weights, biases, problem.switches
    )
    noise = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    target = expected + 10 ** (-30 / 20) * noise

    def psnr(image):
        return -10 * (image.double() - target).square().mean().log10()

    ours = functional.liif_render(feat, size, weights, biases, backend=backend)
    assert abs(psnr(ours) - psnr(expected)) < 0.005
