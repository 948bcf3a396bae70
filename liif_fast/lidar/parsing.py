"""Convert the values in a file of points or of a sensor; errors name the key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")


def value(convert: Callable[[Any], _T], key: str, text: Any, expected: str) -> _T:
    """Return convert(text); raise ValueError that names the key, what was expected and what came."""
    try:
        return convert(text)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{key} must be {expected}, got {text!r:.40}") from error


def numbers(words: list[bytes]) -> np.ndarray:
    """Return the numbers of an ascii file's words, float64 [N]; ValueError names the first that is not one."""
    try:
        return np.array(words, np.float64)
    except ValueError:
        for at, word in enumerate(words):
            value(float, f"number {at + 1} of its data", word.decode("ascii", "replace"), "a number")
        raise
