"""Find fused multiply-adds in the corner plan of a compiled Triton kernel, in its machine code (SASS).

The plan's values end in two kinds of instruction: F2I makes the index of a latent, and FCHK begins the division of two
areas. Neither may depend on an FFMA. No FFMA may take a converted integer, as a contracted centre would. Other FFMAs
belong to the division and to the rest of the kernel.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator

from benchmarks.audit_sass import READERS, Instruction, parse

REGISTER = re.compile(r"(?<![\w.])(U?R)(\d+)\b")
# The instructions that a slice follows; FADD2, FMUL2 and FFMA2 of sm_100 work on pairs of registers.
FLOATS = ("FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "I2F", "MOV", "UMOV", "IMAD.MOV", "R2UR", "SEL")
PAIRS = ("FADD2", "FMUL2", "FFMA2")
ENDS = re.compile(r"F2I(?!.*U(32|64))|FCHK")


def _registers(operand: str, width: int = 1) -> set[str]:
    return {f"{kind}{int(at) + k}" for kind, at in REGISTER.findall(operand) for k in range(width)}


def _sources(i: Instruction) -> set[str]:
    width = 2 if i.opcode in PAIRS else 1
    return set().union(*(_registers(operand, width) for operand in i.operands[1:]))


def _written(i: Instruction) -> set[str]:
    if i.opcode in READERS or not i.operands:
        return set()
    target = next((each for each in i.operands if not re.fullmatch(r"!?U?P[0-9T]", each)), "")
    if not re.match("U?R", target):
        return set()
    if i.opcode == "HGMMA" or i.opcode in PAIRS:
        return _registers(target, 2 if i.opcode in PAIRS else len(i.written()))
    four = ".128" in i.name or i.name.endswith("88.4") or i.opcode == "HMMA"
    two = ".64" in i.name or ".WIDE" in i.name or i.name.endswith("88.2")
    return _registers(target, 4 if four else 2 if two else 1)


class _Function:
    """Hold a function's instructions and the places where each register is written."""

    def __init__(self, code: list[Instruction]) -> None:
        self.code = code
        self.writes: dict[str, list[int]] = {}
        for at, each in enumerate(code):
            for register in _written(each):
                self.writes.setdefault(register, []).append(at)

    def makers(self, at: int) -> Iterator[int]:
        """Yield the positions of the instructions that made an instruction's sources; the plan has no loop.

        The result of a predicated choice also depends on an earlier value. That of a predicated load does not: masked
        rows are never used.
        """
        for register in _sources(self.code[at]):
            writes = self.writes.get(register, [])
            for before in reversed(writes[: bisect.bisect_left(writes, at)]):
                yield before
                if not (self.code[before].predicated and self.code[before].name.startswith(FLOATS)):
                    break

    def slice(self, at: int) -> set[Instruction]:
        """Return the instructions on floats that an instruction's sources depend on."""
        waiting, seen = [at], set()
        while waiting:
            for before in self.makers(waiting.pop()):
                if before not in seen and self.code[before].name.startswith(FLOATS):
                    seen.add(before)
                    waiting.append(before)
        return {self.code[each] for each in seen}


def contractions(sass: str) -> list[str]:
    """Return the FFMAs that are part of the plan.

    Raises:
        ValueError: the kernel has no plan.
    """
    found, ends = set(), 0
    for function in (_Function(each.code) for each in parse(sass)):
        for at, i in enumerate(function.code):
            if ENDS.match(i.name):
                ends += 1
                found |= {each for each in function.slice(at) if each.opcode.startswith("FFMA")}
            elif i.opcode.startswith("FFMA"):
                found |= {i for maker in function.makers(at) if function.code[maker].name.startswith("I2F")}
    if not ends:
        raise ValueError("the kernel has no corner plan: no F2I and no FCHK")
    return [f"{i.address:#x} {i.name} {', '.join(i.operands)}" for i in sorted(found, key=lambda i: i.address)]
