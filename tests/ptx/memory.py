"""Global and shared memory of an executed kernel, each access checked."""

from __future__ import annotations

from collections import Counter

import numpy as np

# Where tensors begin, which 32 bits cannot tell, and what lies between two of them.
BASE, GAP = 1 << 40, 4096
SECTOR = 32  # bytes that memory moves at once
NEVER = -1


class Fault(Exception):
    """What a kernel must not do."""


class Global:
    """Tensors in one address space, with gaps between them that belong to no tensor."""

    def __init__(self, size: int = 1 << 23) -> None:
        self.bytes = np.zeros(size, np.uint8)
        self.starts: list[int] = []  # addresses behind BASE
        self.stops: list[int] = []
        self.homes: list[int] = []  # where in `bytes`
        self.next, self.skipped = GAP, 0
        self.sectors: Counter[str] = Counter()  # of 32 bytes that a warp's accesses touch, by kind

    def add(self, raw: np.ndarray, skip: int = 0) -> int:
        """Copy the bytes of a tensor in, and return its address, `skip` bytes and more behind the one before."""
        home, stop = self.next, self.next + raw.size
        if stop > self.bytes.size:
            raise ValueError(f"{stop} bytes of tensors do not fit into {self.bytes.size}")
        self.bytes[home:stop] = raw
        self.skipped += skip
        self.homes.append(home)
        self.starts.append(home + self.skipped)
        self.stops.append(stop + self.skipped)
        self.next = (stop + 2 * GAP) // 256 * 256
        return BASE + self.starts[-1]

    def read_back(self, address: int, size: int) -> np.ndarray:
        home = self.homes[self.starts.index(address - BASE)]
        return self.bytes[home : home + size]

    def places(self, address: np.ndarray, size: int, kind: str = "ld", warp: np.ndarray | int = 0) -> np.ndarray:
        """Return the position of every byte, [accesses, size], all within one tensor each and aligned to `size`."""
        at = address - BASE
        tensor = np.searchsorted(self.starts, at, "right") - 1
        if (tensor < 0).any() or (at + size > np.asarray(self.stops)[tensor]).any():
            raise Fault("an access to global memory outside of every tensor")
        if (address % size).any():
            raise Fault(f"an access to global memory is not aligned to {size} bytes")
        self.sectors[kind] += np.unique((at // SECTOR << 5) + warp).size
        return (at + np.subtract(self.homes, self.starts)[tensor])[:, None] + np.arange(size)


class Shared:
    """A block's shared memory: between two barriers, a byte that a warp writes is that warp's alone."""

    def __init__(self, size: int, warps: int) -> None:
        self.bytes = np.zeros(size, np.uint8)
        self.written = np.zeros(size, bool)
        self.pending = np.zeros(size, bool)  # a copy is under way there
        self.epoch = 0
        self.write_epoch = np.full(size, NEVER)
        self.writer = np.zeros(size, int)
        self.read_epoch = np.full((warps, size), NEVER)

    def barrier(self) -> None:
        self.epoch += 1

    def _places(self, address: np.ndarray, size: int, warp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if (address < 0).any() or (address + size > self.bytes.size).any():
            raise Fault(f"an access to shared memory outside of its {self.bytes.size} bytes")
        if (address % size).any():
            raise Fault(f"an access to shared memory is not aligned to {size} bytes")
        return address[:, None] + np.arange(size), np.broadcast_to(warp[:, None], (warp.size, size))

    def read(self, address: np.ndarray, size: int, warp: np.ndarray) -> np.ndarray:
        """Return bytes [accesses, size]."""
        at, warp = self._places(address, size, warp)
        if self.pending[at].any():
            raise Fault("a read of shared memory to which a copy is under way")
        if not self.written[at].all():
            raise Fault("a read of shared memory that was never written")
        if ((self.write_epoch[at] == self.epoch) & (self.writer[at] != warp)).any():
            raise Fault("a race: read of shared memory that another warp wrote since the last barrier")
        self.read_epoch[warp, at] = self.epoch
        return self.bytes[at]

    def _claim(self, at: np.ndarray, warp: np.ndarray) -> None:
        if ((self.write_epoch[at] == self.epoch) & (self.writer[at] != warp)).any():
            raise Fault("a race: write to shared memory that another warp wrote since the last barrier")
        readers = self.read_epoch[:, at] == self.epoch
        if (readers.sum(0) > (self.read_epoch[warp, at] == self.epoch)).any():
            raise Fault("a race: write to shared memory that another warp read since the last barrier")
        self.write_epoch[at], self.writer[at], self.written[at] = self.epoch, warp, True

    def write(self, address: np.ndarray, data: np.ndarray, warp: np.ndarray) -> None:
        """Write bytes [accesses, size]."""
        at, warp = self._places(address, data.shape[1], warp)
        if self.pending[at].any():
            raise Fault("a write to shared memory to which a copy is under way")
        self._claim(at, warp)
        self.bytes[at] = data

    def begin_copy(self, address: np.ndarray, size: int, warp: np.ndarray) -> None:
        """Give bytes away to an asynchronous copy, until `land`."""
        at, warp = self._places(address, size, warp)
        if self.pending[at].any():
            raise Fault("two copies to the same shared memory are under way")
        self._claim(at, warp)
        self.pending[at] = True

    def land(self, address: np.ndarray, data: np.ndarray, warp: np.ndarray) -> None:
        """Finish a copy: it counts as written now, by the warp that waited for it."""
        at, warp = self._places(address, data.shape[1], warp)
        self.pending[at] = False
        self._claim(at, warp)
        self.bytes[at] = data
