"""Operators whose kernels run as compiled PTX, against the formula: a process of test_operators.py.

    python -m tests.ptx.cases DTYPE

Prints a line of JSON: for each operator [name, error, error that plain PyTorch makes], and the kernels executed.
"""

import json
import sys

import torch

from liif_fast import functional
from tests.ops.support import Problem
from tests.ptx import execute


def rms(tensor):
    return tensor.double().square().mean().sqrt().item()


def forward(dtype):
    """Yield (name, ours, plain, exact) of every operator's output."""
    problem, double = (Problem(shape=(4, 5), queries=9).to(kind) for kind in (dtype, torch.float64))
    runs = (("triton", problem), ("torch", problem), ("reference", double))
    yield "decode", *(functional.liif_decode(*p.arguments, backend=backend) for backend, p in runs)


def main():
    execute.install()
    errors = [
        [name, rms(ours.double() - exact), rms(plain.double() - exact)]
        for name, ours, plain, exact in forward(getattr(torch, sys.argv[1]))
    ]
    print(json.dumps({"errors": errors, "executed": execute.Executor.executed}))


if __name__ == "__main__":
    main()
