"""Find writes to shared memory in a kernel's PTX that no barrier orders after a product, without running it.

A warp waits only for the wgmma of its own warp group. With several groups, a group that has finished may overwrite in
the next iteration what a product of another group still reads, unless a barrier joins all groups in between. Triton
before 3.9 may omit that barrier (its issue 11047).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

GROUP = 4  # warps
STATEMENT = re.compile(r"^\s*(?:(\$\w+):|(?:@!?(%p\d+)\s+)?([a-z][\w.:]*)\s*([^;]*);)", re.MULTILINE)
TABLE = re.compile(r"^\s*([$\w]+):\s*\.branchtargets\s*([^;]*);", re.MULTILINE)
BARRIERS = ("bar.sync", "barrier.sync", "barrier.cta.sync")
WRITES = ("st.shared", "stmatrix", "cp.async.ca", "cp.async.cg")
NONE, RUNNING, DONE = range(3)  # a warp's products: none since the last barrier; under way; waited for


class Program:
    """Hold the instructions of one kernel and the paths between them."""

    def __init__(self, ptx: str) -> None:
        self.code: list[tuple[str, str, str]] = []  # guard, opcode, operands
        self.labels: dict[str, int] = {}
        self.tables = {name: re.findall(r"\$\w+", labels) for name, labels in TABLE.findall(ptx)}
        for label, guard, opcode, operands in STATEMENT.findall(TABLE.sub("", ptx)):
            if label:
                self.labels[label] = len(self.code)
            else:
                self.code.append((guard, opcode, operands.strip()))

    def after(self, at: int) -> Iterator[int]:
        """Yield the places where execution may continue after an instruction."""
        guard, opcode, operands = self.code[at]
        if opcode.startswith("bra"):
            yield self.labels[operands]
        elif opcode.startswith("brx"):
            yield from map(self.labels.__getitem__, self.tables[operands.split()[-1]])
        if (guard or not opcode.startswith(("bra", "brx", "ret"))) and at + 1 < len(self.code):
            yield at + 1


def moved_on(state: int, opcode: str, operands: str) -> int:
    """Return the state after an instruction."""
    if opcode.startswith("wgmma.mma_async"):
        return RUNNING
    if state == RUNNING and opcode.startswith("wgmma.wait_group") and operands == "0":
        return DONE
    return NONE if state == DONE and opcode.startswith(BARRIERS) else state


def unordered_writes(ptx: str, warps: int) -> list[str]:
    """Return the writes to shared memory that no barrier separates from an earlier iteration's wait for wgmma.

    Every path is followed; an iteration ends with a jump back. Writes during and after the products of the same
    iteration go to the pipeline's other buffer or to a separate one. They are not examined, because that would require
    their addresses.
    """
    if warps <= GROUP:
        return []
    program, found, seen, waiting = Program(ptx), set(), set(), [(0, NONE, False)]
    while waiting:
        at, state, before = step = waiting.pop()  # before: no barrier since the products of an earlier iteration
        if step in seen:
            continue
        seen.add(step)
        _, opcode, operands = program.code[at]
        if before and opcode.startswith(WRITES):
            found.add(at)
        state, before = moved_on(state, opcode, operands), before and not opcode.startswith(BARRIERS)
        for after in program.after(at):
            if after > at:
                waiting.append((after, state, before))
            else:
                waiting.append((after, RUNNING if state == RUNNING else NONE, before or state == DONE))
    return [" ".join(program.code[at][1:]) for at in sorted(found)]
