"""The fused C++ kernels (csrc/cpu), forward and backward, float32 and float64."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from liif_fast.attention import Corners, CornerTransformer
from liif_fast.backends import attention, factorises
from liif_fast.call import Call, Place, Switches, Window, exporting, hidden_from
from liif_fast.extension import load
from liif_fast.ops import decode as _decode
from liif_fast.ops import gather as _gather
from liif_fast.ops import mlp as _mlp

NAME = "cpu"
PLACES = True
KEEP_BYTES = 1 << 27  # hidden activations kept for the backward pass; those beyond are computed again


def _load() -> str:
    """Load the extension, which registers the kernels; return why there is none, "" if there is."""
    wish = os.environ.get("LIIF_FAST_CPU_ISA", "")
    if wish not in ("", "portable", "avx2", "avx512"):
        return f"LIIF_FAST_CPU_ISA must be portable, avx2 or avx512, got {wish!r}"
    error = load("_C")
    return f"the C++ kernels are not built or cannot be loaded ({error}); `liif-fast info` says more" if error else ""


_missing = _load()
# The instruction set that the micro-kernel was chosen for; LIIF_FAST_CPU_ISA asks for a lesser one.
ISA: str = "" if _missing else torch.ops.liif_fast.cpu_isa()


def can_run(call: Call) -> tuple[bool, str]:
    """CPU tensors in float32 or float64 with a float32 plan; no gradient for coord or cell."""
    if call.device.type != "cpu":
        return False, f"runs on cpu tensors, got device {call.device}"
    if _missing:
        return False, _missing
    if call.autocast is not None:
        return False, f"computes in float32 or float64, autocast asks for {call.autocast}"
    if call.dtype not in (torch.float32, torch.float64):
        return False, f"computes in float32 or float64, got {call.dtype}"
    if call.coord_dtype != torch.float32:
        return False, f"plans in float32, got coord in {call.coord_dtype}"
    if call.coord_requires_grad:
        return False, "has no gradient for coord and cell"
    if call.op == "attend_corners" and call.dtype != torch.float32:
        return False, f"attends in float32, got {call.dtype}"
    if call.place is not None and call.requires_grad:
        return False, "has no gradient for a part of a feature map"
    if forward_ad._current_level >= 0:
        return False, "has no forward-mode derivative"
    if reason := hidden_from():
        return False, reason
    return True, f"fused C++ kernels ({ISA})"


def _params(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    return [t for pair in zip(weights, biases, strict=True) for t in pair]


def _trains(*tensors: Tensor) -> bool:
    if exporting():  # a program for inference: nothing is kept for a backward pass
        return False
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _keep(train: bool, recompute: bool | None, count: int, elements: int, dtype: torch.dtype) -> int:
    """Return how many of `count` queries (or rows), of `elements` activations each, keep them for the backward pass."""
    if not train or recompute:
        return 0
    if recompute is None and elements:
        return torch.sym_min(count, KEEP_BYTES // (elements * dtype.itemsize))
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
    params = _params(weights, biases)
    train = _trains(feat, *params)
    if not factorises(feat.shape[2] * feat.shape[3], switches.corners * coord.shape[1]):
        return _decode.decode_direct(feat, coord, cell, params, switches, train)
    activations = switches.corners * _decode.saved_width(weights)
    keep = _keep(train, recompute, coord.shape[0] * coord.shape[1], activations, feat.dtype)
    return _decode.decode(feat, coord, cell, params, switches, train, keep)


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
    params = _params(weights, biases)
    train = _trains(feat, *params)
    activations = switches.corners * _decode.saved_width(weights)
    keep = _keep(train, recompute, feat.shape[0] * region[2] * region[3], activations, feat.dtype)
    return _decode.render(feat, size, region, cell, params, switches, train, keep, place)


def gather_corners(feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches) -> tuple[Tensor, Tensor]:
    """Return the network's input x [B, Q, K, in_dim] and the blending weight [B, Q, K]."""
    return _gather.gather_corners(feat, coord, cell, switches, _trains(feat))


def fused_mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], recompute: bool | None) -> Tensor:
    """Apply Linear, ReLU, ..., Linear to the last dimension of x, [..., out]."""
    params = _params(weights, biases)
    shape = (*x.shape[:-1], weights[-1].shape[0])
    rows = x.reshape(math.prod(shape[:-1]), x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    train = _trains(x, *params)
    keep = _keep(train, recompute, rows.shape[0], _mlp.saved_width(weights), x.dtype)
    return _mlp.mlp(rows, params, train, keep).reshape(shape)


def attend_corners(
    feat: Tensor,
    values: Tensor,
    corners: Corners,
    transformer: CornerTransformer,
    dropout: float,
    recompute: bool | None,
) -> tuple[Tensor, Tensor]:
    """Return the values blended by the transformer's weights, [B, Q, V], and the weights [B, Q, 4]."""
    train = _trains(feat, values, *(tensor for _, tensor in transformer.tensors()))
    return attention.fused(feat, values, corners, transformer, train)
