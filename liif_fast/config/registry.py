"""Make objects from specifications in configurations and model files: `{'name': str, 'args': {...}}`."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from liif_fast.config.checks import WrongTypeError, as_number
from liif_fast.files import reason

F = TypeVar("F", bound=Callable[..., Any])

_LISTS = (Sequence, list, tuple)  # YAML has one kind


class Registry:
    """Classes and functions by the name that a specification gives."""

    def __init__(self, *, text_numbers: bool = False) -> None:
        self.text_numbers = text_numbers
        self.factories: dict[str, Callable[..., Any]] = {}

    def register(self, name: str, *, replace: bool = False) -> Callable[[F], F]:
        """Return a decorator that registers a class or function under a name.

        Raises:
            ValueError: the name is taken and `replace` is not set.
        """

        def decorate(factory: F) -> F:
            if name in self.factories and not replace:
                raise ValueError(f"the name {name!r} is taken already; pass replace=True to replace it")
            self.factories[name] = factory
            return factory

        return decorate

    def check(self, spec: Any, place: str, given: Sequence[str] = ()) -> None:
        """Check a specification; with `text_numbers`, parse strings in its arguments where a number is expected."""
        if not isinstance(spec, Mapping) or "name" not in spec:
            raise WrongTypeError(f"{place}: expected a mapping with a name and args, got {spec!r:.80}")
        for key in spec:
            if key not in ("name", "args"):
                raise ValueError(f"{place}: unknown key '{key}' (expected name, args)")
        name, args = spec["name"], spec.get("args") or {}
        if not isinstance(name, str) or name not in self.factories:
            known = ", ".join(sorted(self.factories))
            raise ValueError(
                f"{place}.name: unknown name {name!r} (known: {known}); to use your own, import its module first "
                "(--plugin, or plugins in a configuration)"
            )
        if not isinstance(args, dict):
            raise WrongTypeError(f"{place}.args: expected a mapping, got {args!r:.80}")
        parameters = [p for p in inspect.signature(self.factories[name]).parameters.values() if p.name not in given]
        check_arguments(args, parameters, name, f"{place}.args", self.text_numbers)

    def make(self, spec: Any, place: str = "spec", /, **given: Any) -> Any:
        """Call the registered factory with the specification's arguments and `given`.

        A factory names the place of a specification among its arguments `spec.args.<argument>`; errors have it within
        `place`.

        Raises:
            WrongTypeError: the specification or an argument has the wrong type.
            ValueError: a name or an argument is unknown or missing, or the factory refuses a value.
        """
        self.check(spec, place, tuple(given))
        args = spec.get("args") or {}
        try:
            return self.factories[spec["name"]](**args, **given)
        except (ValueError, ArithmeticError, MemoryError) as error:
            text = reason(error)
            if re.match(r"spec[.:]", text):
                text = place + text.removeprefix("spec")
            else:
                named = re.match(r"\w*", text)[0]  # type: ignore[index]  # it may be empty, but it matches
                text = f"{place}{f'.args.{named}' if named in args else ''}: {text}"
            raise (WrongTypeError if isinstance(error, WrongTypeError) else ValueError)(text) from error


def check_arguments(
    args: dict[str, Any], parameters: Sequence[inspect.Parameter], name: str, place: str, text_numbers: bool = True
) -> None:
    """Check arguments of `name` by its parameters; with `text_numbers`, parse strings where a number is expected."""
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    free = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in args:
        if not free and key not in [p.name for p in named]:
            known = ", ".join(p.name for p in named)
            raise ValueError(f"{place}: unknown key '{key}' ({name} takes {known})")
    for p in named:
        if p.name in args:
            if text_numbers and isinstance(args[p.name], str) and not _fits(args[p.name], p.annotation):
                args[p.name] = as_number(args[p.name])
            if not _fits(args[p.name], p.annotation):
                raise WrongTypeError(f"{place}.{p.name}: expected {_words(p.annotation)}, got {args[p.name]!r:.80}")
        elif p.default is p.empty:
            raise ValueError(f"{place}: '{p.name}' is missing ({name} needs it)")


def _words(kind: Any) -> str:
    """Name an annotated type for an error message."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in inner)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is tuple and inner and ... not in inner:
        return f"list of {len(inner)} ({', '.join(map(_words, inner))})"
    if origin in _LISTS:
        return " of ".join(["list", *(_words(one) for one in inner if one is not ...)])
    return {NoneType: "null", Any: "anything", float: "finite number"}.get(kind) or origin.__name__.lower()


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a YAML value matches an annotated type."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple and inner and ... not in inner:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin in _LISTS:
        return isinstance(value, list | tuple) and all(
            _fits(item, one) for item in value for one in inner if one is not ...
        )
    if origin in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (origin is float and isinstance(value, float) and math.isfinite(value))
    return isinstance(value, origin) if origin in (bool, str, dict, Mapping, NoneType) else True
