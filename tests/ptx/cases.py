"""Compare operators whose kernels run as compiled PTX with the formula, for test_operators.py.

    python -m tests.ptx.cases ARCHITECTURE PRECISION (atomic | sorted) (keep | recompute) HIDDEN ...

It prints a line of JSON: for each tensor [name, error, plain PyTorch's error, size]; whether the corner plan is equal
bit for bit; the number of instructions executed of each kernel.
"""

import json
import sys

import torch

from liif_fast import functional
from liif_fast.qualification import checks
from liif_fast.qualification.problems import OPS, Network, Unit
from tests.ops.support import Problem, same_bits
from tests.ops.test_fourier import Call
from tests.ptx import execute


def rms(tensor):
    return tensor.double().square().mean().sqrt().item()


def compared(name, problems, run):
    """Yield [name, ours, plain, size] of the output and of every gradient; problems are ours, plain, exact."""
    outs = [run(problem, backend) for problem, backend in zip(problems, ("triton", "torch", "reference"), strict=True)]
    weight = torch.randn(outs[2].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradients = []
    for problem, out in zip(problems, outs, strict=True):
        grads = torch.autograd.grad(out, problem.leaves, weight.to(out.dtype), allow_unused=True)
        gradients.append([out, *grads])
    names = ["output", "feat", *(["phase"] if hasattr(problem, "phase") else [])]
    names += [*(f"{kind}[{i}]" for kind in ("weights", "biases") for i in range(len(problem.weights)))]
    for part, ours, plain, exact in zip(names, *gradients, strict=True):
        if exact is not None and exact.numel() and rms(exact):
            yield [f"{name}: {part}", rms(ours - exact), rms(plain - exact), rms(exact)]


def main():
    architecture, precision, order, keep, *hidden = sys.argv[1:]
    tf32, recompute = precision == "tf32", keep == "recompute"
    dtype = torch.float32 if tf32 else getattr(torch, precision)
    execute.install(int(architecture), tf32)
    torch.use_deterministic_algorithms(order == "sorted")
    fill_with_nan()

    def problems():
        # The same rounded numbers for all three, so that all errors come from the computation.
        made = [Problem(shape=(4, 5), queries=9, hidden=tuple(map(int, hidden))).to(dtype) for _ in range(3)]
        made[2].to(torch.float64)
        return [each.requires_grad() for each in made]

    def decode(p, backend):
        return functional.liif_decode(*p.arguments, backend=backend, recompute=recompute)

    def render(p, backend):
        options = {"region": (1, 2, 5, 6), "backend": backend, "recompute": recompute}
        return functional.liif_render(p.feat, (7, 9), p.weights, p.biases, **options)

    def mlp(p, backend):
        options = {"backend": backend, "recompute": recompute}
        return functional.fused_mlp(rows.to(p.feat.dtype), p.weights, p.biases, **options)

    def gather(p, backend):
        return functional.gather_corners(*p.arguments[:3], backend=backend)[0]

    def waves():
        made = [Call(72, (*map(int, hidden), 3), (4, 5), queries=9).to(dtype) for _ in range(3)]
        made[2].to(torch.float64)
        return [each.requires_grad() for each in made]

    def fourier(p, backend):
        return p.run(backend, recompute=recompute)

    ours, *_ = made = problems()
    rows = torch.randn(37, ours.weights[0].shape[1], generator=torch.Generator().manual_seed(5)).to(dtype)
    errors = [
        *compared("decode", made, decode),
        *compared("render", made, render),
        *compared("fused_mlp", made, mlp),
        *compared("gather_corners", made, gather),
        *compared("fourier_decode", waves(), fourier),
    ]
    bits = [*plan_bits(ours, (4, 5), ours.coord), *plan_bits(ours, (3, 7), hostile((3, 7)))]
    print(json.dumps({"errors": errors, "plan": all(bits), "executed": execute.Executor.executed}))


def integers():
    """Sum small integers as `liif-fast qualify` does, which raises where they are not exact.

    Arguments: architecture, precision, hidden layers. It prints in JSON the instructions executed of each kernel.
    """
    architecture, precision, *hidden = sys.argv[1:]
    execute.install(int(architecture), precision == "tf32")
    fill_with_nan()
    network = Network(tuple(map(int, hidden)), 3, 5)
    for op in OPS:
        checks.integers(Unit("triton", op, precision, False), checks.CPU, network, 0)
    print(json.dumps(execute.Executor.executed))


def hostile(shape):
    """Return coordinates [2, Q, 2] on centres and borders of pixels, beside them, beyond the map, and NaN."""
    axes = []
    for n in shape:
        places = torch.arange(2 * n + 1) / n - 1
        nearby = torch.cat([places, places.nextafter(torch.tensor(9.0)), places.nextafter(torch.tensor(-9.0))])
        axes.append(torch.cat([nearby, torch.tensor([-1.5, 1.5, 1e30, float("nan"), float("inf")])]))
    count = max(axis.numel() for axis in axes)
    rows, columns = (axis[torch.arange(count) % axis.numel()] for axis in axes)
    return torch.stack([torch.stack([rows, columns], -1), torch.stack([rows, columns.roll(3)], -1)])


def plan_bits(problem, shape, coord):
    """Yield whether the network's inputs and the weights equal the reference's bit for bit."""
    feat = torch.randn(2, 5, *shape, generator=torch.Generator().manual_seed(7)).to(problem.feat.dtype)
    cell = torch.full_like(coord, 0.3)
    plans = [functional.gather_corners(feat, coord, cell, backend=backend) for backend in ("triton", "reference")]
    yield from (same_bits(a, b) for a, b in zip(*plans, strict=True))


def fill_with_nan():
    """Let uninitialised tensors hold NaN, so that an element that no kernel writes shows in a result."""
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def filled(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    torch.empty = lambda *shape, **options: filled(empty(*shape, **options))
    torch.Tensor.new_empty = lambda self, *shape, **options: filled(new_empty(self, *shape, **options))


if __name__ == "__main__":
    main()
