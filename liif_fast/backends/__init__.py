"""Choose between the backends.

A backend is a module of this package with a NAME and the functions of `Backend`. Its import must be light (no driver,
no compiler, no Triton); heavy work waits for `can_run` or the call itself. To add a backend, add its name to `MODULES`.
A backend that runs operators of `liif_fast.ops` on a GPU maps their names to functions in `OPERATORS`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from liif_fast.backends import verdict
from liif_fast.call import Call, Switches, Window, exporting, exporting_onnx, vmapped, without_autocast

logger = logging.getLogger("liif_fast")

MODULES = {"cuda": "cuda", "triton": "triton", "cpu": "cpu", "torch": "factorised", "reference": "reference"}
NAMES = tuple(MODULES)
# `auto` takes these on every machine, fastest first; torch runs every call outside of torch.func.vmap.
AUTO = ("cpu", "torch")
# `auto` takes these only on a machine where `liif-fast qualify` has passed them and found them faster.
QUALIFIED = ("cuda", "triton")
NO_VERDICT = "the fused GPU kernels are off until `liif-fast qualify` has passed them here, which takes up to 5 minutes"
OFF = "off in auto until `liif-fast qualify` has passed it here"
NO_ONNX = (
    "torch.onnx.export has no translation of liif_fast's operators: `liif-fast export MODEL OUT.onnx` or "
    "liif_fast.export_onnx(model, path) writes a LIIF in standard operators, with any registered encoder"
)
# Cost of a gathered and unfolded row relative to a convolved latent. The multiply-adds are the same (9*C*hidden), but
# the row's 9*C values are collected one by one. On a CPU (C = 64, hidden 256, map 96x96) both forms take the same time
# at a ratio of 1 (backend cpu) to 3 (backend torch).
GATHERED_ROW = 2
LONGEST_GRID = 1 << 30  # the GPU kernels number a grid's rows and columns in 32 bits


class RefusedError(RuntimeError):
    """Report that the named backend cannot run a call."""


class Backend(Protocol):
    """Declare the functions of a backend module; every argument has been validated."""

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
        region: Window,
        cell: Tensor | None,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        switches: Switches,
        recompute: bool | None,
    ) -> Tensor: ...  # with PLACES = True also place, with EXTENTS = True also extent, as of `Call`

    def gather_corners(
        self, feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches
    ) -> tuple[Tensor, Tensor]: ...

    def fused_mlp(
        self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], recompute: bool | None
    ) -> Tensor: ...


if TYPE_CHECKING:  # `_import` cannot compare a module with the protocol; `cuda` has only a part of it
    from liif_fast.backends import cpu, factorised, reference, triton

    _whole: tuple[Backend, ...] = (cpu, factorised, reference, triton)


def _import(name: str) -> Backend | str:
    try:
        return cast(Backend, importlib.import_module(f"{__name__}.{MODULES[name]}"))
    except ImportError as error:
        return f"cannot be imported: {error}"


_backends: dict[str, Backend | str] = {}  # a module, or the reason why it cannot be imported
_said: set[str] = set()


def load() -> None:
    """Import every backend module (light by contract) and register its operators; `liif_fast.functional` does so."""
    for name in NAMES:
        _backends[name] = _import(name)
    found = [operator for backend in _backends.values() for operator in getattr(backend, "OPERATORS", ())]
    for operator in dict.fromkeys(found):
        torch.library.impl(f"liif_fast::{operator}", "CUDA", runner(operator))


def runner(operator: str) -> Callable[..., Any]:
    """Return the kernel of an operator: it runs the backend that its last argument names."""

    def run(*args: Any) -> Any:
        *rest, name = args
        operators = getattr(_backends.get(name), "OPERATORS", {})
        if operator not in operators:
            device = rest[0].device
            raise RuntimeError(f"liif_fast: {operator} has no kernel for {device} in the backend {name or 'cpu'!r}")
        with without_autocast(rest[0]):  # a backward pass within autocast would round float32 products
            return operators[operator](*rest)

    return run


def ask(name: str, call: Call) -> tuple[bool, str]:
    """Ask the backend `name` whether it can run `call`; return (can run, reason)."""
    backend = _backends[name]
    if isinstance(backend, str):
        return False, backend
    if not hasattr(backend, call.op):
        return False, f"has no {call.op}"
    if call.place is not None and not getattr(backend, "PLACES", False):
        return False, "renders whole feature maps only, not a part of one"
    if call.extent is not None and not getattr(backend, "EXTENTS", False):
        return False, "renders grids over the whole map only, not over a fractional part of it"
    if name in QUALIFIED and call.grid and max(call.grid) >= LONGEST_GRID:
        return False, f"takes grids of less than {LONGEST_GRID} a side, got {call.grid[0]}x{call.grid[1]}"
    return backend.can_run(call)


def _say_once(message: str, level: int = logging.INFO) -> None:
    if message not in _said:
        _said.add(message)
        logger.log(level, message)


def order(call: Call, *others: Call) -> tuple[str, ...]:
    """Return the backends that "auto" tries for a call: those qualified as faster, the fastest first, then AUTO.

    An exported program gets only AUTO, because it may run on other machines. Under torch.func.vmap there is only the
    reference, because the other backends write results in place, which vmap does not allow for all tensors.

    Args:
        call: the call.
        others: further calls for the same backend, which it must run correctly but need not run faster.
    """
    if exporting():
        return AUTO
    if vmapped():
        return ("reference",)
    names = verdict.faster(call.device.type, call.device.index, *[_need(each) for each in (call, *others)])
    if not torch.compiler.is_compiling():
        _say_what_is_off(call, names)
    return (*names, *AUTO)


def _need(call: Call) -> verdict.Need:
    return call.op, call.autocast or call.dtype, call.requires_grad


def _say_what_is_off(call: Call, names: Sequence[str]) -> None:
    """Log once that fused kernels wait for a verdict, or why a verdict excludes them from this kind of call."""
    kind, index = call.device.type, call.device.index
    if verdict.read(kind, index) is None:
        due = kind == "cuda" and NO_VERDICT not in _said and verdict.wanted()
        if due and any(ask(name, call)[0] for name in QUALIFIED):
            _say_once(NO_VERDICT, logging.WARNING)
    elif logger.isEnabledFor(logging.INFO):
        for name in QUALIFIED:
            if name not in names and (of := verdict.standing(kind, index, name, _need(call))):
                _say_once(f"backend {name} is not used for {call.op}: {verdict.says(of)}")


def choose(call: Call, name: str) -> Backend:
    """Return the backend to run `call`: the named one, or with "auto" the fastest that can.

    Raises:
        ValueError: no backend has that name.
        RefusedError: the named backend cannot run this call, or torch.onnx.export traces it; the message says why.
    """
    if exporting_onnx():
        raise RefusedError(NO_ONNX)
    if name not in ("auto", *NAMES):
        raise ValueError(f"backend must be one of {', '.join(('auto', *NAMES))}, got {name!r}")
    for candidate in order(call) if name == "auto" else (name,):
        can, reason = ask(candidate, call)
        if can:
            return cast(Backend, _backends[candidate])
        if name == "auto" and not torch.compiler.is_compiling():
            _say_once(f"backend {candidate} is not used for {call.op}: {reason}")
    raise RefusedError(f"backend {name!r} cannot run this {call.op}: {reason}")


class Explanation(NamedTuple):
    """Hold every backend's answer to a call; it prints as a table."""

    chosen: str
    answers: tuple[tuple[str, bool, str], ...]  # name, can run, reason

    def __str__(self) -> str:
        def verdict(name: str, can: bool) -> str:
            return "chosen" if name == self.chosen else "can run" if can else "refused"

        return "\n".join(f"{name:<10}{verdict(name, can):<9}{reason}".rstrip() for name, can, reason in self.answers)


