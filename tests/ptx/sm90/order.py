"""Track what happened before what, by vector clocks, and check shared memory with them.

Actors are the warps of a cluster, their matrix units and their copies. An access is right if its actor knows of all
that it depends on: by barriers, waits and, between the proxies, fences. That does not depend on who was faster in this
run.
"""

from __future__ import annotations

import numpy as np

from ..memory import Fault

START = 0x400  # where a block's shared memory begins: any multiple of 1024
RANK = 24  # bits of an address below the rank of its block in the cluster
WARPS = 12  # of a block
COPIES = 16  # actors of a block that copy, one a full barrier and block that it copies to
WORD = 4  # bytes that are checked together


class Order:
    """Hold, for each actor, its last known event, and the last one that fences make known to the other proxy."""

    def __init__(self, actors: int) -> None:
        self.seen = np.zeros(actors, np.int32)
        self.fenced = np.zeros(actors, np.int32)

    def learn(self, other: Order) -> None:
        np.maximum(self.seen, other.seen, out=self.seen)
        np.maximum(self.fenced, other.fenced, out=self.fenced)

    def fence(self) -> None:
        np.maximum(self.seen, self.fenced, out=self.fenced)

    def known(self, asynchronous: bool, generic: int) -> np.ndarray:
        """Return, of each actor, the last event that an access may rely on; the first `generic` actors are warps."""
        known = self.seen.copy()
        if asynchronous:
            known[:generic] = self.fenced[:generic]
        return known


class Shared:
    """Hold a block's shared memory, with the last writer of each word, when it wrote, and each actor's last read."""

    def __init__(self, size: int, cluster: int) -> None:
        words = -(-size // WORD)
        self.bytes = np.full(size, 0xFF, np.uint8)
        self.generic = cluster * WARPS
        self.writer = np.full(words, -1)
        self.written = np.zeros(words, np.int32)
        self.reads = np.zeros((2 * self.generic, words), np.int32)  # by warps and matrix units

    def words(self, address: np.ndarray, size: int) -> np.ndarray:
        """Return the words of accesses of `size` bytes each."""
        at = address - START
        if (at < 0).any() or (at + size > self.bytes.size).any():
            raise Fault(f"an access to shared memory outside of its {self.bytes.size} bytes")
        if (address % min(size, 16)).any():
            raise Fault(f"an access to shared memory is not aligned to {min(size, 16)} bytes")
        return (at[:, None] // WORD + np.arange(-(-size // WORD))).ravel()

    def after_write(self, words: np.ndarray, known: np.ndarray, what: str) -> None:
        if (self.written[words] > known[self.writer[words]]).any():
            raise Fault(f"a race: {what} of shared memory whose last write need not be complete")

    def read(self, words: np.ndarray, actor: int, now: int, known: np.ndarray) -> None:
        """Check and note a read."""
        if (self.writer[words] < 0).any():
            raise Fault("a read of shared memory that was never written")
        self.after_write(words, known, "read")
        self.reads[actor, words] = now

    def write(self, words: np.ndarray, actor: int, now: int, known: np.ndarray) -> None:
        """Check and note a write."""
        self.after_write(words, known, "write")
        if (self.reads[:, words] > known[: len(self.reads), None]).any():
            raise Fault("a race: write of shared memory that need not be read to the end")
        self.writer[words], self.written[words] = actor, now


class Barrier:
    """Hold arrivals by phases: those who wait for a phase learn what all who arrived at it knew."""

    def __init__(self, count: int, actors: int) -> None:
        self.count = self.pending = count
        self.bytes = self.phase = 0  # bytes expected of copies
        self.actors = actors
        self.gathered, self.opened = Order(actors), Order(actors)
        self.maker: tuple[int, int] | None = None  # actor and event that made an mbarrier
        self.published = False

    @property
    def at_rest(self) -> bool:
        return self.pending == self.count and not self.bytes

    def arrive(self, order: Order, count: int = 1) -> None:
        self.pending -= count
        if self.pending < 0:
            raise Fault("more arrivals at a barrier than it takes")
        self.gathered.learn(order)
        self.complete()

    def complete(self) -> None:
        """Open once all actors and all bytes have arrived."""
        if self.pending == 0 and self.bytes == 0:
            self.phase += 1
            self.pending = self.count
            self.opened.learn(self.gathered)
            self.gathered = Order(self.actors)

    def usable(self, known: np.ndarray, asynchronous: bool = False) -> None:
        """Check that the actor knows the barrier's initialisation."""
        if self.maker is None or (asynchronous and self.published):
            return
        if self.maker[1] > known[self.maker[0]]:
            raise Fault("an mbarrier is used that need not be initialised")
