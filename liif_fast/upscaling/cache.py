"""Keep values within a budget of bytes."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Keep values up to a budget; the least recently used one goes first, the newest one always stays.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        """Return a value, now the most recently used, or None."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Keep a value of `size` bytes; replace the one with that key."""
        self.drop(key)
        self._kept[key] = value, size
        self.used += size
        while self.used > self.budget and len(self._kept) > 1:
            self.drop(next(iter(self._kept)))

    def drop(self, key: Hashable) -> None:
        """Forget a value, if it is there."""
        _, size = self._kept.pop(key, (None, 0))
        self.used -= size

    def __len__(self) -> int:
        return len(self._kept)
