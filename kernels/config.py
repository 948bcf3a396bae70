"""How each kernel is cut into tiles: a pure function of (shape, dtype, architecture), from a checked-in table.

No autotuning: LIIF makes every size new, and a search would stall each call. A form depends on widths, dtype and
architecture only, never on how many queries there are, so that a query's bits do not depend on the call it is part of.
benchmarks/compile_report.py compiles every form below for every architecture; nothing here imports Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

ARCHITECTURES = (80, 89, 90, 100, 120)  # compute capability times ten; another one takes the next lower entry
PRECISIONS = ("half", "tf32", "tf32x3")  # float16 and bfloat16 operands; float32 rounded once; three products
WIDEST_HIDDEN, WIDEST_OUT = 256, 64


class Form(NamedTuple):
    """A tile of the network: rows (one a query and corner) and column blocks of the hidden layers."""

    rows: int
    block: int
    blocks: int
    warps: int
    stages: int

    @property
    def padded(self) -> int:
        """The hidden width that the kernel computes with."""
        return self.block * self.blocks


class ProjectionForm(NamedTuple):
    """A tile of the projection: rows (latents), columns, and channels of a step."""

    rows: int
    block: int
    depth: int
    warps: int
    stages: int


def widest(weights: Sequence[Tensor]) -> int:
    """Return the width of the widest hidden layer."""
    return max(weight.shape[0] for weight in weights[:-1])


def network_form(kernel: str, width: int, precision: str, arch: int) -> Form:
    """Return the form of a network kernel: "forward", "save" (keeping activations), "mlp" or "backward"."""
    narrow = Form(64, max(16, 1 << (width - 1).bit_length()), 1, 4, 2)
    if width <= (64 if precision == "half" else 32):
        return narrow
    blocks = -(-width // 64)
    if precision == "half":
        if arch // 10 in (9, 10):
            return Form(64, 64, blocks, 4 if kernel == "forward" and arch // 10 == 9 else 8, 2)
        return Form(64 if kernel == "forward" and arch < 100 else 32, 64, blocks, 4, 2)
    if arch // 10 == 9:
        return Form(64, 32, -(-width // 32), 8, 2)
    return Form(32, 64, blocks, 8, 2)


def projection_form(outs: int, precision: str, arch: int) -> ProjectionForm:
    """Return the form of the projection to `outs` columns."""
    return ProjectionForm(64, 64, 32, 4, 2)
