"""Build models from specs, `{'name': str, 'args': {...}}`; in a checkpoint the weights are under 'sd'."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from liif_fast.config.registry import Registry
from liif_fast.layers import MLP

_registry = Registry()
register = _registry.register
register("mlp")(MLP)


def make(spec: Mapping[str, Any], args: Mapping[str, Any] | None = None, load_sd: bool = False) -> nn.Module:
    """Build the model of a spec.

    Args:
        spec: `{'name': str, 'args': {...}}`; with `load_sd` also `'sd'`, its state_dict.
        args: arguments that extend or override the spec's own.
        load_sd: load `spec['sd']`, strictly.

    Returns:
        The model; its attribute `spec` holds the name and arguments it was built from.

    Raises:
        TypeError: the spec or its arguments have the wrong type.
        ValueError: a name or argument is unknown, an argument is missing, or `load_sd` finds no 'sd'.
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
    model: Any = _registry.make(plain)
    model.spec = copy.deepcopy(plain)
    if load_sd:
        model.load_state_dict(spec["sd"])
    return model


def names() -> list[str]:
    """Return all registered names, sorted."""
    return sorted(_registry.factories)
