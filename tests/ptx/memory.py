"""Global and shared memory of executed kernels, each access checked."""

from __future__ import annotations

from collections import Counter

import numpy as np

# Where tensors begin, which 32 bits cannot tell, and what lies between two of them.
BASE, GAP = 1 << 40, 4096
SECTOR = 32  # bytes that memory moves at once
# What happened last to a place in memory: BLOCK times the number of a block, from 1 on, plus EPOCH times the barriers
# that it had passed, plus the warp.
NEVER, EPOCH, BLOCK = 0, 64, 1 << 18
MANY = EPOCH - 1  # in the place of a warp: several
PENDING = 1 << 30  # in shared memory a copy is under way there; several blocks read it in global memory
GRAIN = 2  # bytes of global memory that share a mark


class Fault(Exception):
    """What a kernel must not do."""


class Global:
    """Tensors in one address space, with gaps between them that belong to no tensor."""

    def __init__(self, size: int = 1 << 23) -> None:
        self.bytes = np.zeros(size, np.uint8)
        self.starts = np.array([-BASE])  # addresses behind BASE; the first tensor is none
        self.stops = np.array([-BASE])
        self.homes = np.array([0])  # where in `bytes`, multiples of 256
        self.next, self.skipped = GAP, 0
        self.sectors: Counter[str] | None = None  # of 32 bytes that a warp's accesses touch, by kind, if wanted
        self.writes = np.zeros(size // GRAIN, np.int32)
        self.reads = np.zeros(size // GRAIN, np.int32)
        self.blocks = 0  # that began
        self.mark: np.ndarray | None = None  # of each warp of the blocks that run now: see Shared
        self.checked = True  # whether races are looked for

    def add(self, raw: np.ndarray, skip: int = 0) -> int:
        """Copy the bytes of a tensor in, and return its address, `skip` bytes and more behind the one before."""
        home, stop = self.next, self.next + raw.size
        if stop > self.bytes.size:
            raise ValueError(f"{stop} bytes of tensors do not fit into {self.bytes.size}")
        self.bytes[home:stop] = raw
        self.skipped += skip
        self.homes = np.append(self.homes, home)
        self.starts = np.append(self.starts, home + self.skipped)
        self.stops = np.append(self.stops, stop + self.skipped)
        self.next = (stop + 2 * GAP) // 256 * 256
        return BASE + home + self.skipped

    def read_back(self, address: int, size: int) -> np.ndarray:
        home = self.homes[np.flatnonzero(self.starts == address - BASE)[-1]]
        return self.bytes[home : home + size]

    def _rows(self, address: np.ndarray, size: int, warp: np.ndarray | int, kind: str) -> np.ndarray:
        """Return where in `bytes`, in units of `size`, accesses lie: each within one tensor and aligned to `size`."""
        at = address - BASE
        tensor = self.starts.searchsorted(at, "right") - 1
        if (at + size > self.stops[tensor]).any():
            raise Fault("an access to global memory outside of every tensor")
        if (address % size).any():
            raise Fault(f"an access to global memory is not aligned to {size} bytes")
        if self.sectors is not None:
            self.sectors[kind] += np.unique((at // SECTOR << 16) + warp).size
        return (at + (self.homes - self.starts)[tensor]) // size

    def read(self, address: np.ndarray, size: int, warp: np.ndarray | int = 0) -> np.ndarray:
        """Return bytes [accesses, size]."""
        at = self._rows(address, size, warp, "ld")
        if self.checked and self.mark is not None:
            self._check(self.writes, at, size, warp, "read of global memory that another warp wrote")
            self._note_read(at, size, warp)
        return self.bytes.reshape(-1, size)[at]

    def write(self, address: np.ndarray, data: np.ndarray, warp: np.ndarray | int = 0) -> None:
        """Write bytes [accesses, size]."""
        size = data.shape[1]
        at = self._rows(address, size, warp, "st")
        if self.checked and self.mark is not None:
            self._check(self.reads, at, size, warp, "write to global memory that another warp read")
            self._check(self.writes, at, size, warp, "write to global memory that another warp wrote")
            marks, mark = self.writes.reshape(-1, size // GRAIN), self.mark[warp][:, None]
            marks[at] = mark
            if (marks[at] != mark).any():
                raise Fault("a race: write to global memory that another warp writes")
        self.bytes.reshape(-1, size)[at] = data

    def _check(self, marks: np.ndarray, at: np.ndarray, size: int, warp: np.ndarray, what: str) -> None:
        """See that no other warp marked these places, or that a barrier of the block lies between."""
        before, mark = marks.reshape(-1, size // GRAIN)[at], self.mark[warp][:, None]
        if ((before != mark) & (before != NEVER) & ((before >= mark & -EPOCH) | (before < mark & -BLOCK))).any():
            raise Fault(f"a race: {what} since the last barrier")

    def _note_read(self, at: np.ndarray, size: int, warp: np.ndarray | int) -> None:
        marks, mark = self.reads.reshape(-1, size // GRAIN), self.mark[warp][:, None]
        before = marks[at]
        past = (before == NEVER) | (before == mark) | ((before >= mark & -BLOCK) & (before < mark & -EPOCH))
        now = np.where(past, mark, self._several(before, mark))
        marks[at] = now
        after = marks[at]
        row, column = np.nonzero(after != now)  # lanes of other warps at the same time
        np.maximum.at(marks, (at[row], column), self._several(after, now)[row, column])

    @staticmethod
    def _several(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the mark of two warps that read a place."""
        return np.where((one ^ other) < BLOCK, other | MANY, PENDING)

    def increase(self, address: np.ndarray, values: np.ndarray, warp: np.ndarray | int = 0) -> None:
        """Add float32 [accesses, n], one access after the other."""
        rows = self._rows(address, 4 * values.shape[1], warp, "atom")
        np.add.at(self.bytes.view(np.float32).reshape(-1, values.shape[1]), rows, values)


class Shared:
    """Shared memory of blocks: between two barriers of a block, a byte that a warp writes is that warp's alone.

    Warps are numbered through all blocks; addresses count from the start of a block's memory.
    """

    checked = True  # whether accesses are; on a GPU only results show a race

    def __init__(self, size: int, warps: int, blocks: int = 1) -> None:
        self.size, self.warps = size, warps
        step = -(-size // 16) * 16
        self.bytes = np.zeros(step * blocks, np.uint8)
        self.writes = np.full(step * blocks, NEVER, np.int32)
        self.reads = np.full(step * blocks, NEVER, np.int32)
        # The number of the instruction that runs now, and of the one that wrote a byte last.
        self.now, self.writer = 0, np.zeros(step * blocks, np.int32)
        # Of each warp: where its block's memory begins, and what it leaves at a byte that it touches now.
        self.base = np.repeat(np.arange(blocks) * step, warps)
        self.mark = np.add.outer(BLOCK * np.arange(1, blocks + 1), np.arange(warps)).astype(np.int32).ravel()

    def barrier(self, warps: np.ndarray) -> None:
        """Note that whole blocks passed a barrier, given as the numbers of their warps."""
        self.mark[warps] += EPOCH

    def _rows(self, address: np.ndarray, size: int, warp: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where accesses lie, in units of `size`; the marks of their warps, and the first since the barrier."""
        if (address < 0).any() or (address + size > self.size).any():
            raise Fault(f"an access to shared memory outside of its {self.size} bytes")
        if (address % size).any():
            raise Fault(f"an access to shared memory is not aligned to {size} bytes")
        mark = self.mark[warp][:, None]
        return (address + self.base[warp]) // size, mark, mark & -EPOCH

    @staticmethod
    def _touch(marks: np.ndarray, at: np.ndarray, mark: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, ...]:
        """Leave marks; return which of the bytes another warp touched since the barrier, and which one touches now."""
        before = marks[at]
        others = (before >= first) & (before != mark)
        now = np.where(others, first + MANY, mark)
        marks[at] = now
        again = marks[at] != now
        if again.any():
            row, column = np.nonzero(again)
            marks[at[row], column] = first[row, 0] + MANY
        return others, again

    def read(self, address: np.ndarray, size: int, warp: np.ndarray) -> np.ndarray:
        """Return bytes [accesses, size]."""
        at, mark, first = self._rows(address, size, warp)
        if self.checked:
            written = self.writes.reshape(-1, size)[at]
            if (written == NEVER).any():
                raise Fault("a read of shared memory that was never written")
            if ((written >= first) & (written != mark)).any():
                if (written == PENDING).any():
                    raise Fault("a read of shared memory to which a copy is under way")
                raise Fault("a race: read of shared memory that another warp wrote since the last barrier")
            self._touch(self.reads.reshape(-1, size), at, mark, first)
        return self.bytes.reshape(-1, size)[at]

    def _claim(self, at: np.ndarray, size: int, mark: np.ndarray, first: np.ndarray, what: str
               ) -> tuple[np.ndarray, ...]:  # fmt: skip
        """Check and note a write, and return which of the bytes another warp wrote or writes, too."""
        if not self.checked:
            return (np.zeros((at.size, size), bool),) * 2
        if (self.writes.reshape(-1, size)[at] == PENDING).any():
            raise Fault(f"{what} to shared memory to which a copy is under way")
        read = self.reads.reshape(-1, size)[at]
        if ((read >= first) & (read != mark)).any():
            raise Fault(f"a race: {what} to shared memory that another warp read since the last barrier")
        return self._touch(self.writes.reshape(-1, size), at, mark, first)

    def write(self, address: np.ndarray, data: np.ndarray, warp: np.ndarray) -> None:
        """Write bytes [accesses, size]. One instruction may write the same values in several warps: Triton's do."""
        size = data.shape[1]
        at, mark, first = self._rows(address, size, warp)
        (others, again), bytes_ = self._claim(at, size, mark, first, "a write"), self.bytes.reshape(-1, size)
        writer = self.writer.reshape(-1, size)
        differ = others.any() and (others & ((bytes_[at] != data) | (writer[at] != self.now))).any()
        bytes_[at], writer[at] = data, self.now
        if differ or (again.any() and (again & (bytes_[at] != data)).any()):
            raise Fault("a race: a write to shared memory that another warp wrote since the last barrier")

    def begin_copy(self, address: np.ndarray, size: int, warp: np.ndarray) -> None:
        """Give bytes away to an asynchronous copy, until `land`."""
        at, mark, first = self._rows(address, size, warp)
        if np.any(self._claim(at, size, mark, first, "a copy")):
            raise Fault("a race: a copy to shared memory that another warp wrote since the last barrier")
        self.writes.reshape(-1, size)[at] = PENDING

    def land(self, address: np.ndarray, data: np.ndarray, warp: np.ndarray) -> None:
        """Finish a copy: it counts as written now, by the warp that waited for it."""
        size = data.shape[1]
        at, mark, _ = self._rows(address, size, warp)
        self.writes.reshape(-1, size)[at] = mark
        self.bytes.reshape(-1, size)[at] = data
