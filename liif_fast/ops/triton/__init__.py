"""The operators of the Triton kernels: schemas, shapes (fakes) and gradients; kernels/ implements them.

They have names of their own (`liif_fast::triton_decode`), because the C++ kernels own the CPU's side of the others and
Triton's interpreter takes CPU tensors. A kernel module, and with it Triton, is imported by the first call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast.ops import define


def operator(name: str, schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define liif_fast::triton_`name`, run by the function `name` of its kernel module, and return its overload."""

    def run(*args: Any) -> Any:
        module = importlib.import_module(f"liif_fast.kernels.{name.removesuffix('_backward')}")
        return getattr(module, name)(*args)

    define(f"triton_{name}", schema)
    for key in ("CUDA", "CPU"):
        torch.library.impl(f"liif_fast::triton_{name}", key, run)
    torch.library.register_fake(f"liif_fast::triton_{name}", fake)
    return getattr(torch.ops.liif_fast, f"triton_{name}").default


def float32(like: Tensor, *shape: int) -> Tensor:
    """An empty float32 tensor on the device of `like`."""
    return like.new_empty(shape, dtype=torch.float32)


def saved(like: Tensor, weights: Sequence[Tensor], rows: int) -> Tensor:
    """What the hidden layers of `rows` rows save for the backward pass, [layers, rows, widest], empty."""
    return like.new_empty(len(weights) - 1, rows, max(weight.shape[0] for weight in weights[:-1]))


def cast(grads: Sequence[Tensor | None], inputs: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Gradients in the dtype of what they are of, where wanted."""
    return [
        grad.to(like.dtype) if grad is not None and want else None
        for grad, like, want in zip(grads, inputs, wanted, strict=True)
    ]
