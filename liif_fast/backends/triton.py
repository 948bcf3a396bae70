"""The Triton kernels (kernels/), forward and backward: NVIDIA GPUs from sm_80 on; CPU tensors under the interpreter.

TRITON_INTERPRET=1, set before the first call, runs the kernels in Triton's interpreter, on CPU tensors: for tests.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from liif_fast.backends import AUTO
from liif_fast.call import Call, Place, Switches, Window, autocast_dtype, exporting, hidden_from
from liif_fast.ops.triton.decode import decode as _decode
from liif_fast.ops.triton.decode import render as _render
from liif_fast.ops.triton.fused_mlp import fused_mlp as _fused_mlp
from liif_fast.ops.triton.gather_corners import gather_corners as _gather_corners

NAME = "triton"
PLACES = True
KEEP_BYTES = 1 << 30  # hidden activations kept for the backward pass; those beyond are computed again
WIDEST_HIDDEN, WIDEST_OUT, LONGEST_AXIS = 256, 64, 1 << 22
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_missing = importlib.util.find_spec("triton") is None


def _why_not_on(kind: str, index: int | None) -> str:
    """Why the kernels do not run on a device; empty if they do."""
    if _missing:
        return "Triton is not installed"
    if kind == "cpu":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return "" if interpreted else "runs on cuda tensors (on cpu tensors only with TRITON_INTERPRET=1), got cpu"
    if kind != "cuda":
        return f"runs on cuda tensors, got device {kind}"
    if torch.version.hip is not None:
        return "runs on NVIDIA GPUs: Triton does not compile the kernels for AMD"
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        return f"needs compute capability 8.0, got {major}.{minor}"
    host = importlib.import_module("liif_fast.kernels.host")  # imports Triton
    return str(host.refusal(major * 10 + minor))


# What torch.compiler.assume_constant_result does, which would import torch._dynamo, and that Triton.
_why_not_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


def can_run(call: Call) -> tuple[bool, str]:
    """CUDA tensors in float16, bfloat16 or float32 with a float32 plan; hidden widths to 256, outputs to 64."""
    reason = _why_not_on(call.device.type, call.device.index)
    if reason:
        return False, reason
    if call.dtype not in DTYPES:
        return False, f"computes in float16, bfloat16 or float32, got {call.dtype}"
    if call.coord_dtype != torch.float32:
        return False, f"plans in float32, got coord in {call.coord_dtype}"
    if call.coord_requires_grad:
        return False, "has no gradient for coord and cell"
    if forward_ad._current_level >= 0:
        return False, "has no forward-mode derivative"
    if call.place is not None and call.requires_grad:
        return False, "has no gradient for a part of a feature map"
    if reason := hidden_from():
        return False, reason
    if call.op != "gather_corners":
        *hidden, out = call.widths
        if not hidden:
            return False, "needs a hidden layer, got none"
        if max(hidden) > WIDEST_HIDDEN:
            return False, f"takes hidden layers up to {WIDEST_HIDDEN} wide, got {max(hidden)}"
        if out > WIDEST_OUT:
            return False, f"takes up to {WIDEST_OUT} outputs, got {out}"
    if call.op != "fused_mlp" and max(call.shape[2:]) >= LONGEST_AXIS:
        return False, f"takes maps of less than {LONGEST_AXIS} a side, got {call.shape[2]}x{call.shape[3]}"
    if NAME in AUTO:
        return True, "fused Triton kernels"
    return True, "fused Triton kernels; only by name: they have not been run on a GPU yet"


def _params(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    return [t for pair in zip(weights, biases, strict=True) for t in pair]


def _trains(tensors: Sequence[Tensor]) -> bool:
    if exporting():  # a program for inference: nothing is kept for a backward pass
        return False
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _keep(train: bool, recompute: bool | None, count: int, weights: Sequence[Tensor], rows: int, size: int) -> int:
    """Return how many of `count` queries, of `rows` rows each, keep their activations for the backward pass."""
    if not train or recompute:
        return 0
    if recompute is None:
        widest = max(weight.shape[0] for weight in weights[:-1])
        return torch.sym_min(count, KEEP_BYTES // (rows * (len(weights) - 1) * widest * size))
    return count


def decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
) -> Tensor:
    """Return the decoded queries, [B, Q, out]."""
    low, inputs = autocast_dtype(feat), [feat, *_params(weights, biases)]
    dtype, train = low or feat.dtype, _trains(inputs)
    count = coord.shape[0] * coord.shape[1]
    keep = _keep(train, recompute, count, weights, switches.corners, dtype.itemsize)
    out = _decode(coord, cell, switches, keep, dtype, inputs, train)
    return out.to(feat.dtype if low is None else torch.float32)


def render(
    feat: Tensor,
    size: tuple[int, int],
    region: Window,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
    place: Place | None = None,
) -> Tensor:
    """Return the window `region` of the grid `size`, [B, out, h, w]; only the latents under it are projected."""
    low, inputs = autocast_dtype(feat), [feat, *_params(weights, biases)]
    dtype, train = low or feat.dtype, _trains(inputs)
    count = feat.shape[0] * region[2] * region[3]
    keep = _keep(train, recompute, count, weights, switches.corners, dtype.itemsize)
    out = _render(size, region, cell, switches, keep, dtype, inputs, train, place)
    return out.to(feat.dtype if low is None else torch.float32)


def gather_corners(feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches) -> tuple[Tensor, Tensor]:
    """Return the network's input x [B, Q, K, in_dim] and the blending weight [B, Q, K]."""
    feat = feat if autocast_dtype(feat) is None else feat.float()
    return _gather_corners(feat, coord, cell, switches.feat_unfold, switches.local_ensemble, _trains([feat]))


def fused_mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], recompute: bool | None) -> Tensor:
    """Apply Linear, ReLU, ..., Linear to the last dimension of x, [..., out]."""
    low, shape = autocast_dtype(x), (*x.shape[:-1], weights[-1].shape[0])
    rows = x.reshape(math.prod(shape[:-1]), x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    inputs = [rows, *_params(weights, biases)]
    dtype, train = low or x.dtype, _trains(inputs)
    keep = _keep(train, recompute, rows.shape[0], weights, 1, dtype.itemsize)
    out = _fused_mlp(keep, dtype, inputs, train)
    return out.to(x.dtype if low is None else torch.float32).reshape(shape)
