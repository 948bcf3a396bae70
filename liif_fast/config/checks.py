"""Check the values of a configuration; every message begins with the value's place."""

import math
from collections.abc import Collection
from typing import Any


class WrongTypeError(ValueError, TypeError):
    """A value has the wrong type."""


def mapping(value: Any, place: str, known: Collection[str], needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a value after checking that it is a mapping with all needed keys and no unknown one."""
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected a mapping, got {value!r:.80}")
    for key in value:
        if key not in known:
            raise ValueError(f"{place}: unknown key '{key}' (known: {', '.join(known)})")
    for key in needed:
        if value.get(key) is None:
            raise ValueError(f"{place}: '{key}' is missing")
    return value


def as_number(text: str) -> int | float | str:
    """Parse a string as an int or a float; return any other string unchanged."""
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


def number(
    values: dict[str, Any],
    key: str,
    place: str = "",
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    whole: bool = False,
) -> None:
    """Check that a value, if present, is a number in its range; parse it in place if it is a string."""
    value = values.get(key)
    if value is None:
        return
    name = f"{place}.{key}" if place else key
    if isinstance(value, str):
        value = values[key] = as_number(value)
    kind = int if whole else (int, float)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name}: expected a {'whole ' if whole else ''}number, got {value!r:.80}")
    if not (value > above and value >= least and value < below):
        bounds = [f"above {above}"] * (above > -math.inf) + [f"at least {least}"] * (least > -math.inf)
        bounds += [f"below {below}"] * (below < math.inf)
        raise ValueError(f"{name}: must be {' and '.join(bounds)}, got {value}")


def one_of(values: dict[str, Any], key: str, known: Collection[Any]) -> None:
    """Check that a value, if present, is a known one; True is not 1."""
    value = values.get(key)
    if value is not None and not any(value == one and type(value) is type(one) for one in known):
        written = ["true" if one is True else "false" if one is False else str(one) for one in known]
        raise ValueError(f"{key}: expected null, {', '.join(written[:-1])} or {written[-1]}, got {value!r:.80}")
