"""Estimate from machine code how long a warp of the Hopper kernel takes between two tiles.

    python -m benchmarks.hopper_gap [FILE]

FILE is a cubin, an object or the extension; without one nvcc compiles the kernel.

Between a tile's last product and the next tile's first, a warp computes the last layer, stores, and makes the next
operand. Meanwhile the partner has the matrix unit for a layer, 2,048 cycles. All time beyond that is lost in every
tile.

The model issues the instructions of the longest path without a slow division in order. It obeys the stall counts and
scoreboards that ptxas has written into them. It assumes that

* conversions, selects and integer instructions issue at half rate;
* latencies are those of LATENCY;
* an LDS.128 takes the port of shared memory, which four schedulers share, for one wavefront or four;
* the partner's products may take half of the port.

No GPU has confirmed the model.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import audit_sass

SOURCE = Path(__file__).parents[1] / "csrc" / "cuda" / "decode_sm90.cu"
TURN = 2048  # cycles of the matrix unit for a warpgroup's layer
LINE = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?([A-Z][\w.]*)\s*([^;]*);\s+/\* 0x\w+ \*/\n\s+/\* 0x(\w+) \*/", re.M
)
# Instructions by the cycles for which they hold their unit, and the cycles until a result is there.
HALF_RATE = ("FMNMX", "F2FP", "LOP3", "IADD3", "ISETP", "FSETP", "SEL", "FSEL", "SHF", "LEA", "PLOP3", "MOV", "PRMT",
             "HADD2", "I2FP")  # fmt: skip
SLOW = ("MUFU", "I2F", "F2I", "FRND", "F2F", "FCHK")
MEMORY = ("LDS", "LDG", "STG", "SHFL", "SYNCS")
LATENCY = {"LDG": 600, "LDS": 30, "SHFL": 25, "S2R": 30, "S2UR": 30, "LDC": 30, "MEMBAR": 20, "HMMA": 33,
           **dict.fromkeys(SLOW, 24)}  # fmt: skip
# The table's columns: port cycles of an LDS.128.
COLUMNS = {"1 wavefront": 4, "4 wavefronts": 16, "4, half of the port taken": 32}


class Instruction(NamedTuple):
    """Hold an instruction and its schedule by ptxas."""

    address: int
    guarded: bool
    name: str
    operands: str
    stall: int
    sets: tuple[int, ...]  # scoreboards that its result and its last read release
    waits: int  # a bit for each scoreboard that it waits for

    @property
    def opcode(self) -> str:
        return self.name.split(".")[0]


def functions(sass: str) -> dict[str, list[Instruction]]:
    """Parse the output of `cuobjdump -sass`, with the control words."""
    parts = re.split(r"^\s*Function : (\S+)", sass, flags=re.M)[1:]
    return {name: [*instructions(text)] for name, text in zip(parts[::2], parts[1::2], strict=True)}


def instructions(text: str) -> Iterator[Instruction]:
    for address, guard, name, rest, word in LINE.findall(text):
        control = int(word, 16) >> 41
        sets = tuple(control >> bit & 7 for bit in (5, 8))
        yield Instruction(int(address, 16), bool(guard), name, rest.strip(), control & 15, sets, control >> 11 & 63)


def longest(code: Sequence[Instruction], plan: bool) -> list[Instruction]:
    """Return the longest path from a tile's last wait for products through the next gather to the next product.

    plan: whether the path may pass a tile's plan, which only networks of two hidden layers have there.
    """
    place = {each.address: at for at, each in enumerate(code)}
    waits = [at for at, each in enumerate(code) if each.name == "WARPGROUP.DEPBAR.LE" and each.operands.endswith("0x0")]
    open_: set[tuple[int, bool]] = set()

    @functools.cache
    def way(at: int, gathered: bool) -> tuple[int, tuple[int, bool] | None]:
        """Return the number of instructions up to a product, and the next one; -1 if no path leads to a product."""
        each = code[at]
        if each.opcode == "HGMMA":
            return (0, None) if gathered else (-1, None)
        gathered |= each.name.startswith("LDG.E.128")
        if each.opcode in ("EXIT", "RET", "CALL") or (each.opcode == "FRND" and not plan) or (at, gathered) in open_:
            return -1, None
        after = []
        if each.opcode != "BRA" or each.guarded:
            after.append(at + 1)
        if each.opcode == "BRA" and not code[at - 1].name.endswith("TRYWAIT"):  # assumes that the barrier is ready
            after.append(place[int(each.operands.split()[-1], 16)])
        open_.add((at, gathered))
        found = [(way(to, gathered)[0], (to, gathered)) for to in after if to < len(code)]
        open_.discard((at, gathered))
        most, to = max(found, default=(-1, (0, False)))
        return (most + 1, to) if most >= 0 else (-1, None)

    sys.setrecursionlimit(max(sys.getrecursionlimit(), 4 * len(code)))
    best = max(((way(at + 1, False)[0], at + 1) for at in waits), default=(-1, 0))
    if best[0] < 0:
        raise ValueError("the code has no path from a product through a gather to the next product")
    path, step = [], (best[1], False)
    while step:
        path.append(code[step[0]])
        step = way(*step)[1]
    return path[:-1]


def cycles(path: Sequence[Instruction], port: int) -> int:
    """Issue a path, and return the cycle at which its last instruction has issued."""
    now, shared, ready, busy = 0, 0, [0] * 8, dict.fromkeys(("half", "slow", "memory", "matrix"), 0)
    for each in path:
        now = max([now, *(ready[bit] for bit in range(6) if each.waits >> bit & 1)])
        unit, hold = (
            ("half", 2) if each.opcode in HALF_RATE
            else ("slow", 8) if each.opcode in SLOW
            else ("memory", 2) if each.opcode in MEMORY
            else ("matrix", 8) if each.opcode == "HMMA"
            else ("", 0)
        )  # fmt: skip
        if unit:
            now = max(now, busy[unit])
            busy[unit] = now + hold
        start = now
        if each.opcode == "LDS":
            shared = max(shared, now) + port // (1 if "128" in each.name else 4)
            start = shared
        elif each.opcode == "MEMBAR":
            start = now = max(now, shared + LATENCY["LDS"])
        for board, done in zip(each.sets, (start + LATENCY.get(each.opcode, 10), now + 10), strict=True):
            ready[board] = max(ready[board], done)  # 7 is none
        now += max(each.stall, 1)
    return now


def measured(sass: str) -> Iterator[tuple[str, bool, list[Instruction], list[int]]]:
    """Yield each kernel's name, whether its path passes the plan, the path, and its cycles by COLUMNS."""
    for name, code in functions(sass).items():
        if not any(each.opcode == "HGMMA" for each in code):
            continue
        for plan in (False, True):
            try:
                path = longest(code, plan)
            except ValueError:
                continue
            yield name, plan, path, [cycles(path, port) for port in COLUMNS.values()]


