"""Execute the kernels' launches on CPU tensors, as the PTX that Triton makes of them.

The process must not have imported Triton for its interpreter. What a launch passes, its form, and what is
compiled are the package's own (benchmarks/compile_report.py).
"""

from __future__ import annotations

import functools
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from benchmarks import compile_report
from liif_fast.backends import triton as backend
from liif_fast.kernels import host

from . import hopper
from .blocks import Blocks
from .memory import Global
from .parser import Program, parse

BLOCKS: dict[int, type[Blocks]] = {80: Blocks, 90: hopper.Blocks}
TOGETHER = 64  # blocks that run at a time
# Where several warps hold copies of a row of sums, each reads the old value, and one adds to it. The others may
# read too late, but do not use the value.
COPIED = ("segment_kernel",)
TYPES = compile_report.TYPES


class Binary:
    """Hold a compiled kernel: its program and the shared memory that a block takes."""

    def __init__(self, launch: compile_report.Launch, architecture: int) -> None:
        kernel = compile_report.compiled(launch, architecture)
        self.program, self.shared = parse(kernel.asm["ptx"]), kernel.metadata.shared


class Executor:
    """Stand in for a kernel and execute its launches."""

    binaries: ClassVar[dict[str, Binary]] = {}
    executed: ClassVar[Counter[str]] = Counter()  # instructions, by kernel
    sectors: ClassVar[Counter[str] | None] = None  # of memory that warps' accesses touch, by kernel and kind, if wanted
    change: Callable[[str, Program], Program] = staticmethod(lambda name, program: program)
    truncate = 0  # see matrix.multiply
    seed: object = 0  # of the order of warps and blocks
    parts = 2  # in which warps advance; see blocks.py
    architecture = 80

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self.launch, grid)

    def binary(self, arguments: dict[str, Any], options: dict[str, Any]) -> Binary:
        plain = compile_report.without_tensors(self.kernel, arguments)
        launch = compile_report.Launch(self.kernel.fn.__name__, "", "", self.kernel, plain, options)
        key = str((launch.name, plain, options))
        if key not in self.binaries:
            self.binaries[key] = Binary(launch, self.architecture)
        return self.binaries[key]

    def launch(self, grid: tuple[int, ...], *args: Any, **named: Any) -> None:
        names, name = self.kernel.arg_names, self.kernel.fn.__name__
        arguments = {**dict(zip(names, args, strict=False)), **{k: v for k, v in named.items() if k in names}}
        options = {k: v for k, v in named.items() if k not in names}
        binary = self.binary(arguments, options)
        memory, storages, values = Global(), {}, []
        memory.checked = name not in COPIED
        memory.sectors = None if self.sectors is None else Counter()
        for parameter in self.kernel.params:
            value = arguments[parameter.name]
            if parameter.is_constexpr:
                continue
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                raw = torch.empty(0, dtype=torch.uint8).set_(storage).detach().numpy()
                if storage.data_ptr() not in storages or not raw.size:
                    storages[storage.data_ptr()] = memory.add(raw), raw
                value = storages[storage.data_ptr()][0] + value.storage_offset() * value.element_size()
            values.append(value)
        program, kind = self.change(name, binary.program), BLOCKS[self.architecture]
        values += [0] * (len(program.parameters) - len(values))  # Triton's own: scratch memory, not used
        chance = random.Random(f"{self.seed} {name} {self.executed[name]}")
        places = list(itertools.product(*map(range, grid)))
        chance.shuffle(places)
        parts = self.parts if binary.shared else 1
        for start in range(0, len(places), TOGETHER):
            blocks = kind(program, values, places[start : start + TOGETHER], 32 * options["num_warps"], binary.shared,
                          memory, self.truncate, parts, chance.random())  # fmt: skip
            self.executed[name] += blocks.run()
        if self.sectors is not None:
            self.sectors.update({f"{name} {kind}": count for kind, count in memory.sectors.items()})
        for address, raw in storages.values():
            raw[:] = memory.read_back(address, raw.size)


def install(architecture: int, tf32: bool = False) -> None:
    """Put executors in the place of the kernels, as on a GPU of an architecture."""
    Executor.architecture = architecture
    Executor.truncate = int(os.environ.get("LIIF_FAST_TEST_PTX_TRUNCATE", "0"))
    host.architecture, host.tf32_allowed = lambda device: architecture, lambda: tf32
    backend._why_not_on = lambda kind, index: ""
    backend.run_on_cpu()
    for module in compile_report.MODULES:
        for name, value in list(vars(module).items()):
            if name.endswith("_kernel") and not isinstance(value, Executor):
                setattr(module, name, Executor(value))
