"""Run the Triton kernels (kernels/), forward and backward, on NVIDIA GPUs from sm_80 on.

For tests, TRITON_INTERPRET=1, set before the first call, runs the kernels in Triton's interpreter on CPU tensors.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from liif_fast.backends import attention, kept, runner
from liif_fast.call import Call, Kernels, hidden_from
from liif_fast.ops import decode as _decode
from liif_fast.ops import fourier as _fourier
from liif_fast.ops import gather as _gather
from liif_fast.ops import mlp as _mlp

NAME = "triton"
PLACES = EXTENTS = True
KEEP_BYTES = 1 << 30  # limit of hidden activations kept for the backward pass; the others are recomputed
WIDEST_HIDDEN, WIDEST_OUT = 256, 64
LONGEST_AXIS = (1 << 22) - 2  # the plan rounds indices below 2^22, and a map that wraps has two more columns
MOST_INPUTS, MOST_KEPT = 1 << 21, 1 << 29  # offsets in the first weight, and queries behind the kept ones, have 32 bits
MOST_VALUES = 1 << 24  # offsets in a tile of `attend_corners` have 32 bits
CHANNELS = (16, 32, 64)  # of latents that a transformer with blocks takes
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_missing = importlib.util.find_spec("triton") is None


def _why_not_on(kind: str, index: int | None) -> str:
    """Return why the kernels cannot run on a device, or ""; on a CPU, make the operators run them."""
    if _missing:
        return "Triton is not installed"
    if kind == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "runs on cuda tensors (on cpu tensors only with TRITON_INTERPRET=1), got cpu"
        run_on_cpu()
        return ""
    if kind != "cuda":
        return f"runs on cuda tensors, got device {kind}"
    if torch.version.hip is not None:
        return "runs on NVIDIA GPUs: Triton does not compile the kernels for AMD"
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        return f"needs compute capability 8.0, got {major}.{minor}"
    host = importlib.import_module("liif_fast.kernels.host")  # imports Triton
    return str(host.refusal(major * 10 + minor))


# Does the same as torch.compiler.assume_constant_result, which would import torch._dynamo and, with it, Triton.
_why_not_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


def can_run(call: Call) -> tuple[bool, str]:
    """Accept CUDA tensors in float16, bfloat16 or float32 with a float32 plan, hidden widths to 256, outputs to 64."""
    reason = _why_not_on(call.device.type, call.device.index)
    if reason:
        return False, reason
    if call.dtype not in DTYPES:
        return False, f"computes in float16, bfloat16 or float32, got {call.dtype}"
    if call.coord_dtype != torch.float32:
        return False, f"plans in float32, got coord in {call.coord_dtype}"
    if forward_ad._current_level >= 0:
        return False, "has no forward-mode derivative"
    if (call.place is not None or call.extent is not None) and call.requires_grad:
        return False, "has no gradient for a part of a feature map"
    if reason := hidden_from():
        return False, reason
    if call.op == "attend_corners":
        if reason := _why_not_attend(call):
            return False, reason
    elif call.op != "gather_corners":
        *hidden, out = call.widths
        if not hidden:
            return False, "needs a hidden layer, got none"
        if max(hidden) > WIDEST_HIDDEN:
            return False, f"takes hidden layers up to {WIDEST_HIDDEN} wide, got {max(hidden)}"
        if out > WIDEST_OUT:
            return False, f"takes up to {WIDEST_OUT} outputs, got {out}"
    if reason := _why_not_of_this_size(call):
        return False, reason
    return True, "fused Triton kernels"


def _why_not_of_this_size(call: Call) -> str:
    """Return why the kernels' arithmetic does not reach as far as the call, or ""."""
    inputs, sides = call.shape[-1], (0, 0)
    if call.op != "fused_mlp":
        inputs = call.shape[1] * (9 if call.switches.feat_unfold else 1)
        sides = call.place[2:] if call.place else (call.shape[2], call.shape[3])
    if max(sides) >= LONGEST_AXIS:
        return f"takes maps of less than {LONGEST_AXIS} a side, got {sides[0]}x{sides[1]}"
    if inputs >= MOST_INPUTS:
        return f"takes fewer than {MOST_INPUTS} inputs per row, got {inputs}"
    return ""


def _why_not_attend(call: Call) -> str:
    """Return why the kernels cannot run this `attend_corners`, or ""."""
    channels = call.shape[1]
    if call.dropout:
        return "has no dropout"
    if call.coord_requires_grad:
        return "has no gradient for coord"
    if call.widths and channels not in CHANNELS:
        return f"takes blocks of {', '.join(map(str, CHANNELS))} channels, got {channels}"
    if max(call.widths, default=0) > channels:
        return f"takes hidden layers as wide as the {channels} channels, got {max(call.widths)}"
    if call.values > MOST_VALUES:
        return f"blends up to {MOST_VALUES} values, got {call.values}"
    return ""


def _saves(
    weights: Sequence[Tensor],
    first: int,
    count: int,
    rows: int,
    dtype: torch.dtype,
    train: bool,
    recompute: bool | None,
) -> tuple[int, int, int]:
    """Return the shape of the activations saved from `count` queries of `rows` rows: [hidden layers, rows, widest].

    By default none are saved of MOST_KEPT queries or more.
    """
    if train and recompute is None and count >= MOST_KEPT:
        recompute = True
    layers, widest = len(weights) - 1, max(weight.shape[0] for weight in weights[:-1])
    return layers, kept(count, rows * layers * widest, dtype, train, recompute, KEEP_BYTES) * rows, widest


KERNELS = Kernels(NAME, lambda dtype, autocast: autocast or dtype, _saves)

decode = KERNELS.bind(_decode.decode)
render = KERNELS.bind(_decode.render)
gather_corners = KERNELS.bind(_gather.gather_corners)
fused_mlp = KERNELS.bind(_mlp.fused_mlp)
fourier_decode = KERNELS.bind(_fourier.fourier_decode)
attend_corners = attention.bind(NAME, F.linear, packs=True)


def _kernel(file: str, name: str) -> Callable[..., Any]:
    """Return the function `name` of a file in kernels/; its first call imports the file, and with it Triton."""

    def run(*args: Any) -> Any:
        return getattr(importlib.import_module(f"liif_fast.kernels.{file}"), name)(*args)

    return run


FILES = ("project", "decode", "render", "gather_corners", "fused_mlp", "attend_corners", "fourier_decode")
OPERATORS = {name: _kernel(file, name) for file in FILES for name in (file, f"{file}_backward")}


_library = torch.library.Library("liif_fast", "IMPL")  # its registrations live as long as it does


@functools.cache
def run_on_cpu() -> None:
    """Let this backend run operators on CPU tensors, for Triton's interpreter.

    A dispatch key holds one kernel, so each of ours replaces the C++ kernel, if that is built. It calls the C++ kernel
    if the call names no backend.
    """
    for name in OPERATORS:
        operator, ours = f"liif_fast::{name}", runner(name)
        built = torch._C._dispatch_has_computed_kernel_for_dispatch_key(operator, "CPU")
        native = torch.library.get_kernel(operator, "CPU") if built else None

        def run(keys: Any, *args: Any, native: Any = native, ours: Callable[..., Any] = ours) -> Any:
            return ours(*args) if native is None or args[-1] is not None else native.call_boxed(keys, *args)

        with warnings.catch_warnings():  # about the replaced kernel
            warnings.simplefilter("ignore", UserWarning)
            _library.impl(name, run, "CPU", with_keyset=True)
