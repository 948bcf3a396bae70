"""Names of datasets and wrappers, as a YAML configuration writes them."""

import inspect
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

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
    """Check a specification without making anything of it; a number written as a string becomes one.

    Args:
        spec: `{"name": ..., "args": {...}}`; args may be absent.
        place: where it stands in the configuration, for messages.
        given: arguments that the caller adds to args (a wrapper's `dataset`).

    Raises:
        ValueError: if the name is not known, or an argument unknown, missing or of another type than annotated.
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
        if p.name not in args:
            continue
        if isinstance(args[p.name], str) and not _fits(args[p.name], p.annotation):
            args[p.name] = number(args[p.name])
        if not _fits(args[p.name], p.annotation):
            raise ValueError(f"{place}.args.{p.name}: expected {_words(p.annotation)}, got {args[p.name]!r:.80}")


def number(text: str) -> int | float | str:
    """The number that a string says, an int if it is whole; the string itself if it says none."""
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


def _words(kind: Any) -> str:
    """An annotated type as the reader of a message knows it."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_words(one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return "null" if kind is NoneType else getattr(kind, "__name__", str(kind))


def _fits(value: Any, kind: Any) -> bool:
    """Whether value is of an annotated type, as far as YAML has it."""
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if origin is Literal:
        return value in get_args(kind)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if origin in (int, float):
        return isinstance(value, (int, float) if origin is float else int) and not isinstance(value, bool)
    return isinstance(value, origin) if origin in (bool, str, dict, NoneType) else True


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
