"""Pack weights once, while the caller promises not to change them."""

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

_MOST = 16  # packings kept in a context; the oldest is dropped first

_entered: ContextVar[tuple[frozen_weights, ...]] = ContextVar("frozen_weights", default=())  # the innermost is last

# Fused optimizers write without raising a version counter, so the steps of all optimizers are counted.
_counter = itertools.count(1)
_steps = 0
_watching = False
_lock = threading.Lock()


class frozen_weights:
    """Promise within this context that weights do not change, so that a backend packs them once, not in every call.

    Backends `cuda` and `triton` lay weights out for their kernels; the other backends do not, so they are not affected.
    Some changes of weights are noticed, and the weights packed again: a step of any `torch.optim.Optimizer`, in-place
    operations on the weights themselves, `load_state_dict`, another tensor in the same place.

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
                # While these are held, no other tensor can take their ids; the aliases keep the memory and its address.
                self._kept[key] = _outside_inference(pack), [*params, *(param.detach() for param in params)]
                if len(self._kept) > _MOST:
                    del self._kept[next(iter(self._kept))]
            packed: Packed = self._kept[key][0]
            return packed


def pack_once(params: Sequence[Tensor], how: Hashable, pack: Callable[[], Packed]) -> Packed:
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


def _outside_inference(pack: Callable[[], Packed]) -> Packed:
    """Pack into tensors that have a version counter, because a packing may be packed further, as attention's is."""
    if not torch.is_inference_mode_enabled():
        return pack()
    with torch.inference_mode(False), torch.no_grad():
        return pack()


def _identity(param: Tensor) -> Hashable:
    return id(param), param.data_ptr(), param._version, param.dtype, param.device, param.shape, param.stride()


def _stream(param: Tensor) -> int:
    # The key includes the stream, because another stream must not read a packing without waiting, and the allocator
    # must not reuse the memory meanwhile.
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
