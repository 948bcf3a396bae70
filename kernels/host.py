"""Provide the host's part of all kernels: the forms of tiles, the precision of products, the layout of parameters.

There is no autotuning, because with LIIF every size is new and a search would stall each call. A form depends only on
widths, dtype, architecture and version of Triton. It never depends on the number of queries, so that a query's bits do
not depend on its call. benchmarks/search_forms.py writes the table of forms, forms.py.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.target_info import current_target

from liif_fast.call import tf32_allowed
from liif_fast.frozen import pack_once

from . import versions
from .forms import FORMS

logger = logging.getLogger("liif_fast")

ARCHITECTURES = (80, 89, 90, 100, 120)  # compute capability times ten
# Decode and render without and with kept activations; fused_mlp without and with; only the activations; the gradients.
KERNELS = ("forward", "save", "mlp", "mlp_save", "recompute", "backward")
PRECISIONS = ("half", "tf32", "tf32x3")  # float16 and bfloat16 operands; float32 rounded once; three products
FEW = tl.constexpr(4)  # outputs whose gradient goes back by multiply-adds
EPSILON = 1e-6  # as liif_fast.coord.EPSILON
_major, _minor, *_ = triton.__version__.split(".")
TRITON = int(_major), int(_minor)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WIDEN_BFLOAT16 = tl.constexpr(INTERPRETED)  # because Triton's interpreter multiplies bfloat16 as integers


class Form(NamedTuple):
    """Describe a tile of the network: rows, one per (query, corner), and column blocks of the hidden layers."""

    rows: int
    block: int
    blocks: int
    warps: int
    stages: int

    @property
    def padded(self) -> int:
        """Return the hidden width that the kernel computes with."""
        return self.block * self.blocks


class ProjectionForm(NamedTuple):
    """Describe a tile of the projection: rows (latents), columns, and channels per step."""

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

    A pair without an entry takes the next lower one. sm_86 and sm_87 take sm_89's: their shared memory is as small.
    """
    arch = 89 if 80 < arch < 90 else max((a for a in ARCHITECTURES if a <= arch), default=ARCHITECTURES[0])
    known = sorted({key[:2] for key in FORMS})
    return *max((v for v in known if v <= version), default=known[0]), arch


