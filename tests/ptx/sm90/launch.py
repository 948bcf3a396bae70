"""Execute decode_sm90 on CPU tensors, as nvcc compiles it: the host's part (csrc/cuda/operators.h) and launches."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from ctypes import c_float, c_int, c_int64, c_uint64
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from csrc.build import NVCC_FLAGS
from liif_fast.ops.sm90 import PRODUCT_BYTES, TABLE_BYTES

from ..memory import Global
from ..parser import Program, parse, without_scopes
from .cluster import Cluster

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "csrc" / "cuda" / "decode_sm90.cu"
ENTRY = re.compile(r"\.entry (\w*decode_sm90INS0_\d(Half|Bfloat)ELb([01])ELi(\d)\w*)\(")
SYMBOL = re.compile(r"\.extern \.shared .* (\w+)\[\]")
FAR = 1 << 35  # between the images of a tensor: no offset of 32 bits leads from one to the next


class Kernel(NamedTuple):
    """Hold the template arguments of decode_sm90."""

    type: str  # Half or Bfloat
    ensemble: bool
    cluster: int


def missing() -> str:
    """Return why nothing can be compiled, "" if it can."""
    return "" if shutil.which("nvcc") else "nvcc is not on the path"


@functools.cache
def compiled(*macros: str) -> dict[Kernel, Program]:
    """Return nvcc's PTX of every kernel, of the usual build or another."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "decode_sm90.ptx"
        flags = [*NVCC_FLAGS, "-DLIIF_KERNEL_ONLY", *(f"-D{macro}" for macro in macros)]
        command = ["nvcc", *flags, "-ptx", str(SOURCE), "-o", str(target)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        text = target.read_text()
    text = text.replace(SYMBOL.search(text)[1], "%shared").replace("liif_hangs", "%hangs")
    parts = ENTRY.split(without_scopes(text))[1:]
    found = {}
    for name, kind, ensemble, cluster, body in zip(*(parts[i::5] for i in range(5)), strict=True):
        program = parse(f".entry {name}({body}".replace(f"{name}_param_", "%param_"))
        found[Kernel(kind, ensemble == "1", int(cluster))] = program._replace(parameters=[])
    return found


class Centres(ctypes.Structure):
    _fields_ = [("step", c_float), ("first", c_float)]

    @classmethod
    def of(cls, n: int) -> Centres:
        return cls(2.0 / n, -1.0 + 1.0 / n)


class Axis(ctypes.Structure):
    _fields_ = [("n", c_int), ("size", c_float), ("shift", c_float * 2), ("centres", Centres)]

    @classmethod
    def of(cls, n: int, ensemble: bool) -> Axis:
        shift = (-1 / n + 1e-6, 1 / n + 1e-6) if ensemble else (0, 0)
        return cls(n, n, (c_float * 2)(*shift), Centres.of(n))


class Problem(ctypes.Structure):
    """Mirror the struct of csrc/cuda/thread.h."""

    _fields_ = [
        ("rows", Axis), ("columns", Axis), ("p", c_uint64),
        *((name, c_int) for name in ("top", "left", "height", "width")),
        ("coord", c_uint64), ("coord_steps", c_int64 * 3), ("grid_rows", Centres), ("grid_columns", Centres),
        *((name, c_int) for name in ("grid_top", "grid_left", "grid_width")),
        ("cell", c_uint64), ("cell_steps", c_int64 * 3), ("queries", c_int64), ("total", c_int64),
        ("out", c_uint64), ("out_steps", c_int64 * 3), ("out_dim", c_int), ("products", c_int), ("packed", c_uint64),
    ]  # fmt: skip


STAGES = int(re.search(r"\bkStages = (\d+);", (SOURCE.parent / "layout.h").read_text())[1])
STAGE_BYTES = 256 * 128 + 256 * 4  # a slice and a bias
SHARED_BYTES = STAGES * (STAGE_BYTES + 16) + -(-TABLE_BYTES // 16) * 16


class Executor:
    """Stand in for the operators decode_sm90 and render_sm90."""

    change: Callable[[Program], Program] = staticmethod(lambda program: program)
    macros: tuple[str, ...] = ()
    grid = 1  # clusters
    seed: ClassVar[object] = 0
    steps: ClassVar[int] = 0  # instructions of the last cluster
    truncate = int(os.environ.get("LIIF_FAST_TEST_PTX_TRUNCATE", "0"))

    def __init__(self) -> None:
        self.memory, self.problem = Global(), Problem()

    def add(self, tensor: Tensor) -> int:
        return self.memory.add(tensor.contiguous().view(-1).view(torch.uint8).numpy())

    def apart(self, tensor: Tensor) -> tuple[int, int]:
        """Place the images of a tensor far apart; return the address of the first, and the step to the next."""
        raw = [each.contiguous().view(-1).view(torch.uint8).numpy() for each in tensor]
        starts = [self.memory.add(each, FAR if i else 0) for i, each in enumerate(raw)]
        steps = {int(step) // tensor.element_size() for step in np.diff(starts)}
        assert len(steps) <= 1, "two images, or all of a size that keeps them equally far apart"
        return starts[0], steps.pop() if steps else 0

    def start(self, p: Tensor, cell: Tensor | None, packed: Tensor, out_dim: int, ensemble: bool,
              place: Sequence[int]) -> None:  # fmt: skip
        problem = self.problem
        problem.rows, problem.columns = (Axis.of(n, ensemble) for n in place[:2])
        problem.p, problem.packed = self.add(p), self.add(packed)
        problem.top, problem.left, problem.height, problem.width = *place[2:], *p.shape[1:3]
        if cell is not None:
            problem.cell, step = self.apart(cell)
            problem.cell_steps[:] = step, 2 if cell.ndim == 3 else 0, 1
        problem.out_dim, problem.products = out_dim, (packed.numel() - TABLE_BYTES) // PRODUCT_BYTES

    def launch(self, kernel: Kernel, out: Tensor) -> Tensor:
        """Execute into `out` [B, ...], whose elements hold NaN before."""
        problem, size = self.problem, kernel.cluster
        out.fill_(float("nan"))
        problem.out, problem.out_steps[0] = self.apart(out)
        tiles = -(-problem.total // ((32 if kernel.ensemble else 128) * size)) * size
        parameters = np.frombuffer(bytes(problem) + int(tiles).to_bytes(8, "little"), np.uint8)
        program, grid = self.change(compiled(*self.macros)[kernel]), min(self.grid * size, tiles)
        where = size, SHARED_BYTES, self.memory
        for first in range(0, grid, size):
            Executor.steps = Cluster(program, parameters, first, grid, *where, self.seed, self.truncate).run()
        for image in range(out.shape[0]):
            address = problem.out + image * problem.out_steps[0] * 4
            raw = self.memory.read_back(address, out[image].numel() * 4).view(np.float32)
            out[image] = torch.from_numpy(raw).view(out[image].shape)
        return out


def decode(p: Tensor, coord: Tensor, cell: Tensor | None, packed: Tensor, out_dim: int, ensemble: bool,
           cluster: int) -> Tensor:  # fmt: skip
    """Stand in for the operator decode_sm90."""
    executor = Executor()
    problem = executor.problem
    executor.start(p, cell, packed, out_dim, ensemble, (*p.shape[1:3], 0, 0))
    problem.coord, step = executor.apart(coord)
    problem.coord_steps[:] = step, 2, 1
    problem.queries, problem.total = coord.shape[1], coord.shape[0] * coord.shape[1]
    problem.out_steps[1:] = out_dim, 1
    return executor.launch(kernel_of(p, ensemble, cluster), torch.empty(*coord.shape[:2], out_dim))


def render(p: Tensor, cell: Tensor | None, packed: Tensor, out_dim: int, ensemble: bool, cluster: int,
           grid: Sequence[int]) -> Tensor:  # fmt: skip
    """Stand in for the operator render_sm90."""
    executor = Executor()
    problem = executor.problem
    executor.start(p, cell, packed, out_dim, ensemble, grid[:4])
    problem.grid_rows, problem.grid_columns = Centres.of(grid[4]), Centres.of(grid[5])
    problem.grid_top, problem.grid_left, height, problem.grid_width = grid[6:]
    problem.queries = height * problem.grid_width
    problem.total = p.shape[0] * problem.queries
    problem.out_steps[1:] = 1, problem.queries
    return executor.launch(
        kernel_of(p, ensemble, cluster), torch.empty(p.shape[0], out_dim, height, problem.grid_width)
    )


def kernel_of(p: Tensor, ensemble: bool, cluster: int) -> Kernel:
    return Kernel("Bfloat" if p.dtype == torch.bfloat16 else "Half", ensemble, cluster)
