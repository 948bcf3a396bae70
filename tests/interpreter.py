"""Take shortcuts through Triton's interpreter, which halve the time of the kernels' tests.

They cache what depends only on types and shapes. The names are private, and another version of Triton may lack them.
Then the tests only take longer: each function that lacks its name is left as it is.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl

Maker = Callable[[Any], Any]
TAKEN: list[tuple[Any, str, Any]] = []  # owner, name, Triton's own function
patched: set[tuple[bool, ...]] = set()


def find(path: str) -> Any:
    """Return what Triton has behind a dotted path, or None."""
    module, _, names = path.partition(":")
    try:
        return functools.reduce(getattr, names.split(".") if names else [], importlib.import_module(f"triton.{module}"))
    except (ImportError, AttributeError):
        return None


def shorten(path: str, name: str) -> Callable[[Maker], Maker]:
    """Replace a function of Triton, if there is one, by what the decorated one makes of it."""

    def decorate(make: Maker) -> Maker:
        owner = find(path)
        original = getattr(owner, "__dict__", {}).get(name)
        if original is not None:
            TAKEN.append((owner, name, original))
            setattr(owner, name, functools.wraps(original)(make(original)))
        return make

    return decorate


@shorten("runtime.interpreter", "_patch_lang")
def _patch_once(patch: Any) -> Any:
    """Patch Triton's modules once per launch, instead of at each call of a function in it."""

    def patch_once(function: Any) -> Any:
        names = function.__globals__.values()
        seen = tuple(any(each is module for each in names) for module in (tl, tl.core))
        if seen not in patched:
            patched.add(seen)
            return patch(function)

    return patch_once


@shorten("runtime.interpreter:GridExecutor", "__call__")
def _launch_anew(launch: Any) -> Any:
    def launch_anew(*args: Any, **options: Any) -> Any:
        patched.clear()
        return launch(*args, **options)

    return launch_anew


@shorten("runtime.interpreter", "_get_np_dtype")
def _look_up(dtype: Any) -> Any:
    """Look a type up by its name, instead of in a table made for the call."""
    known: dict[str, Any] = {}

    def look_up(kind: Any) -> Any:
        if kind.name not in known:
            known[kind.name] = dtype(kind)
        return known[kind.name]

    return look_up


@shorten("language.core:block_type", "__init__")
def _check_once(init: Any) -> Any:
    """Check a shape once."""
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def check_once(self: Any, element: Any, shape: Any) -> None:
        key = element.name, *(getattr(each, "value", each) for each in shape)
        if key not in known:
            init(self, element, shape)
            known[key] = {**vars(self)}
        vars(self).update(known[key], element_ty=element)

    return check_once


@shorten("language.core:tensor", "__init__")
def _make_shape_once(init: Any) -> Any:
    """Make the shape of a type's tensors once."""
    known: dict[str, dict[str, Any]] = {}

    def make_shape_once(self: Any, handle: Any, type: Any) -> None:
        if type.name not in known:
            init(self, None, type)
            known[type.name] = {**vars(self)}
        vars(self).update(known[type.name], handle=handle, type=type, dtype=type.scalar)

    return make_shape_once


@shorten("language.semantic:TritonSemantic", "binary_op_sanitize_overflow_impl")
def _check_in_debug(check: Any) -> Any:
    """Leave out eight operations after each one on integers, because only debug mode reads their results."""

    def check_in_debug(self: Any, *args: Any) -> None:
        if self.builder.options.debug:
            check(self, *args)

    return check_in_debug


@shorten("runtime.interpreter:ReduceOps", "apply_impl")
def _xor_at_once(reduce: Any) -> Any:
    """Reduce by exclusive or, as `tl.flip` does, in one operation of NumPy instead of element by element."""

    def xor_at_once(self: Any, operands: Any) -> Any:
        if self.combine_fn is not tl.standard._xor_combine:
            return reduce(self, operands)
        data = np.bitwise_xor.reduce(operands[0].handle.data, self.axis, keepdims=self.keep_dims)
        return self.to_tensor(data, operands[0].dtype)

    return xor_at_once
