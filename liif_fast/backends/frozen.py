"""Weights packed once, while the caller promises that they stay."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar, Token

import torch
from torch import Tensor
from torch.nn import Parameter

_MOST = 16  # packings kept in a context, the oldest dropped first

_current: ContextVar[frozen_weights | None] = ContextVar("frozen_weights", default=None)


class frozen_weights:
    """Context in which weights stay as they are: a backend that packs them does so once, not in every call.

    Backend `cuda` packs weights for its kernel; the others do not and are not affected. Weights that change all the
    same are noticed, and packed again, where PyTorch's version counters or addresses show it: optimizer steps, in-place
    operations, `load_state_dict`, another tensor in the place. What bypasses the counters is not noticed, and is what
    the caller promises not to do inside: in-place writes through `.data`, NumPy, or another library's view.

    Entered again, the same object still holds what it has packed. It applies to the thread that enters it. Nothing is
    kept for inference tensors, which have no version counter, for subclasses of Tensor, nor for a call that is compiled
    or captured in a CUDA graph, which packs when it is replayed.

    Example:
        frozen = frozen_weights()
        with frozen:
            outputs = [decoder(feat, coord, cell) for coord, cell in chunks]
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Tensor, list[Tensor]]] = {}
        self._tokens: list[Token[frozen_weights | None]] = []

    def __enter__(self) -> frozen_weights:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._tokens.pop())

    def _packed(self, params: Sequence[Tensor], how: Hashable, pack: Callable[[], Tensor]) -> Tensor:
        key = (how, _stream(params[0]), *map(_identity, params))
        if key not in self._kept:
            # The aliases keep the memory of the weights: no other tensor can come to lie at their addresses.
            self._kept[key] = pack(), [param.detach() for param in params]
            if len(self._kept) > _MOST:
                del self._kept[next(iter(self._kept))]
        return self._kept[key][0]


def packed(params: Sequence[Tensor], how: Hashable, pack: Callable[[], Tensor]) -> Tensor:
    """Return what `pack` makes of the weights, in a context of `frozen_weights` what it made before.

    Args:
        params: what is packed.
        how: everything else that the packing depends on.
        pack: called without arguments.
    """
    if torch.compiler.is_compiling():
        return pack()
    context = _current.get()
    if context is None or any(type(p) not in (Tensor, Parameter) or p.is_inference() for p in params):
        return pack()
    if params[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return pack()
    return context._packed(params, how, pack)


def _identity(param: Tensor) -> Hashable:
    return param.data_ptr(), param._version, param.dtype, param.device, param.shape, param.stride()


def _stream(param: Tensor) -> int:
    # What one stream packs another must not read without waiting, nor the allocator reuse while the other reads it.
    return torch.cuda.current_stream(param.device).cuda_stream if param.is_cuda else 0