def network_form(kernel: str, width: int, precision: str, arch: int, version: tuple[int, int]) -> Form:
    """Return the form of a network kernel, one of KERNELS, for its widest hidden layer."""
    if width <= (64 if precision == "half" else 32):
        block = 16 if precision == "tf32x3" else max(16, 1 << (width - 1).bit_length())
        return Form(64, block, -(-width // block), 4, 2)
    rows, block, warps, stages = FORMS[(*entry(arch, version), precision)][KERNELS.index(kernel)]
    return Form(rows, block, -(-width // block), warps, stages)


def axis(n: int) -> tuple[int, float, float, float, float]:
    """Return n, step and origin of the centres, and the two shifts; all are summed in double and rounded once."""
    return n, 2 / n, -1 + 1 / n, -1 / n + EPSILON, 1 / n + EPSILON


def architecture(device: torch.device) -> int:
    """Return the compute capability times ten; the interpreter takes the forms of 80."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    warn(major * 10 + minor)
    return major * 10 + minor


@functools.cache
def warn(arch: int) -> None:
    """Warn once per process about the known faults of this Triton on an architecture."""
    for text in versions.faults(arch, TRITON, refused=False):
        logger.warning("Triton %s on sm_%d %s: Triton 3.9 does not", triton.__version__, arch, text)


def refusal(arch: int) -> str:
    """Return why this Triton must not be used on an architecture; "" if it may."""
    found = versions.faults(arch, TRITON, refused=True)
    return f"needs a newer Triton: {triton.__version__} on sm_{arch} {found[0]}" if found else ""


def precision(dtype: torch.dtype) -> str:
    """Return the precision of matrix products, an entry of PRECISIONS."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if tf32_allowed() else "tf32x3"


def dot_precision(dtype: torch.dtype) -> str:
    """Return tl.dot's input_precision; 16-bit operands have only one."""
    kind = precision(dtype)
    return "tf32" if kind == "half" else kind


@triton.constexpr_function
def lacks_fence(rows):
    """Return whether Triton omits the fence between asynchronous copies and a product of `rows` that reads them.

    Before 3.7 it does so on sm_90 (triton issue 9610), where products of 64 rows read shared memory by another proxy.
    """
    target = None if INTERPRETED else current_target()
    return TRITON < (3, 7) and rows >= 64 and target is not None and target.arch == 90


@triton.jit
def divided(start, offset, size):
    """Return (start + offset) // size, as a scalar and what to add to it, and the remainder, for offset >= 0.

    A 64-bit division is a call of a hundred instructions, so only the scalar `start` is divided so. With a size of 32
    bits its remainder is less than 2^31, and less than 2^32 with a tile's offset added.
    """
    KIND: tl.constexpr = size.dtype if size.dtype == tl.int64 else tl.uint32
    whole = start // size
    rest = (start - whole * size).to(KIND) + offset.to(KIND)
    return whole, rest // size.to(KIND), (rest % size.to(KIND)).to(size.dtype)


@triton.jit
def dot(a, b, c, PRECISION: tl.constexpr):
    """Return a b + c, accumulated in float32."""
    if lacks_fence(a.shape[0]):
        FENCE: tl.constexpr = "fence.proxy.async.shared::cta; mov.b32 $0, $1;"  # Triton wants a result
        tl.inline_asm_elementwise(FENCE, "=r,r", [0], dtype=tl.int32, is_pure=False, pack=1)
    if WIDEN_BFLOAT16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, c, input_precision=PRECISION)


def form(kernel: str, width: int, tensor: Tensor) -> Form:
    """Return the form of a network kernel for a hidden width and the dtype and device of `tensor`."""
    return network_form(kernel, width, precision(tensor.dtype), architecture(tensor.device), TRITON)


def projection_form(tensor: Tensor) -> ProjectionForm:
    """Return the form of a projection for the dtype and device of `tensor`."""
    strict = precision(tensor.dtype) == "tf32x3"
    warps = 8 if strict and architecture(tensor.device) >= 120 else 4  # there 4 warps spill with Triton 3.9
    return ProjectionForm(64, 64, depth(tensor.dtype), warps, 2)


def depth(dtype: torch.dtype) -> int:
    """Return how many inputs a step of a first layer's or a projection's product takes."""
    return 16 if precision(dtype) == "tf32x3" else 32


def tile(form: Form, dtype: torch.dtype) -> dict[str, Any]:
    """Return the launch's keyword arguments for a form and a dtype; multiply-adds must not be contracted."""
    return {
        "ROWS": form.rows,
        "BLOCK": form.block,
        "BLOCKS": form.blocks,
        "PRECISION": dot_precision(dtype),
        "num_warps": form.warps,
        "num_stages": form.stages,
        "enable_fp_fusion": False,
    }


def layer_rows(saved: Tensor) -> int:
    """Return the distance in rows between two layers of [layers, rows, widest], possibly a slice of the rows."""
    return saved.stride(0) // saved.shape[2]


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context that makes the tensor's device the current one, because Triton launches there."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def power_of_two(size: int) -> int:
    """Return the next power of two."""
    return 1 << (size - 1).bit_length()


def padded_to(outs: int, transposed: bool) -> int:
    """Return the last layer's width in a kernel: a power of two that a matrix product accepts.

    Transposed, it is the depth of a product. On sm_90 ptxas serialises all products of a kernel that has one of depth
    16. So the gradient of few outputs goes back by multiply-adds, and that of more outputs by products of depth 32.
    """
    if transposed:
        return power_of_two(outs) if outs <= FEW.value else max(32, power_of_two(outs))
    return max(16, power_of_two(outs))


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two matrices, or of batches of them, in float32, accumulated in float32."""
    multiply = torch.mm if a.ndim == 2 else torch.bmm
    if a.dtype == torch.float32:
        return multiply(a, b)
    if a.device.type == "cuda":
        return multiply(a, b, out_dtype=torch.float32)
    return multiply(a.float(), b.float())


def opening(weight: Tensor, bias: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Lay out a first layer [out, in] without affine columns: [whole steps of in, padded], and float32 [padded]."""
    step = depth(weight.dtype)
    whole = triton.cdiv(weight.shape[1], step) * step
    return _padded(weight.t(), whole, form.padded).contiguous(), _padded(bias.float(), form.padded)


class Network(NamedTuple):
    """Hold an MLP's zero-padded parameters in the kernels' layout; weights are [in, out] or, transposed, [out, in]."""

    affine: Tensor | None  # float32 [4, padded], the columns of the first layer for rel and cell
    weights: Tensor  # [layers, padded, padded] of the hidden layers after the first
    biases: Tensor  # float32 [layers, padded]
    last: Tensor  # [padded, out]
    last_bias: Tensor  # float32 [out]


def _padded(tensor: Tensor, *shape: int) -> Tensor:
    if tensor.shape == shape:
        return tensor
    return F.pad(
        tensor, [n for have, want in zip(tensor.shape[::-1], shape[::-1], strict=True) for n in (0, want - have)]
    )


def network(
    weights: Sequence[Tensor], biases: Sequence[Tensor], form: Form, affine: int, transposed: bool = False
) -> Network:
    """Lay out an MLP's parameters; the first layer's last `affine` columns are added at the query."""

    def pack() -> Network:
        return _network(weights, biases, form, affine, transposed)

    return pack_once([*weights, *biases], (_network, form.padded, affine, transposed), pack)


def _network(weights: Sequence[Tensor], biases: Sequence[Tensor], form: Form, affine: int, transposed: bool) -> Network:
    width, out = form.padded, padded_to(weights[-1].shape[0], transposed)
    hidden = [_padded(weight if transposed else weight.t(), width, width) for weight in weights[1:-1]]
    last = _padded(weights[-1], out, width) if transposed else _padded(weights[-1].t(), width, out)
    columns = weights[0][:, weights[0].shape[1] - affine :].t().float()
    vectors = [_padded(bias.float(), width) for bias in biases[1:-1]]
    first = weights[0]
    return Network(
        affine=_padded(columns, 4, width).contiguous() if affine else None,
        weights=torch.stack(hidden) if hidden else first.new_empty(0, width, width),
        biases=torch.stack(vectors) if vectors else torch.empty(0, width, dtype=torch.float32, device=first.device),
        last=last.contiguous(),
        last_bias=_padded(biases[-1].float(), out).contiguous(),
    )