def explain(call: Call, name: str) -> Explanation:
    """Return every backend's answer to `call`, and the backend that `name` (or "auto") chooses, "" if none."""
    answers = tuple((each, *_answer(each, call)) for each in NAMES)
    can_run = [each for each, can, _ in answers if can]
    wanted = order(call) if name == "auto" else (name,)
    return Explanation(next((each for each in wanted if each in can_run), ""), answers)


def _answer(name: str, call: Call) -> tuple[bool, str]:
    """Return a backend's answer; if it can run the call and needs a verdict, the reason includes the verdict."""
    can, reason = ask(name, call)
    if not can or name not in QUALIFIED or name in AUTO:
        return can, reason
    of = verdict.standing(call.device.type, call.device.index, name, _need(call))
    return True, f"{reason}; {verdict.says(of) if of else OFF}"


def factorises(latents: int, rows: int) -> bool:
    """Return whether to convolve the first layer over the whole map instead of applying it to gathered rows.

    Args:
        latents: H*W, the positions of one map.
        rows: K*Q, the (query, corner) pairs that read it.

    Returns:
        True for the factorised form, which costs H*W; False for the direct form, which costs GATHERED_ROW * K*Q. An
        exported program always takes the factorised form, because it must serve every size.
    """
    return exporting() or rows * GATHERED_ROW >= latents


def kept(count: int, elements: int, dtype: torch.dtype, train: bool, recompute: bool | None, limit: int) -> int:
    """Return how many of `count` queries (or rows) keep their `elements` activations each for the backward pass.

    With recompute=False all keep them, with recompute=True none. By default as many do as fit into `limit` bytes, a
    multiple of 16, so that the rows after them are aligned in memory as well.
    """
    if not train or recompute:
        return 0
    if recompute is None and elements:
        return torch.sym_min(count, limit // (elements * dtype.itemsize) // 16 * 16)
    return count
