"""The operators: one schema, one fake and one gradient each, whatever implements them.

An operator that several backends implement says with its last argument, `backend`, which of them to run. Under the key
CPU lie the C++ kernels (csrc/cpu), which None means. Under CUDA lies one kernel, which calls the backend that the
argument names (`liif_fast.backends`). An operator is defined here, so that it can be traced without the extension; its
gradient is an autograd.Function outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FLAGS = (torch.Tag.pt2_compliant_tag,)
schemas: dict[str, str] = {}  # of every operator, by name


def define(name: str, schema: str, fake: Callable[..., Any] | None = None) -> Any:
    """Define the operator liif_fast::`name` and return its overload; without a fake it cannot be traced."""
    schemas[name] = schema
    torch.library.define(f"liif_fast::{name}", schema, tags=FLAGS)
    if fake is not None:
        torch.library.register_fake(f"liif_fast::{name}", fake)
    return getattr(torch.ops.liif_fast, name).default


define("cpu_isa", "() -> str")
define("cpu_has_bfloat16", "() -> bool")


def wide(like: Tensor, *shape: int) -> Tensor:
    """Return an empty tensor like another, but at least float32: outputs and gradients of parameters are."""
    return like.new_empty(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def to_inputs(grads: Sequence[Tensor | None], inputs: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Cast each wanted gradient to its input's dtype; the others become None."""
    return [
        grad.to(like.dtype) if grad is not None and want else None
        for grad, like, want in zip(grads, inputs, wanted, strict=True)
    ]


def refuse_second_order() -> None:
    """Raise in a backward pass that is itself to be differentiated: it would silently drop terms."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("the fused kernels have no second derivative: use backend='reference'")
