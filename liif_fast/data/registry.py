"""Names of datasets and wrappers, as a YAML configuration writes them."""

import inspect
from collections.abc import Callable
from typing import Any

REGISTRY: dict[str, Callable[..., Any]] = {}


def register(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a class or function known to configurations under a name.

    Args:
        name: what a specification's `name` says, such as "image-folder".

    Returns:
        A decorator that returns what it decorates.
    """

    def decorate(factory: Callable[..., Any]) -> Callable[..., Any]:
        REGISTRY[name] = factory
        return factory

    return decorate


def check(spec: Any, place: str, given: tuple[str, ...] = ()) -> None:
    """Check a specification without making anything of it.

    Args:
        spec: `{"name": ..., "args": {...}}`; args may be absent.
        place: where it stands in the configuration, for messages.
        given: arguments that the caller adds to args (a wrapper's `dataset`).

    Raises:
        ValueError: if the name is not known, or an argument unknown or missing.
    """
    if not isinstance(spec, dict) or "name" not in spec:
        raise ValueError(f"{place}: expected a mapping with a name and args, got {spec!r}")
    for key in spec:
        if key not in ("name", "args"):
            raise ValueError(f"{place}: unknown key '{key}' (expected name, args)")
    if spec["name"] not in REGISTRY:
        raise ValueError(f"{place}.name: unknown name '{spec['name']}' (known: {', '.join(sorted(REGISTRY))})")
    args = spec.get("args") or {}
    if not isinstance(args, dict):
        raise ValueError(f"{place}.args: expected a mapping, got {args!r}")
    factory = REGISTRY[spec["name"]]
    parameters = [p for p in inspect.signature(factory).parameters.values() if p.name not in given]
    for key in args:
        if key not in [p.name for p in parameters]:
            known = ", ".join(p.name for p in parameters)
            raise ValueError(f"{place}.args: unknown key '{key}' ({spec['name']} takes {known})")
    for p in parameters:
        if p.default is p.empty and p.name not in args:
            raise ValueError(f"{place}.args: '{p.name}' is missing ({spec['name']} needs it)")


def make(spec: dict[str, Any], **given: Any) -> Any:
    """Make what a specification names.

    Args:
        spec: `{"name": ..., "args": {...}}`; args may be absent.
        given: further arguments, such as a wrapper's `dataset`.

    Returns:
        The dataset or wrapper.

    Raises:
        ValueError: if the name is not known, or an argument unknown, missing or wrong.
    """
    check(spec, "spec", tuple(given))
    return REGISTRY[spec["name"]](**(spec.get("args") or {}), **given)
