"""The native operators: schemas, shapes (fakes) and gradients; csrc/ implements them.

Each is defined here with its schema string, so that it exists for tracing without the extension, and gets its
gradient from an autograd.Function outside the operator.
"""

import torch

_define = torch.library.define
FLAGS = (torch.Tag.pt2_compliant_tag,)
schemas: dict[str, str] = {}  # of every operator, by name


def define(name: str, schema: str) -> None:
    """Define the operator liif_fast::`name` once."""
    schemas[name] = schema
    _define(f"liif_fast::{name}", schema, tags=FLAGS)


define("cpu_isa", "() -> str")
define("cpu_has_bfloat16", "() -> bool")


def refuse_second_order() -> None:
    """Raise in a backward pass that is itself to be differentiated: it would silently drop terms."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("the fused kernels have no second derivative: use backend='reference'")
