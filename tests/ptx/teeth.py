"""Plant each fault of a table into a compiled kernel, execute it, and print how it is found.

    python -m tests.ptx.teeth ARCHITECTURE

test_teeth.py runs it. Every barrier and fence of some kernels is also removed in turn, and some barriers once more
without the checks of shared memory, so that only an order of warps finds it. The output is a line of JSON: {name: the
machine's message, "other results", or null if the fault is not found}.
"""

from __future__ import annotations

import itertools
import json
import sys

import torch

from liif_fast import functional
from tests.ops.support import Problem, same_bits
from tests.ops.test_attend import Attention
from tests.ops.test_fourier import Call
from tests.ptx import blocks
from tests.ptx.cases import hostile
from tests.ptx.execute import Executor, install
from tests.ptx.faults import positions, removed
from tests.ptx.memory import Fault, Shared
from tests.ptx.planted import HIDDEN, TABLES

EACH = {"barrier": "bar.sync", "fence": "fence.proxy"}
PARTS, ORDERS = 8, 4  # into which warps are divided, and how often, where an order has to find a fault


class Recorded:
    """Record the launches of a training step, to execute them again."""

    def __init__(self) -> None:
        self.calls, launch = {}, Executor.launch

        def record(executor, grid, *args, **named):
            # The first launch of a kernel is the forward's. The attention's backward pass launches its kernel again.
            name = executor.kernel.fn.__name__.removesuffix("_kernel")
            name += "_keep" if name == "attend" and named["KEEP"] else ""
            self.calls.setdefault(name, (executor, grid, copies(args), named))
            launch(executor, grid, *args, **named)

        Executor.launch = record
        problem = Problem(shape=(4, 5), queries=9, hidden=(100, 70)).to(torch.float16).requires_grad()
        with torch.no_grad():
            problem.feat[0, 0, 1, 1] = float("nan")
        functional.liif_decode(*problem.arguments, backend="triton").sum().backward()
        waves = Call(72, (70, 3), (4, 5), queries=9).to(torch.float16).requires_grad()
        waves.run("triton").sum().backward()
        feat, coord = torch.randn(2, 5, 3, 7, requires_grad=True), hostile((3, 7))
        functional.gather_corners(feat, coord, torch.full_like(coord, 0.3), backend="triton")[0].sum().backward()
        Attention(16, 1, 4, 16, shape=(3, 4), queries=9).gradients("triton")
        del self.calls["attend_keep"]  # at this width no warp reads what another keeps
        Attention(32, 1, 4, 32, shape=(3, 4), queries=9).gradients("triton")
        Executor.launch = launch

    def run(self, name, change=lambda program: program):
        """Execute a launch, and return its tensors."""
        executor, grid, args, named = self.calls[name]
        args = copies(args)
        Executor.change = staticmethod(lambda _, program: change(program))
        executor.launch(grid, *args, **named)
        return [each for each in args if isinstance(each, torch.Tensor)]

    def found(self, name, change):
        """Return how a fault is found; None if it is not."""
        try:
            results = self.run(name, change)
        except Fault as fault:
            return str(fault).split(", at")[0]
        same = all(map(same_bits, results, self.results[name]))
        return None if same else "other results"

    def found_by_order(self, name, change):
        """Return how a fault is found without checks of shared memory, by warps in one of several orders.

        None if it is not found, or if it shows even when all warps advance together.
        """
        parts, seed, Shared.checked = Executor.parts, Executor.seed, False
        try:
            Executor.parts = 1
            if self.found(name, change):
                return None
            Executor.parts = PARTS
            for Executor.seed in range(ORDERS):
                if how := self.found(name, change):
                    return f"{how} in order {Executor.seed}"
            return None
        finally:
            Executor.parts, Executor.seed, Shared.checked = parts, seed, True

    def count(self, name, opcode):
        """Return the number of instructions of an opcode in a kernel."""
        count = []
        self.run(name, lambda program: count.append(len(positions(program, opcode))) or program)
        return count[0]


def copies(values):
    """Copy the tensors among values, uninitialised memory of the first run as it was."""
    return [each.detach().clone() if isinstance(each, torch.Tensor) else each for each in values]


def main():
    architecture = int(sys.argv[1])
    install(architecture)
    blocks.LIMIT = 60_000  # a planted fault may cause an endless loop
    recorded = Recorded()
    recorded.results = {name: recorded.run(name) for name in recorded.calls}
    table = dict(TABLES[architecture])
    for name, (kind, opcode) in itertools.product(
        ("decode", "chain", "project", "fourier", "waves_back", "attend", "attend_keep", "attend_back"), EACH.items()
    ):
        for number in range(recorded.count(name, opcode)):
            table[f"{kind}: {name} without number {number}"] = name, removed(opcode, number)
    how = {title: recorded.found(*fault) for title, fault in table.items()}
    for name, number in HIDDEN[architecture]:
        how[f"order: {name} without barrier {number}"] = recorded.found_by_order(name, removed("bar.sync", number))
    print(json.dumps(how))


if __name__ == "__main__":
    main()
