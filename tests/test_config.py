"""Test the registry behind models, datasets and wrappers."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from liif_fast.config.checks import WrongTypeError
from liif_fast.config.registry import Registry


def free(first: int, *others: Any, flag: bool = False, **rest: Any) -> tuple[Any, ...]:
    return first, others, flag, rest


def typed(
    number: float = 1.0,
    names: Sequence[str] = (),
    bare: Sequence = (),  # type: ignore[type-arg]
    counts: list[int] | None = None,
    spec: Mapping[str, Any] | None = None,
    kind: Literal["a", "b"] = "a",
    pair: tuple[int, int] = (0, 0),
    several: tuple[int, ...] = (),
    later: "int" = 0,
) -> dict[str, Any]:
    return locals()


def test_free_arguments_are_neither_missing_nor_unknown():
    registry = Registry()
    registry.register("free")(free)
    assert registry.make({"name": "free", "args": {"first": 1, "other": 2}}, flag=True) == (1, (), True, {"other": 2})
    with pytest.raises(ValueError, match=r"spec\.args: 'first' is missing \(free needs it\)"):
        registry.make({"name": "free"})
    with pytest.raises(ValueError, match="'free' is taken already"):
        registry.register("free")(typed)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("number", True, "finite number"),
        ("number", float("inf"), "finite number"),
        ("several", [1, "a", 3], "list of int"),
        ("pair", [1, 2, 3], r"list of 2 \(int, int\)"),
        ("names", ["a", 1], "list of str"),
        ("names", "ab", "list of str"),
        ("bare", "ab", "list"),
        ("counts", [1, 2.0], "list of int or null"),
        ("spec", [1], "mapping or null"),
        ("kind", "c", "a or b"),
    ],
)
def test_types_are_those_annotated(key, value, expected):
    registry = Registry()
    registry.register("typed")(typed)
    good = {"number": 2, "names": ["a"], "bare": [1, "x"], "counts": [1], "spec": {}, "kind": "b"}
    good |= {"pair": [1, 2], "several": [], "later": "no check"}
    assert registry.make({"name": "typed", "args": good}) == good
    with pytest.raises(WrongTypeError, match=rf"^spec\.args\.{key}: expected {expected}, got "):
        registry.make({"name": "typed", "args": good | {key: value}})


def test_numbers_in_strings_only_where_asked_for():
    for text_numbers in (False, True):
        registry = Registry(text_numbers=text_numbers)
        registry.register("typed")(typed)
        spec = {"name": "typed", "args": {"number": "1e-4"}}
        if text_numbers:
            assert registry.make(spec)["number"] == 1e-4
        else:
            with pytest.raises(WrongTypeError, match="expected finite number, got '1e-4'"):
                registry.make(spec)
