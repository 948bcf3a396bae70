"""Define the operators: one schema, one fake and one gradient each, for all implementations.

If several backends implement an operator, its last argument, `backend`, names the one to run. The key CPU holds the C++
kernels (csrc/cpu), selected by None. The key CUDA holds one kernel, which calls the named backend
(`liif_fast.backends`). Operators are defined in Python so that they can be traced without the extension. The gradient
is an autograd.Function outside the operator. An operator that returns several gradients takes `wanted`, a flag for each
of them in the same order. An unwanted gradient is not computed: it is returned empty, with the shape [0].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
FLAGS = (torch.Tag.pt2_compliant_tag,)
schemas: dict[str, str] = {}  # by the operator's name


def define(name: str, schema: str, fake: Callable[..., Any] | None = None) -> Any:
    """Define the operator liif_fast::`name` and return its overload; an operator without a fake cannot be traced."""
    schemas[name] = schema
    torch.library.define(f"liif_fast::{name}", schema, tags=FLAGS)
    if fake is not None:
        torch.library.register_fake(f"liif_fast::{name}", fake)
    return getattr(torch.ops.liif_fast, name).default


define("cpu_isa", "() -> str")
define("cpu_has_bfloat16", "() -> bool")
define("cpu_missing_amx", "() -> str")  # the reason why it cannot be used, or ""
define("cpu_use_amx", "(bool on) -> str")  # the same


def wide(like: Tensor, *shape: int) -> Tensor:
    """Return an empty tensor like another but at least float32, as outputs and gradients of parameters are."""
    return like.new_empty(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def in_turn(params: Sequence[T]) -> list[T]:
    """Put what belongs to all weights, then to all biases, into the order weight, bias, weight, ..."""
    layers = len(params) // 2
    return [each for pair in zip(params[:layers], params[layers:], strict=True) for each in pair]


def wide_in_turn(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of layers as a fake promises them: weight, bias, weight, ..., at least float32."""
    return [wide(each, *each.shape) for each in in_turn([*weights, *biases])]


def only(wanted: Sequence[bool], grads: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients that a fake promises, each unwanted one empty."""
    return [grad if want else grad.new_empty(0) for grad, want in zip(grads, wanted, strict=True)]


def to_inputs(grads: Sequence[Tensor | None], inputs: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Cast each wanted gradient to its input's dtype; the others become None."""
    return [
        grad.to(like.dtype) if grad is not None and want else None
        for grad, like, want in zip(grads, inputs, wanted, strict=True)
    ]


def refuse_second_order() -> None:
    """Raise in a backward pass that will itself be differentiated, because it would silently drop terms."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("the fused kernels have no second derivative: use backend='reference'")
