"""The backends and the choice between them.

A backend is a module of this package, with a NAME and the functions of `Backend`. Importing it must be light (no
driver, no compiler, no Triton); what is heavy waits until `can_run` or the call itself. To add one, add its name to
`MODULES`. One that runs operators of `liif_fast.ops` on a GPU has their functions in `OPERATORS`, by name.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from liif_fast.call import Call, Switches, Window, exporting

logger = logging.getLogger("liif_fast")

MODULES = {"cuda": "cuda", "triton": "triton", "cpu": "cpu", "torch": "factorised", "reference": "reference"}
NAMES = tuple(MODULES)
# Fastest first; torch runs everything. "cuda" and "triton" are to come first here, each once its tests and
# benchmarks/gpu_check.py have passed on a GPU (and cuda is faster than triton there): this line is the one switch, and
# the backends' own answers (`explain`) say that they are off.
AUTO = ("cpu", "torch")
# A gathered and unfolded row costs this many times a convolved latent: the multiply-adds are the same (9*C*hidden),
# but its 9*C values are collected one by one. On a CPU (C = 64, hidden 256, map 96x96) both forms take the same time
# where this is 1 (backend cpu) to 3 (backend torch).
GATHERED_ROW = 2


class RefusedError(RuntimeError):
    """The backend named cannot run a call."""


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
        region: Window,
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


def _import(name: str) -> Backend | str:
    try:
        return cast(Backend, importlib.import_module(f"{__name__}.{MODULES[name]}"))
    except ImportError as error:
        return f"cannot be imported: {error}"


_backends: dict[str, Backend | str] = {}  # a module, or why there is none
_said: set[str] = set()


def load() -> None:
    """Import every backend module (light by contract) and register operators; `liif_fast.functional` does so once."""
    for name in NAMES:
        _backends[name] = _import(name)
    found = [operator for backend in _backends.values() for operator in getattr(backend, "OPERATORS", ())]
    for operator in dict.fromkeys(found):
        torch.library.impl(f"liif_fast::{operator}", "CUDA", runner(operator))


def runner(operator: str) -> Callable[..., Any]:
    """Return the kernel of an operator that runs it on the backend named by its last argument."""

    def run(*args: Any) -> Any:
        *rest, name = args
        operators = getattr(_backends.get(name), "OPERATORS", {})
        if operator not in operators:
            device = rest[0].device
            raise RuntimeError(f"liif_fast: {operator} has no kernel for {device} in the backend {name or 'cpu'!r}")
        return operators[operator](*rest)

    return run


def ask(name: str, call: Call) -> tuple[bool, str]:
    """Return the answer of the backend `name` to `call`: (can run, reason)."""
    backend = _backends[name]
    if isinstance(backend, str):
        return False, backend
    if not hasattr(backend, call.op):
        return False, f"has no {call.op}"
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
        RefusedError: the backend named cannot run this call; the message has its reason.
    """
    if name not in ("auto", *NAMES):
        raise ValueError(f"backend must be one of {', '.join(('auto', *NAMES))}, got {name!r}")
    for candidate in AUTO if name == "auto" else (name,):
        can, reason = ask(candidate, call)
        if can:
            return cast(Backend, _backends[candidate])
        if name == "auto" and not torch.compiler.is_compiling():
            _say_once(f"backend {candidate} is not used for {call.op}: {reason}")
    raise RefusedError(f"backend {name!r} cannot run this {call.op}: {reason}")


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


def factorises(latents: int, rows: int) -> bool:
    """Say whether the first layer is to be convolved over the whole map (else it is applied to gathered rows).

    Args:
        latents: H*W, the positions of one map.
        rows: K*Q, the (query, corner) pairs that read it.

    Returns:
        True for the factorised form, cost H*W (and in an exported program, which is to serve every size); False for the
        direct form, cost GATHERED_ROW * K*Q.
    """
    return exporting() or rows * GATHERED_ROW >= latents


def kept(count: int, elements: int, dtype: torch.dtype, train: bool, recompute: bool | None, limit: int) -> int:
    """Return how many of `count` queries (or rows), of `elements` activations each, keep them for the backward pass.

    All with recompute=False; by default so many as fit into `limit` bytes.
    """
    if not train or recompute:
        return 0
    if recompute is None and elements:
        return torch.sym_min(count, limit // (elements * dtype.itemsize))
    return count
