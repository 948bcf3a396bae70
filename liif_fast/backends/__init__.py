"""The backends, what a call looks like to them, and the choice between them.

A backend is a module of this package with a NAME and the functions of `Backend`. Importing it must be light (no
driver, no compiler, no Triton); what is heavy waits until `can_run` or the call itself. To add one, add its name to
`NAMES`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol, cast

import torch as _torch  # the name `torch` is the backend's, once it is imported
from torch import Tensor

logger = logging.getLogger("liif_fast")

NAMES = ("cuda", "triton", "cpu", "torch", "reference")
# Fastest first; torch runs everything. "cuda" and "triton" are to come first here, each once its tests and
# benchmarks/gpu_check.py have passed on a GPU (and cuda is faster than triton there): this line is the one switch, and
# the backends' own answers (`explain`) say that they are off.
AUTO = ("cpu", "torch")


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
    """What a backend is told about a call before it says whether it can run it."""

    op: str  # "decode", "render", "gather_corners" or "fused_mlp"
    device: _torch.device
    dtype: _torch.dtype  # of feat (of x for fused_mlp)
    shape: tuple[int, ...]  # of feat [B, C, H, W] (of x for fused_mlp)
    queries: int  # Q, per image; rows of x for fused_mlp
    widths: tuple[int, ...]  # outputs of each layer; () for gather_corners
    switches: Switches
    coord_dtype: _torch.dtype  # of coord and cell
    autocast: _torch.dtype | None  # the autocast dtype where autocast applies
    requires_grad: bool  # any gradient is wanted
    coord_requires_grad: bool  # a gradient for coord or cell is wanted
    place: Place | None = None  # of a render: where feat lies in a larger map


class Backend(Protocol):
    """The functions of a backend module; every argument has been validated."""

    NAME: str

    def can_run(self, call: Call) -> tuple[bool, str]: ...

    def decode(
        self,
        feat: Tensor,
        coord: Tensor,
        cell: Tensor | None,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        switches: Switches,
        recompute: bool | None,
    ) -> Tensor: ...

    def render(
        self,
        feat: Tensor,
        size: tuple[int, int],
        region: tuple[int, int, int, int],
        cell: Tensor | None,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        switches: Switches,
        recompute: bool | None,
    ) -> Tensor: ...  # with PLACES = True in the module also place: Place | None = None, at the end

    def gather_corners(
        self, feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches
    ) -> tuple[Tensor, Tensor]: ...

    def fused_mlp(
        self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], recompute: bool | None
    ) -> Tensor: ...


def autocast_dtype(tensor: Tensor) -> _torch.dtype | None:
    """Return the dtype that autocast would compute in for `tensor`, None where it leaves it alone (float64 too)."""
    kind = tensor.device.type
    if kind == "meta" or not _torch.is_autocast_enabled(kind) or tensor.dtype == _torch.float64:
        return None
    return _torch.get_autocast_dtype(kind)


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves operations on `tensor` alone."""
    if autocast_dtype(tensor) is None:
        return nullcontext()
    return _torch.autocast(tensor.device.type, enabled=False)


def transformed() -> bool:
    """Say whether a torch.func transform (grad, vmap, ...) runs the call, which operators of our own do not know."""
    return not _torch.compiler.is_compiling() and _torch._C._functorch.peek_interpreter_stack() is not None


def exporting() -> bool:
    """Say whether torch.export traces the call.

    The flag behind `torch.compiler.is_exporting`, which is also true within torch.compile of PyTorch 2.11: training
    would be taken for inference there, and have no gradients.
    """
    return bool(_torch.compiler._is_exporting_flag)


def _import(name: str) -> Backend | str:
    try:
        return cast(Backend, importlib.import_module(f"{__name__}.{name}"))
    except ImportError as error:
        return f"cannot be imported: {error}"


_backends: dict[str, Backend | str] = {}  # a module, or why there is none
_said: set[str] = set()


def load() -> None:
    """Import every backend module (light by contract); `liif_fast.functional` does so once."""
    for name in NAMES:
        _backends[name] = _import(name)


def ask(name: str, call: Call) -> tuple[bool, str]:
    """Return the answer of the backend `name` to `call`: (can run, reason)."""
    backend = _backends[name]
    if isinstance(backend, str):
        return False, backend
    if call.place is not None and not getattr(backend, "PLACES", False):
        return False, "renders whole feature maps only, not a part of one"
    return backend.can_run(call)


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.info(message)


def choose(call: Call, name: str) -> Backend:
    """Return the backend to run `call`: the one named, or with "auto" the fastest that can.

    Raises:
        ValueError: no backend has that name.
        RuntimeError: the backend named cannot run this call; the message has its reason.
    """
    if name not in ("auto", *NAMES):
        raise ValueError(f"backend must be one of {', '.join(('auto', *NAMES))}, got {name!r}")
    for candidate in AUTO if name == "auto" else (name,):
        can, reason = ask(candidate, call)
        if can:
            return cast(Backend, _backends[candidate])
        if name == "auto" and not _torch.compiler.is_compiling():
            _say_once(f"backend {candidate} is not used for {call.op}: {reason}")
    raise RuntimeError(f"backend {name!r} cannot run this {call.op}: {reason}")


class Explanation(NamedTuple):
    """Every backend's answer to a call; prints as a table."""

    chosen: str
    answers: tuple[tuple[str, bool, str], ...]  # name, can run, reason

    def __str__(self) -> str:
        def verdict(name: str, can: bool) -> str:
            return "chosen" if name == self.chosen else "can run" if can else "refused"

        return "\n".join(f"{name:<10}{verdict(name, can):<9}{reason}".rstrip() for name, can, reason in self.answers)


def explain(call: Call, name: str) -> Explanation:
    """Return every backend's answer to `call`, and which one `name` (perhaps "auto") chooses, "" if none."""
    answers = tuple((each, *ask(each, call)) for each in NAMES)
    can_run = [each for each, can, _ in answers if can]
    wanted = AUTO if name == "auto" else (name,)
    return Explanation(next((each for each in wanted if each in can_run), ""), answers)
