"""What the launchers share: numbers of an axis, parameters in the kernels' layout, products, launching."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from . import config, versions
from .config import Form

logger = logging.getLogger("liif_fast")

FEW = tl.constexpr(4)  # outputs whose gradient goes back by multiply-adds
EPSILON = 1e-6  # as liif_fast.coord.EPSILON
_major, _minor, *_ = triton.__version__.split(".")
TRITON = int(_major), int(_minor)


def axis(n: int) -> tuple[int, float, float, float, float]:
    """Return n, step and origin of the centres, and the two shifts; summed in double, rounded to float32 once."""
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
    """Say, once in a process, what is known to be wrong with this Triton on an architecture."""
    for text in versions.faults(arch, TRITON, refused=False):
        logger.warning("Triton %s on sm_%d %s: Triton 3.9 does not", triton.__version__, arch, text)


def refusal(arch: int) -> str:
    """Return why this Triton must not be used on an architecture; empty if it may."""
    found = versions.faults(arch, TRITON, refused=True)
    return f"needs a newer Triton: {triton.__version__} on sm_{arch} {found[0]}" if found else ""


def tf32_allowed() -> bool:
    """Whether float32 matrix products may round their operands to TF32."""
    try:
        return torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # the two interfaces of PyTorch have been mixed
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


def precision(dtype: torch.dtype) -> str:
    """Return how matrix products are to be made: an entry of config.PRECISIONS."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if tf32_allowed() else "tf32x3"


def dot_precision(dtype: torch.dtype) -> str:
    """Return tl.dot's input_precision; operands of 16 bits have only one."""
    kind = precision(dtype)
    return "tf32" if kind == "half" else kind


def form(kernel: str, width: int, tensor: Tensor) -> Form:
    """Return the form of a network kernel for a hidden width, and the dtype and device of `tensor`."""
    return config.network_form(kernel, width, precision(tensor.dtype), architecture(tensor.device), TRITON)


def projection_form(outs: int, tensor: Tensor) -> config.ProjectionForm:
    """Return the form of a projection to `outs` columns."""
    return config.projection_form(outs, precision(tensor.dtype), architecture(tensor.device))


def tile(form: Form, dtype: torch.dtype) -> dict[str, Any]:
    """Return the keyword arguments of a launch that a form and a dtype fix; no multiply-add may be contracted."""
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
    """Return how many rows lie between two layers of [layers, rows, widest], which may be a slice of the rows."""
    return saved.stride(0) // saved.shape[2]


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which the tensor's device is the current one: Triton launches there."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def power_of_two(size: int) -> int:
    """Return the next power of two."""
    return 1 << (size - 1).bit_length()


def padded_to(outs: int, transposed: bool) -> int:
    """Return the last layer's width in a kernel: a power of two that a matrix product takes.

    Transposed it is the depth of a product, and ptxas for sm_90 serialises all products of a kernel that has one of
    depth 16: few outputs go back by multiply-adds, others in a depth of 32.
    """
    if transposed:
        return power_of_two(outs) if outs <= FEW.value else max(32, power_of_two(outs))
    return max(16, power_of_two(outs))


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product (of batches of matrices) in float32, accumulated in float32."""
    multiply = torch.mm if a.ndim == 2 else torch.bmm
    if a.dtype == torch.float32:
        return multiply(a, b)
    if a.device.type == "cuda":
        return multiply(a, b, out_dtype=torch.float32)
    return multiply(a.float(), b.float())


class Network(NamedTuple):
    """An MLP's parameters as the kernels read them, zero padded: a weight is [in, out] or, transposed, [out, in]."""

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
    """Lay out an MLP's parameters; `affine` is the number of the first layer's last columns to add at the query."""
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
