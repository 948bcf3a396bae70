"""Read the PTX text of one kernel into a list of instructions."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

COMMENT = re.compile(r"//[^\n]*")
LABEL = re.compile(r"\$\w+:")
TABLE = re.compile(r"([$\w]+):\s*\.branchtargets\s*(.*)", re.DOTALL)
STATEMENT = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
OPERAND = re.compile(r"\{[^}]*\}|\[[^]]*\]|[^,\s][^,]*")
INLINE = re.compile(r"// begin inline asm(.*?)// end inline asm", re.DOTALL)
DECLARED = re.compile(r"\.reg \.(\w+) (\w+);|^(\w+):", re.MULTILINE)
OWN = {"pred": "p", "b32": "r", "b64": "rd"}  # what compilers call registers
PARAMETER = re.compile(r"\.param \.(\w+)[^,)\n]*?(\w+_param_\d+)")


class Instruction(NamedTuple):
    """Hold one instruction: @guard opcode operands."""

    guard: str  # a predicate register, or "" for none
    negated: bool
    opcode: tuple[str, ...]  # split at the dots
    operands: tuple[str, ...]


class Program(NamedTuple):
    """Hold a kernel's instructions, each label's position, (name, type) of its parameters, and tables of labels."""

    code: list[Instruction]
    labels: dict[str, int]
    parameters: list[tuple[str, str]]
    tables: dict[str, tuple[str, ...]]


@functools.cache
def elements(operand: str) -> tuple[str, ...]:
    """Split a vector operand {a, b} into its registers; a single one stays."""
    return tuple(each.strip() for each in operand.strip("{} ").split(","))


def without_scopes(ptx: str) -> str:
    """Give registers and labels of inline assembly, which its braces keep apart, names of their own."""

    def renamed(number: int, text: str) -> str:
        for i, (kind, register, label) in enumerate(DECLARED.findall(text)):
            own = f"%{OWN[kind]}9{number:05}{i}" if kind else f"$asm{number}_{label}"
            text = re.sub(rf"(?<![\w.%$]){register or label}(?![\w.])", lambda _, own=own: own, text)
        return text

    parts = INLINE.split(ptx)
    return "".join(renamed(at, text) if at % 2 else text for at, text in enumerate(parts))


def parse(ptx: str) -> Program:
    """Read the one kernel of a PTX module."""
    ptx = COMMENT.sub("", ptx)
    head, body = ptx.split(".entry", 1)[1].split("{", 1)
    code, labels, tables = [], {}, {}
    lines = (line.strip() for line in body.split("\n"))
    # Declarations go, and .loc, which ends in no semicolon.
    lines = (line for line in lines if not line.startswith(".") or line.startswith(".branchtargets"))
    joined = "\n".join(f"{line};" if LABEL.fullmatch(line) else line for line in lines)
    # Braces alone on a line, and around inline assembly, only open a scope.
    joined = re.sub(r"(?m)^\{\s*|(?<=;)\s*\}|^\s*\}\s*$", "", joined)
    for statement in (each.strip() for each in joined.split(";")):
        if LABEL.fullmatch(statement):
            labels[statement[:-1]] = len(code)
        elif table := TABLE.fullmatch(statement):
            tables[table[1]] = elements(table[2])
        elif statement:
            found = STATEMENT.fullmatch(statement)
            if not found:
                raise ValueError(f"no PTX that this interpreter reads: {statement!r}")
            bang, guard, opcode, rest = found.groups()
            operands = tuple(each.strip() for each in OPERAND.findall(rest))
            code.append(Instruction(guard or "", bool(bang), tuple(opcode.split(".")), operands))
    return Program(code, labels, [(name, kind) for kind, name in PARAMETER.findall(head)], tables)
