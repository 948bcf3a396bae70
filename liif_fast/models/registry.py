"""Models by name: a spec is `{'name': str, 'args': {...}}`, with the weights under 'sd' in a checkpoint."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

Factory = Callable[..., nn.Module]
F = TypeVar("F", bound=Factory)

_factories: dict[str, Factory] = {}


def register(name: str, *, replace: bool = False) -> Callable[[F], F]:
    """Make a class or function known to `make` under `name`.

    Args:
        name: what a spec's 'name' says.
        replace: allow a name that is taken already.

    Returns:
        A decorator that returns what it decorates.

    Raises:
        ValueError: the name is taken.
    """

    def decorate(factory: F) -> F:
        if name in _factories and not replace:
            raise ValueError(f"model name {name!r} is taken already; pass replace=True to replace it")
        _factories[name] = factory
        return factory

    return decorate


def make(spec: Mapping[str, Any], args: Mapping[str, Any] | None = None, load_sd: bool = False) -> nn.Module:
    """Build the model a spec names.

    Args:
        spec: `{'name': str, 'args': {...}}`; with `load_sd` also `'sd'`, its state_dict.
        args: arguments added to the spec's own, or in their place.
        load_sd: load `spec['sd']`, strictly.

    Returns:
        The model; its attribute `spec` is what it was built from (name and arguments, no weights).

    Raises:
        TypeError: the spec or its arguments have the wrong type.
        ValueError: unknown name, unknown or missing argument, or no 'sd' although asked for.
    """
    if not isinstance(spec, Mapping):
        raise TypeError(f"spec must be a mapping with 'name' and 'args', got {type(spec).__name__}")
    name = spec.get("name")
    if not isinstance(name, str) or name not in _factories:
        raise ValueError(
            f"unknown model name {name!r}; known names: {', '.join(sorted(_factories))}; a name of your own is known "
            "once its module has been imported (--plugin, or plugins in a configuration)"
        )
    own = spec.get("args")
    if own is not None and not isinstance(own, Mapping):
        raise TypeError(f"args of {name!r} must be a mapping, got {type(own).__name__}")
    if load_sd and "sd" not in spec:
        raise ValueError(f"spec of {name!r} has no 'sd' to load")
    merged = copy.deepcopy({**(own or {}), **(args or {})})
    _check_args(name, merged)
    model: Any = _factories[name](**merged)
    model.spec = {"name": name, "args": copy.deepcopy(merged)}
    if load_sd:
        model.load_state_dict(spec["sd"])
    return model


def names() -> list[str]:
    """All registered names, sorted."""
    return sorted(_factories)


def _check_args(name: str, args: dict[str, Any]) -> None:
    parameters = inspect.signature(_factories[name]).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = {p.name for p in parameters if p.name in known and p.default is p.empty}
    free = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [] if free else [key for key in args if key not in known]
    if unknown:
        listed = ", ".join(map(repr, unknown))
        raise ValueError(f"model {name!r} has no argument {listed}; known arguments: {', '.join(known)}")
    missing = sorted(required - set(args))
    if missing:
        raise ValueError(f"model {name!r} needs argument {', '.join(map(repr, missing))}")
    for parameter in parameters:
        _check_type(name, parameter, args)


def _check_type(name: str, parameter: inspect.Parameter, args: dict[str, Any]) -> None:
    """Refuse what a YAML or JSON file may well say instead of a number, a switch or a name."""
    kind = parameter.annotation
    if parameter.name not in args or kind not in (bool, int, float, str):
        return
    value = args[parameter.name]
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{parameter.name} of model {name!r} must be {kind.__name__}, got {value!r:.80}")
