"""Run the hand-written Hopper kernel (csrc/cuda): decode and render, forward, in half precision, hidden layers of 256.

No GPU has run it yet. It is compiled, its machine code is audited, and its PTX is executed on a CPU (docs/hopper.md).
So `auto` takes it only where `liif-fast qualify` has passed it; naming it selects it anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from liif_fast.backends.factorised import under
from liif_fast.backends.projection import project
from liif_fast.call import Call, Place, Switches, Window, autocast_dtype, hidden_from, without_autocast
from liif_fast.extension import load
from liif_fast.frozen import pack_once
from liif_fast.ops import sm90
from liif_fast.ops.decode import decode_queries, render_window

NAME = "cuda"
PLACES = True
DTYPES = (torch.float16, torch.bfloat16)
# Blocks per cluster, 1 or 2. With 2, a pair of blocks copies each weight from L2 once for both. Both give the same
# bits. Their speed has not been measured yet.
CLUSTER = 1


def _load() -> str:
    """Load the extension, which registers the kernels without a driver; return "" or the reason why that fails."""
    global CLUSTER
    wish = os.environ.get("LIIF_FAST_CUDA_CLUSTER") or "1"
    if wish not in ("1", "2"):
        return f"LIIF_FAST_CUDA_CLUSTER must be 1 or 2, got {wish!r}"
    CLUSTER = int(wish)
    error = load("_C_sm90")
    return f"the CUDA kernels are not built or cannot be loaded ({error}); `liif-fast info` says more" if error else ""


_missing = _load()


def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


# Does the same as torch.compiler.assume_constant_result, which would import torch._dynamo.
_capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


def can_run(call: Call) -> tuple[bool, str]:
    """Accept sm_90 tensors in float16 or bfloat16 (or autocast to one), hidden layers of 256, without gradients."""
    if call.device.type != "cuda":
        return False, f"runs on cuda tensors, got device {call.device}"
    if _missing:
        return False, _missing
    if torch.version.hip is not None:  # MI200 also reports 9.0
        return False, "runs on NVIDIA GPUs, got an AMD one"
    if _capability(call.device.index) != (9, 0):
        return False, f"needs compute capability 9.0, got {_capability(call.device.index)}"
    if (call.autocast or call.dtype) not in DTYPES:
        return False, f"computes in float16 or bfloat16, got {call.autocast or call.dtype}"
    if call.coord_dtype != torch.float32:
        return False, f"plans in float32, got coord in {call.coord_dtype}"
    if call.requires_grad:
        return False, "has no gradient"
    *hidden, out = call.widths
    if len(hidden) < 2 or set(hidden) != {sm90.HIDDEN}:
        return False, f"takes two or more hidden layers, all {sm90.HIDDEN} wide, got {hidden}"
    if out > sm90.MAX_OUT:
        return False, f"takes up to {sm90.MAX_OUT} outputs, got {out}"
    if forward_ad._current_level >= 0:
        return False, "has no forward-mode derivative"
    if reason := hidden_from():
        return False, reason
    return True, "hand-written Hopper kernel"


def _prepare(
    feat: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], switches: Switches
) -> tuple[Tensor, Tensor]:
    """Return P [B, H, W, 256] in the dtype of the products, and the packed weights.

    Every call packs the weights, in one launch, except within `frozen_weights`. No cache is safe, because PyTorch's
    version counters miss writes through .data, and a captured graph must pack the weights that it finds when replayed.
    """
    dtype = autocast_dtype(feat) or feat.dtype
    terms, bfloat = 4 if switches.cell_decode else 2, dtype == torch.bfloat16
    params = [*weights, *biases]

    def pack() -> Tensor:
        parts = params
        if len({param.dtype for param in params}) > 1 or params[0].dtype not in (*DTYPES, torch.float32):
            parts = [param.float() for param in params]
        return sm90.pack(parts[: len(weights)], parts[len(weights) :], terms, bfloat)

    packed = pack_once(params, (sm90.pack, terms, bfloat), pack)
    with without_autocast(feat):
        first, bias = weights[0][:, : weights[0].shape[1] - terms].to(dtype), biases[0].to(dtype)
        p = project(feat.to(dtype), first, bias, switches.feat_unfold)
    return p.view(feat.shape[0], feat.shape[2], feat.shape[3], sm90.HIDDEN), packed


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
    p, packed = _prepare(feat, weights, biases, switches)
    layers = [packed, weights[-1]]
    cell = cell if switches.cell_decode else None
    out, _ = decode_queries(p, coord, cell, layers, [], switches.local_ensemble, [0], NAME)
    return out.to(feat.dtype if autocast_dtype(feat) is None else torch.float32)


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
    """Return the window `region` of the grid `size`, [B, out, h, w], projecting only the latents under it."""
    if not torch.compiler.is_compiling():
        feat, place = under(feat, size, region, switches, place or (0, 0, feat.shape[2], feat.shape[3]))
    p, packed = _prepare(feat, weights, biases, switches)
    layers = [packed, weights[-1]]
    top, left, *shape = place or (0, 0, feat.shape[2], feat.shape[3])
    cell = cell if switches.cell_decode else None
    grid = [*shape, top, left, *size, *region]
    out, _ = render_window(p, cell, layers, [], switches.local_ensemble, grid, [], [0], NAME)
    return out.to(feat.dtype if autocast_dtype(feat) is None else torch.float32)


def _decode_operator(
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ensemble: bool,
    saved: Sequence[int],
) -> tuple[Tensor, Tensor]:
    packed, last = weights
    return sm90.decode(p, coord, cell, packed, last.shape[0], ensemble, CLUSTER), p.new_empty(saved)


def _render_operator(
    p: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ensemble: bool,
    grid: Sequence[int],
    steps: Sequence[float],
    saved: Sequence[int],
) -> tuple[Tensor, Tensor]:
    packed, last = weights
    return sm90.render(p, cell, packed, last.shape[0], ensemble, CLUSTER, grid), p.new_empty(saved)


OPERATORS = {"decode": _decode_operator, "render": _render_operator}
