"""Run the fused C++ kernels (csrc/cpu), forward and backward, in float32, float64 and, if the CPU has it, bfloat16."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from liif_fast.backends import attention, factorises, kept, verdict
from liif_fast.call import Call, Kernels, Switches, hidden_from
from liif_fast.extension import load
from liif_fast.ops import decode as _decode
from liif_fast.ops import fourier as _fourier
from liif_fast.ops import gather as _gather
from liif_fast.ops import mlp as _mlp
from liif_fast.ops import modulated as _modulated

NAME = "cpu"
PLACES = EXTENTS = True
KEEP_BYTES = 1 << 30  # limit of hidden activations kept for the backward pass; the others are recomputed


def _wish() -> str:
    return os.environ.get("LIIF_FAST_CPU_ISA", "")


def _load() -> str:
    """Load the extension, which registers the kernels; return "" or the reason why that fails."""
    if _wish() not in ("", "portable", "avx2", "avx512", "amx", "amx-emulated"):
        return f"LIIF_FAST_CPU_ISA must be portable, avx2, avx512 or amx, got {_wish()!r}"
    error = load("_C")
    return f"the C++ kernels are not built or cannot be loaded ({error}); `liif-fast info` says more" if error else ""


def _start_amx() -> str:
    """Turn AMX on for bfloat16 products if it is named, or has passed and was faster on this machine; return the state.

    The state never changes later in the process. Only here is the system asked for the registers.
    """
    on, why = True, "by LIIF_FAST_CPU_ISA"
    if not _wish().startswith("amx"):
        on, why = verdict.of_all("cpu", None, verdict.AMX, verdict.AMX_UNITS)
    refused = on and torch.ops.liif_fast.cpu_use_amx(True)
    return f"off: {refused}" if refused else f"{'on' if on else 'off'}, {why}"


_missing = _load()
# The instruction set of the chosen micro-kernel: the widest, or a narrower one that LIIF_FAST_CPU_ISA names.
ISA: str = "" if _missing else torch.ops.liif_fast.cpu_isa()
BFLOAT16: bool = not _missing and torch.ops.liif_fast.cpu_has_bfloat16()  # products of bfloat16, summed in float32
AMX_MISSING: str = _missing or torch.ops.liif_fast.cpu_missing_amx()
AMX: str = f"none: {AMX_MISSING}" if AMX_MISSING else _start_amx()  # in words


def _computes_in(dtype: torch.dtype, autocast: torch.dtype | None) -> torch.dtype:
    """Return the dtype of products; autocast to bfloat16 takes float32 on a processor without bfloat16 products."""
    if autocast is None:
        return dtype
    return autocast if autocast == torch.bfloat16 and BFLOAT16 else torch.float32


def can_run(call: Call) -> tuple[bool, str]:
    """Accept CPU tensors in float32, float64 or, if the processor has it, bfloat16; a float32 plan."""
    if call.device.type != "cpu":
        return False, f"runs on cpu tensors, got device {call.device}"
    if _missing:
        return False, _missing
    gathers = call.op == "gather_corners"
    if call.dropout:
        return False, "has no dropout"
    if call.op == "attend_corners":
        dtype = torch.promote_types(call.dtype, torch.float32)
    else:
        dtype = torch.float32 if gathers and call.autocast else _computes_in(call.dtype, call.autocast)
    if dtype == torch.bfloat16 and gathers:
        return False, f"gathers in float32 or float64, got {dtype}"
    if dtype == torch.bfloat16 and not BFLOAT16:
        return False, "computes in bfloat16 only on a processor with AVX512-BF16"
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return False, f"computes in float32, float64 or bfloat16, got {dtype}"
    if call.coord_dtype != torch.float32:
        return False, f"plans in float32, got coord in {call.coord_dtype}"
    if call.op == "attend_corners" and call.coord_requires_grad:
        return False, "has no gradient for coord"
    if (call.place is not None or call.extent is not None) and call.requires_grad:
        return False, "has no gradient for a part of a feature map"
    if forward_ad._current_level >= 0:
        return False, "has no forward-mode derivative"
    if reason := hidden_from():
        return False, reason
    low = "" if dtype != torch.bfloat16 else ", bfloat16" if AMX_MISSING else f", bfloat16; AMX is {AMX}"
    return True, f"fused C++ kernels ({ISA}{low})"


def _saves(
    weights: Sequence[Tensor],
    first: int,
    count: int,
    rows: int,
    dtype: torch.dtype,
    train: bool,
    recompute: bool | None,
) -> tuple[int, int]:
    """Return the shape of the activations saved from `count` queries of `rows` rows: [rows, outputs of all layers]."""
    width = sum(weight.shape[0] for weight in weights[first:-1])
    return kept(count, rows * width, dtype, train, recompute, KEEP_BYTES) * rows, width


KERNELS = Kernels(None, _computes_in, _saves)

render = KERNELS.bind(_decode.render)
gather_corners = KERNELS.bind(_gather.gather_corners)
fused_mlp = KERNELS.bind(_mlp.fused_mlp)
fourier_decode = KERNELS.bind(_fourier.fourier_decode)
modulated_decode = KERNELS.bind(_modulated.modulated_decode)


def decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
) -> Tensor:
    """Return the decoded queries, [B, Q, out]; few queries of a large map take the direct form."""
    if factorises(feat.shape[2] * feat.shape[3], switches.corners * coord.shape[1]):
        return _decode.decode(KERNELS, feat, coord, cell, weights, biases, switches, recompute)
    return _decode.decode_direct(KERNELS, feat, coord, cell, weights, biases, switches)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply rows by a weight [out, in], with the same bits for any number of threads, unlike PyTorch's product."""
    return fused_mlp(x, [weight], [weight.new_zeros(len(weight))], True)


attend_corners = attention.bind(None, _product, packs=False)
