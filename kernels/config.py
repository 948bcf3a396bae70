"""How each kernel is cut into tiles: a pure function of (shape, dtype, architecture, version of Triton).

No autotuning: LIIF makes every size new, and a search would stall each call. A form depends on widths, dtype,
architecture and compiler only, never on how many queries there are, so that a query's bits do not depend on the call it
is part of. The table of forms, forms.py, is written by benchmarks/compile_report.py; nothing here imports Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .forms import FORMS

ARCHITECTURES = (80, 89, 90, 100, 120)  # compute capability times ten
# Decode and render; the same keeping activations; fused_mlp; the same keeping them; making nothing but them; gradients.
KERNELS = ("forward", "save", "mlp", "mlp_save", "recompute", "backward")
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


def entry(arch: int, version: tuple[int, int]) -> tuple[int, int, int]:
    """Return the table's (major, minor, architecture) for an architecture and a version of Triton.

    One that has no entry takes the next lower one; sm_86 and sm_87 that of sm_89, which has as little shared memory.
    """
    arch = 89 if 80 < arch < 90 else max((a for a in ARCHITECTURES if a <= arch), default=ARCHITECTURES[0])
    versions = sorted({key[:2] for key in FORMS})
    return *max((v for v in versions if v <= version), default=versions[0]), arch


def network_form(kernel: str, width: int, precision: str, arch: int, version: tuple[int, int]) -> Form:
    """Return the form of a network kernel, one of KERNELS, for its widest hidden layer."""
    if width <= (64 if precision == "half" else 32):
        block = 16 if precision == "tf32x3" else max(16, 1 << (width - 1).bit_length())
        return Form(64, block, -(-width // block), 4, 2)
    rows, block, warps, stages = FORMS[(*entry(arch, version), precision)][KERNELS.index(kernel)]
    return Form(rows, block, -(-width // block), warps, stages)


def projection_form(outs: int, precision: str, arch: int) -> ProjectionForm:
    """Return the form of the projection to `outs` columns."""
    strict = precision == "tf32x3"
    warps = 8 if strict and arch >= 120 else 4  # 4 spill with Triton 3.9
    return ProjectionForm(64, 64, 16 if strict else 32, warps, 2)