def port(sass: str, products: int = 3) -> tuple[int, int]:
    """Return the cycles that a tile takes of shared memory's port, and the cycles of its matrix products."""
    gap = next(path for _, plan, path, _ in measured(sass) if not plan)
    loads = 16 * (products - 1) + sum(each.name.startswith("LDS.128") for each in gap)  # 16 of a layer's bias
    ring = products * (4 * 32 + 1) * 1024 // 128
    gather = 128 * 512 // 128
    return products * 2 * 16 * 64 + ring + gather + loads * 4 * 8, products * 2 * 16 * 128


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hopper_gap", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path)
    file = parser.parse_args(argv).file
    try:
        with tempfile.TemporaryDirectory() as folder:
            if file is None:
                file = Path(folder, "kernel.cubin")
                audit_sass.compile_cubin(SOURCE, file, ["LIIF_KERNEL_ONLY"])
            sass = audit_sass.disassemble(file)
    except audit_sass.Unavailable as why:
        parser.error(str(why))
    for name, plan, path, found in measured(sass):
        kernel = re.search(r"(Half|Bfloat)ELb([01])ELi(\d)", name)
        label = f"{kernel[1]}, ensemble {kernel[2]}, cluster {kernel[3]}" if kernel else name
        figures = ", ".join(f"{column}: {number}" for column, number in zip(COLUMNS, found, strict=True))
        print(f"{label}{', with the plan' if plan else ''}: {len(path)} instructions; {figures}")
    taken, of = port(sass)
    print(f"port of shared memory: {taken} of {of} cycles of a tile (three products), at four wavefronts an LDS.128")
    return 0


if __name__ == "__main__":
    sys.exit(main())
