"""A call in words that every storey shares: its options, its places, and the modes of PyTorch that it runs in.

Operators, backends and the public functions import this module, and it imports none of them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from liif_fast.window import Window as Window


class Switches(NamedTuple):
    """The three options of LIIF's decoder."""

    feat_unfold: bool = True
    local_ensemble: bool = True
    cell_decode: bool = True

    @property
    def corners(self) -> int:
        """K, the latents that a query reads."""
        return 4 if self.local_ensemble else 1


Place = tuple[int, int, int, int]  # top, left in a map of height, width


class Call(NamedTuple):
    """Describe a call to a backend, which then says whether it can run it."""

    op: str  # "decode", "render", "gather_corners", "attend_corners" or "fused_mlp"
    device: torch.device
    dtype: torch.dtype  # of feat (of x for fused_mlp)
    shape: tuple[int, ...]  # of feat [B, C, H, W] (of x for fused_mlp)
    queries: int  # Q, per image; rows of x for fused_mlp
    widths: tuple[int, ...]  # outputs of each layer; () for gather_corners
    switches: Switches
    coord_dtype: torch.dtype  # of coord and cell
    autocast: torch.dtype | None  # the autocast dtype where autocast applies
    requires_grad: bool  # any gradient is wanted
    coord_requires_grad: bool  # a gradient for coord or cell is wanted
    place: Place | None = None  # of a render: where feat lies in a larger map
    dropout: float = 0.0  # of attend_corners


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast would compute in for `tensor`, None where it leaves it alone (float64 too)."""
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def result_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of what an operator makes of `tensor`: its own, float32 under autocast."""
    return tensor.dtype if autocast_dtype(tensor) is None else torch.float32


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves operations on `tensor` alone."""
    if autocast_dtype(tensor) is None:
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def hidden_from() -> str:
    """Return why operators of our own cannot run here: a tracer or transform that does not know them; "" if none."""
    if torch.compiler.is_compiling():
        return ""
    if torch.jit.is_tracing():
        return "is not recorded by torch.jit.trace, which would fix the sizes of this call"
    if torch._C._functorch.peek_interpreter_stack() is not None:  # grad, vmap, ...
        return "runs under no torch.func transform"
    return ""


def exporting() -> bool:
    """Say whether torch.export traces the call.

    The flag behind `torch.compiler.is_exporting`, which is also true within torch.compile of PyTorch 2.11: training
    would be taken for inference there, and have no gradients.
    """
    return bool(torch.compiler._is_exporting_flag)


def trains(*tensors: Tensor) -> bool:
    """Say whether a backward pass is to come; an exported program is for inference and keeps nothing for one."""
    return not exporting() and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
