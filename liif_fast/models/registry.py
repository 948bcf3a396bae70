"""Build models from specs, `{'name': str, 'args': {...}}`; in a checkpoint the weights are under 'sd'."""

import copy
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from liif_fast.config.registry import Registry
from liif_fast.layers import MLP


class TooLargeError(Exception):
    """A spec describes a model with too many tensors."""


_registry = Registry()
register = _registry.register
register("mlp")(MLP)


def make(
    spec: Mapping[str, Any], args: Mapping[str, Any] | None = None, load_sd: bool = False, *, place: str = "spec"
) -> nn.Module:
    """Build the model of a spec.

    Args:
        spec: `{'name': str, 'args': {...}}`; with `load_sd` also `'sd'`, its state_dict.
        args: arguments that extend or override the spec's own.
        load_sd: load `spec['sd']`, strictly.
        place: what errors call the spec.

    Returns:
        The model; its attribute `spec` holds the name and arguments it was built from.

    Raises:
        TypeError: the spec or its arguments have the wrong type.
        ValueError: a name or argument is unknown, an argument is missing, the model refuses a value, or `load_sd` finds
            no 'sd'.
    """
    if not isinstance(spec, Mapping):
        raise TypeError(
            f"spec must be a mapping with 'name' and 'args', got {type(spec).__name__}; register your own class with "
            "liif_fast.models.register and give its name"
        )
    if load_sd and "sd" not in spec:
        raise ValueError(f"spec of {spec.get('name')!r} has no 'sd' to load")
    merged = spec.get("args")
    if merged is None or isinstance(merged, Mapping):
        merged = copy.deepcopy({**(merged or {}), **(args or {})})
    plain = {"name": spec.get("name"), "args": merged}
    model: Any = _registry.make(plain, place)
    model.spec = copy.deepcopy(plain)
    if load_sd:
        model.load_state_dict(spec["sd"])
    return model


def outline(spec: Mapping[str, Any], most: int, *, place: str = "spec") -> nn.Module:
    """Build the model of a spec without memory and random numbers, on the meta device.

    Args:
        spec: as for `make`, which lists the errors.
        most: number of parameters, counted as tensors, that the model may have.
        place: what errors call the spec.

    Raises:
        TooLargeError: it has more; a number in a spec can ask for any amount.
    """
    thread, left = threading.get_ident(), most

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        if threading.get_ident() == thread:
            left -= 1
            if left < 0:
                raise TooLargeError(f"it describes a model with more than {most} tensors")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            return make(spec, place=place)
    finally:
        hook.remove()


def names() -> list[str]:
    """Return all registered names, sorted."""
    return sorted(_registry.factories)
