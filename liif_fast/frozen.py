"""Weights packed once, while the caller promises that they stay."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook

Packed = TypeVar("Packed")

_MOST = 16  # packings kept in a context, the oldest dropped first

_entered: ContextVar[tuple[frozen_weights, ...]] = ContextVar("frozen_weights", default=())  # the innermost is last

# Fused optimizers write without raising a version counter, so steps are counted, whoever takes them.
_counter = itertools.count(1)
_steps = 0
_watching = False
_lock = threading.Lock()


class frozen_weights:
    """Context in which weights stay as they are: a backend that packs them does so once, not in every call.

    Backends `cuda` and `triton` lay weights out for their kernels; the others do not and are not affected. Weights that
    change all the same are noticed, and packed again, where PyTorch shows it: a step of any `torch.optim.Optimizer`,
    in-place operations on the weights themselves, `load_state_dict`, another tensor in the place.

    Not noticed, and what the caller promises not to do inside: in-place writes through `.data`, NumPy or another
    library's view, which have counters of their own or none; a replayed CUDA graph that captured a step; fused updates
    by an optimizer that is no `torch.optim.Optimizer`; `resize_` of the storage.

    Entered again, the same object still holds what it has packed; several threads may enter one object. It applies to
    the thread that enters it. Entered in a generator, it applies to the caller as well between two values, as every
    context variable does. Nothing is kept for inference tensors, which have no version counter, for subclasses of
    Tensor, for tensors made anew for each call (such as `weight.data`), nor for a call that is compiled or captured in
    a CUDA graph, which packs when it is replayed.

    Example:
        frozen = frozen_weights()
        with frozen:
            outputs = [decoder(feat, coord, cell) for coord, cell in chunks]
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Any, list[Tensor]]] = {}
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

    def _packed(self, params: Sequence[Tensor], how: Hashable, pack: Callable[[], Packed]) -> Packed:
        key = (how, _steps, _stream(params[0]), *map(_identity, params))
        with self._lock:
            if key not in self._kept:
                # Held, no other tensor can take their ids; the aliases keep their memory, and so the addresses.
                self._kept[key] = pack(), [*params, *(param.detach() for param in params)]
                if len(self._kept) > _MOST:
                    del self._kept[next(iter(self._kept))]
            packed: Packed = self._kept[key][0]
            return packed


def pack_once(params: Sequence[Tensor], how: Hashable, pack: Callable[[], Packed]) -> Packed:
    """Return what `pack` makes of the weights, in a context of `frozen_weights` what it made before.

    Args:
        params: what is packed.
        how: everything else that the packing depends on.
        pack: called without arguments.
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
    # What one stream packs another must not read without waiting, nor the allocator reuse while the other reads it.
    return torch.cuda.current_stream(param.device).cuda_stream if param.is_cuda else 0


def _watch_optimizers() -> None:
    global _watching
    with _lock:
        if not _watching:
            register_optimizer_step_post_hook(_count_step)
            _watching = True


def _count_step(*_: object) -> None:
    global _steps
    _steps = next(_counter)  # never a number for the second time, even if two threads step at once
