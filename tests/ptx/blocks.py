"""Execute thread blocks of a kernel together; their warps advance in a random order.

The warps are divided at random into parts. A part executes its lanes at a time, and goes on alone until it comes to a
barrier or its end; where a branch divides its warps, it divides. Copies land as late as the program's waits allow.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import numpy as np

from .arithmetic import TYPES, UNSIGNED
from .machine import Lanes
from .memory import BLOCK, Fault, Global, Shared
from .parser import Program

LIMIT = 2_000_000  # instructions of a run of blocks
STRETCHES = (1, 10, 100, 1000)  # instructions of a part in a turn


class Part(Lanes):
    """Hold some warps of the blocks, at one instruction."""

    def __init__(self, program: Program, memory: Global, shared: Shared, warp: np.ndarray, truncate: int) -> None:
        super().__init__(program, memory, shared, warp, truncate)
        self.at = 0
        self.waiting = self.ended = False
        self.siblings: list[Part] = []  # divided off this one
        self.committed = 0
        self.copies: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []  # under way, each with its group

    def advance(self, count: int) -> int:
        """Execute up to `count` instructions, and return how many that were."""
        for done in range(count):
            if self.waiting or self.ended:
                return done
            instruction = self.program.code[self.at]
            try:
                self.go()
            except Fault as fault:
                raise Fault(f"{fault}, at instruction {self.at}: {instruction}") from None
        return count

    def go(self) -> None:
        """Execute one instruction."""
        instruction = self.program.code[self.at]
        self.shared.now = self.at
        name, operands = instruction.opcode[0], instruction.operands
        if name == "brx":
            return self.jump([self.program.labels[each] for each in self.program.tables[operands[1]]], operands[0])
        mask = self.active(instruction)
        if name in ("bra", "ret"):
            if self.divide(mask):
                if name == "bra":
                    self.at = self.program.labels[operands[0]]
                else:
                    self.end()
                return None
        else:
            self.execute(instruction, mask)
        self.at += 1
        return None

    def jump(self, targets: Sequence[int], index: str) -> None:
        """Branch to one of several places."""
        entry = self.get(index, "u32")
        self.divide(entry == entry[0])
        self.at = targets[self.get(index, "u32")[0]]

    def divide(self, mask: np.ndarray) -> bool:
        """Return whether the mask holds. If it does for some warps only, the others divide off, to come here alone."""
        if mask is self.all or mask.all():
            return True
        if not mask.any():
            return False
        if (mask != mask[::32].repeat(32)).any():
            raise Fault("a branch divides a warp")
        other = copy.copy(self)
        other.siblings = []
        other.keep(~mask)
        self.keep(mask)
        self.siblings.append(other)
        return True

    def keep(self, mask: np.ndarray) -> None:
        """Drop other lanes."""
        left = {int(each) for each in self.warp[mask]}
        self.warp, self.all = self.warp[mask], self.all[mask]
        self.threads, self.literals = self.warp.size, {}
        for name in ("registers", "special", "parameters"):
            setattr(self, name, {key: value[mask] for key, value in getattr(self, name).items()})
        mine = [np.isin(warp, [*left]) for *_, warp in self.copies]
        self.copies = [(n, to[i], data[i], warp[i]) for i, (n, to, data, warp) in zip(mine, self.copies, strict=True)]

    def end(self) -> None:
        self.ended = True
        if self.copies:
            raise Fault("the kernel ends while copies are under way")

    def do_bar(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        if not mask.all():
            raise Fault("a barrier reached by a part of the block")
        self.waiting = opcode[1] == "sync"

    def do_cp(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        if opcode[2] in ("commit_group", "wait_group") and not mask.all():
            raise Fault("an instruction of all copies reached by a part of the block")
        if opcode[2] == "commit_group":
            self.committed += 1
        elif opcode[2] == "wait_group":
            late = self.committed - int(operands[0], 0)
            for group, *landing in self.copies:
                if group < late:
                    self.shared.land(*landing)
            self.copies = [each for each in self.copies if each[0] >= late]
        elif mask.any():
            to, size, reading = self.address(operands[0])[mask], int(operands[2], 0), mask
            if len(operands) > 3:  # of so many bytes; the rest is zero
                length = self.get(operands[3], "u32")
                if not np.isin(length, (0, size)).all():
                    raise Fault("a copy of a part of its bytes")
                reading = mask & (length > 0)
            data = self.load("global", self.address(operands[1]), size, reading)
            data[~reading] = 0
            self.shared.begin_copy(to, size, self.warp[mask])
            self.copies.append((self.committed, to, data[mask], self.warp[mask]))


class Blocks:
    """Hold blocks of a grid that run together."""

    PART: type[Part] = Part
    MEMORY: type[Shared] = Shared

    def __init__(self, program: Program, arguments: Sequence[int | float], places: Sequence[tuple[int, ...]],
                 threads: int, shared: int, memory: Global, truncate: int = 0, parts: int = 1, seed: object = 0
                 ) -> None:  # fmt: skip
        """Make blocks of `threads` threads, `shared` bytes each, at places of the grid (x, y, z)."""
        self.random = random.Random(str(seed))
        self.threads = threads
        self.shared = self.MEMORY(shared, threads // 32, len(places))
        self.shared.mark += BLOCK * memory.blocks
        memory.mark, memory.blocks = self.shared.mark, memory.blocks + len(places)
        self.parts = []
        warps = np.arange(len(places) * threads // 32)
        drawn = np.array([self.random.randrange(parts) for _ in warps])
        for number in np.unique(drawn):
            warp = warps[drawn == number].repeat(32)
            block, thread = np.divmod(32 * warp + np.arange(warp.size) % 32, threads)
            part = self.PART(program, memory, self.shared, warp, truncate)
            part.special["%tid.x"] = thread.astype(np.uint32)
            for i, axis in enumerate("xyz"):
                at = np.array([(*place, 0, 0)[i] for place in places], np.uint32)
                part.special[f"%ctaid.{axis}"] = at[block]
            for (name, kind), value in zip(program.parameters, arguments, strict=True):
                size = TYPES[kind].itemsize
                given = np.array([value if kind[0] == "f" else int(value) & (1 << 8 * size) - 1],
                                 TYPES[kind] if kind[0] == "f" else UNSIGNED[size])  # fmt: skip
                part.parameters[name] = given.repeat(warp.size)
            self.parts.append(part)

    def run(self) -> int:
        """Execute to the end, and return how many instructions that took."""
        count = 0
        with np.errstate(all="ignore"):
            while live := [part for part in self.parts if not part.ended]:
                ready = [part for part in live if not part.waiting]
                if not ready:
                    self.open_barrier()
                    continue
                part = self.random.choice(ready)
                count += part.advance(self.random.choice(STRETCHES))
                self.parts += part.siblings
                part.siblings.clear()
                if count > LIMIT:
                    raise Fault("the kernel does not end")
        return count

    def open_barrier(self) -> None:
        """Let the warps that wait at a barrier go on, if all warps of their blocks do."""
        where = np.zeros(self.shared.mark.size, int)  # of each warp, 0 if it ended
        for part in self.parts:
            where[part.warp] = 0 if part.ended else part.at
            part.waiting = False
        blocks = where.reshape(-1, self.threads // 32)
        if (blocks != blocks[:, :1]).any():
            raise Fault("a barrier reached by a part of the block")
        self.shared.barrier(np.flatnonzero(where))
