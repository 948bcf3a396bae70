"""Plant each fault of TABLE into a compiled kernel, execute it, and print how it is found: a process of test_teeth.py.

A line of JSON: {name: what the machine says, "other results" or null where it is not found}.
"""

from __future__ import annotations

import json

import torch

from liif_fast import functional
from tests.ops.support import Problem, same_bits
from tests.ptx import machine
from tests.ptx.cases import hostile
from tests.ptx.execute import Executor, install
from tests.ptx.faults import (
    contracted,
    cut_to_32_bits,
    everywhere,
    guarded,
    moved,
    operand,
    plus,
    positions,
    removed,
    renamed,
    swapped,
    unguarded,
)

NOTHING = "{0f00000000,0f00000000,0f00000000,0f00000000}"
LAX = operand("cp.async.wait_group", 0, plus(1))
# Every barrier is taken out in turn, too.
TABLE = {
    "copy: the first wait is lax": ("decode", LAX),
    "copy: the last wait is lax": ("decode", operand("cp.async.wait_group", 0, plus(1), -1)),
    "copy: no first wait": ("decode", removed("cp.async.wait_group")),
    "copy: no last wait": ("decode", removed("cp.async.wait_group", -1)),
    "copy: no commit": ("decode", removed("cp.async.commit_group", -1)),
    "copy: never made": ("decode", removed("cp.async.cg")),
    "copy: half as long": ("decode", operand("cp.async.cg", 3, lambda _: "8")),
    "copy: from one row on": ("decode", operand("cp.async.cg", 1, moved(256))),
    "copy: to the place of another": ("decode", operand("cp.async.cg", 0, moved(64))),
    "copy: of a projection, the wait is lax": ("project", LAX),
    "barrier: of a warp only": ("decode", renamed("bar.sync", "bar.warp.sync", 3)),
    "barrier: reached by a part": ("decode", guarded("bar.sync")),
    "address: cut to 32 bits, load": ("decode", cut_to_32_bits("ld.global", 1)),
    "address: cut to 32 bits, store": ("decode", cut_to_32_bits("st.global", 0)),
    "address: cut to 32 bits, copy": ("decode", cut_to_32_bits("cp.async.cg", 1)),
    "address: cut to 32 bits, atomic": ("atomic", cut_to_32_bits("atom", 1)),
    "address: beside its alignment": ("decode", operand("ld.global.v4", 1, moved(4))),
    "address: beyond the tensor": ("decode", operand("ld.global.v4", 1, moved(4096))),
    "address: one element on": ("decode", operand("st.global", 0, moved(4))),
    "mask: a load without": ("decode", everywhere(unguarded, "ld.global.b32")),
    "mask: a store without": ("decode", unguarded("st.global", -1)),
    "mask: off by one": ("decode", everywhere(renamed, "setp.lt.s64", "setp.le.s64")),
    "mask: off by one, every row of a gradient": ("chain", renamed("setp.lt.s32", "setp.le.s32")),
    "shared: another swizzle": ("decode", operand("xor.b32", 2, lambda _: "16", 12)),
    "shared: written one line on": ("decode", operand("st.shared.v4.b16", 0, moved(16))),
    "shared: read beyond the end": ("decode", operand("ld.shared", 1, moved(1 << 16))),
    "shared: never written": ("chain", removed("st.shared.v4.b16", -1)),
    "matrix: not transposed": (
        "decode", renamed("ldmatrix.sync.aligned.m8n8.x4.trans", "ldmatrix.sync.aligned.m8n8.x4.shared.b16")
    ),
    "matrix: two fragments exchanged": ("decode", swapped("mma", 1)),
    "matrix: nothing is added up": ("decode", operand("mma", 3, lambda _: NOTHING, -2)),
    "matrix: one product is missing": ("decode", removed("mma")),
    "matrix: by a part of a warp": ("decode", guarded("mma")),
    "shuffle: another lane": ("decode", operand("shfl", 2, lambda lane: str(int(lane, 0) ^ 16))),
    "shuffle: by a part of a warp": ("decode", guarded("shfl")),
    "branch: the block divides": ("decode", guarded("bra")),
    "relu: NaN is lost": ("decode", renamed("max.NaN.f32", "max.f32")),
    "relu: of the gradient, other side": ("chain", renamed("setp.le.f16", "setp.ge.f16")),
    "atomic: lost": ("atomic", removed("atom")),
    "plan: contracted": ("gather", contracted),
    "register: never written": ("gather", removed("add.rn.f32", 5)),
    "gather: a neighbour's tap": ("gather", operand("ld.global", 1, moved(4), -1)),
    "sum: one row on": ("segment", operand("ld.global.b64", 1, moved(8), -1)),
}  # fmt: skip


class Recorded:
    """The launches of a training step, to be executed again."""

    def __init__(self) -> None:
        self.calls, launch = {}, Executor.launch

        def record(executor, grid, *args, **named):
            # The first launch of a kernel is the forward's.
            self.calls.setdefault(
                executor.kernel.fn.__name__.removesuffix("_kernel"), (executor, grid, copies(args), named)
            )
            launch(executor, grid, *args, **named)

        Executor.launch = record
        problem = Problem(shape=(4, 5), queries=9, hidden=(100, 70)).to(torch.float16).requires_grad()
        with torch.no_grad():
            problem.feat[0, 0, 1, 1] = float("nan")
        functional.liif_decode(*problem.arguments, backend="triton").sum().backward()
        feat, coord = torch.randn(2, 5, 3, 7, requires_grad=True), hostile((3, 7))
        functional.gather_corners(feat, coord, torch.full_like(coord, 0.3), backend="triton")[0].sum().backward()
        Executor.launch = launch

    def run(self, name, change=lambda program: program):
        """Return the tensors of a launch behind it."""
        executor, grid, args, named = self.calls[name]
        args = copies(args)
        Executor.change = staticmethod(lambda _, program: change(program))
        executor.launch(grid, *args, **named)
        return [each for each in args if isinstance(each, torch.Tensor)]

    def found(self, name, change):
        """Return how a fault is found; None if it is not."""
        try:
            results = self.run(name, change)
        except machine.Fault as fault:
            return str(fault).split(", at")[0]
        same = all(map(same_bits, results, self.results[name]))
        return None if same else "other results"

    def barriers(self, name):
        """How many barriers a kernel has."""
        count = []
        self.run(name, lambda program: count.append(len(positions(program, "bar.sync"))) or program)
        return count[0]


def copies(values):
    """Copy the tensors among values, uninitialised memory of the first run as it was."""
    return [each.detach().clone() if isinstance(each, torch.Tensor) else each for each in values]


def main():
    install()
    machine.LIMIT = 20_000  # a planted fault may be a loop that does not end
    recorded = Recorded()
    recorded.results = {name: recorded.run(name) for name in recorded.calls}
    table = dict(TABLE)
    for name in ("decode", "chain", "project"):
        for number in range(recorded.barriers(name)):
            table[f"barrier: {name} without number {number}"] = name, removed("bar.sync", number)
    print(json.dumps({title: recorded.found(*fault) for title, fault in table.items()}))


if __name__ == "__main__":
    main()
