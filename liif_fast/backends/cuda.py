"""Run the hand-written Hopper kernel (csrc/cuda): decode and render, forward, in half precision, hidden layers of 256.

It has never run on a GPU. It is compiled, its machine code is audited, and a model executes its data movement
(docs/hopper.md). So `auto` takes it only where `liif-fast qualify` has passed it; naming it selects it anywhere.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook

from liif_fast.backends.factorised import under
from liif_fast.backends.projection import project
from liif_fast.call import Call, Place, Switches, Window, autocast_dtype, hidden_from, without_autocast
from liif_fast.extension import load
from liif_fast.ops import sm90
from liif_fast.ops.decode import decode_queries, render_window

NAME = "cuda"
PLACES = True
DTYPES = (torch.float16, torch.bfloat16)
# Blocks per cluster, 1 or 2: with 2, a pair of blocks copies each weight from L2 once for both. Both give the same
# bits; their speed has not been measured yet.
CLUSTER = 1

_MOST = 16  # packings kept in a context; the oldest is dropped first

_entered: ContextVar[tuple[frozen_weights, ...]] = ContextVar("frozen_weights", default=())  # the innermost is last

# Fused optimizers write without raising a version counter, so the steps of all optimizers are counted.
_counter = itertools.count(1)
_steps = 0
_watching = False
_lock = threading.Lock()


def _load() -> str:
    """Load the extension, which registers the kernels without a driver; return the reason if that fails, else ""."""
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
    if _capability(call.device.index) != (9, 0):
        return False, f"needs compute capability 9.0, got {_capability(call.device.index)}"
    if call.op not in ("decode", "render"):
        return False, f"decodes and renders only, got {call.op}"
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

    Every call packs the weights, in one launch, except within `frozen_weights`. PyTorch's version counters miss writes
    through .data, and a captured graph must pack the weights of the moment when it is replayed.
    """
    dtype = autocast_dtype(feat) or feat.dtype
    terms, bfloat = 4 if switches.cell_decode else 2, dtype == torch.bfloat16
    params = [*weights, *biases]

    def pack() -> Tensor:
        parts = params
        if len({param.dtype for param in params}) > 1 or params[0].dtype not in (*DTYPES, torch.float32):
            parts = [param.float() for param in params]
        return sm90.pack(parts[: len(weights)], parts[len(weights) :], terms, bfloat)

    packed = _pack_once(params, (sm90.pack, terms, bfloat), pack)
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
    out, _ = render_window(p, cell, layers, [], switches.local_ensemble, grid, [0], NAME)
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
    saved: Sequence[int],
) -> tuple[Tensor, Tensor]:
    packed, last = weights
    return sm90.render(p, cell, packed, last.shape[0], ensemble, CLUSTER, grid), p.new_empty(saved)


OPERATORS = {"decode": _decode_operator, "render": _render_operator}


def gather_corners(feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches) -> tuple[Tensor, Tensor]:
    """Not offered; `can_run` refuses it."""
    raise NotImplementedError


def fused_mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], recompute: bool | None) -> Tensor:
    """Not offered; `can_run` refuses it."""
    raise NotImplementedError


# ---- Weights packed once, while the caller promises not to change them.


class frozen_weights:
    """Promise within this context that weights do not change, so that a backend packs them once, not in every call.

    Backend `cuda` packs weights for its kernel; the other backends do not, so they are not affected. Some changes of
    weights are noticed, and the weights packed again: a step of any `torch.optim.Optimizer`, in-place operations on the
    weights themselves, `load_state_dict`, another tensor in the same place.

    The caller must avoid the changes that are not noticed: in-place writes through `.data`, NumPy or another library's
    view, because these do not raise the weights' version counter; a replayed CUDA graph that captured a step; fused
    updates by an optimizer of another base class than `torch.optim.Optimizer`; `resize_` of the storage.

    An object that is entered again still holds its packed weights. Several threads may enter one object, and it applies
    to each thread that enters it. In a generator it also applies to the caller between two values, like every context
    variable. Weights are packed in every call if they are inference tensors, which have no version counter, subclasses
    of Tensor, or tensors made anew for each call (such as `weight.data`). A call that is compiled or captured in a CUDA
    graph also packs, each time it is replayed.

    Example:
        frozen = frozen_weights()
        with frozen:
            outputs = [decoder(feat, coord, cell) for coord, cell in chunks]
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Tensor, list[Tensor]]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> frozen_weights:
        _watch_optimizers()
        _entered.set((*_entered.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        entered = list(_entered.get())
        for i in reversed(range(len(entered))):  # a generator may end after a context that was entered later
            if entered[i] is self:
                del entered[i]
                break
        _entered.set(tuple(entered))

    def _packed(self, params: Sequence[Tensor], how: Hashable, pack: Callable[[], Tensor]) -> Tensor:
        key = (how, _steps, _stream(params[0]), *map(_identity, params))
        with self._lock:
            if key not in self._kept:
                # While these are held, no other tensor can take their ids; the aliases keep the memory and its address.
                self._kept[key] = pack(), [*params, *(param.detach() for param in params)]
                if len(self._kept) > _MOST:
                    del self._kept[next(iter(self._kept))]
            return self._kept[key][0]


def _pack_once(params: Sequence[Tensor], how: Hashable, pack: Callable[[], Tensor]) -> Tensor:
    """Return the result of `pack`, which within `frozen_weights` may be an earlier one.

    Args:
        params: the weights to pack.
        how: all other settings that the packing depends on.
        pack: function without arguments that packs the weights.
    """
    if torch.compiler.is_compiling():
        return pack()
    entered = _entered.get()
    if not entered or any(type(p) not in (Tensor, Parameter) or p.is_inference() for p in params):
        return pack()
    if params[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return pack()
    return entered[-1]._packed(params, how, pack)


def _identity(param: Tensor) -> Hashable:
    return id(param), param.data_ptr(), param._version, param.dtype, param.device, param.shape, param.stride()


def _stream(param: Tensor) -> int:
    # The key includes the stream: another stream must not read a packing without waiting, and the allocator must not
    # reuse the memory meanwhile.
    return torch.cuda.current_stream(param.device).cuda_stream if param.is_cuda else 0


def _watch_optimizers() -> None:
    global _watching
    with _lock:
        if not _watching:
            register_optimizer_step_post_hook(_count_step)
            _watching = True


def _count_step(*_: object) -> None:
    global _steps
    _steps = next(_counter)  # a new number each time, even if two threads step at once
