"""Audit the machine code of a Hopper kernel: python -m benchmarks.audit_sass FILE...

A file is a cubin, an object, an extension, or a .cu, which nvcc compiles for sm_90a (-D NAME defines a macro). No GPU
is needed. These faults give exit status 1:

- local memory (LDL, STL), because registers spilled;
- serialised wgmma: ptxas reports it, or an HGMMA forms a group alone and is the only one in flight at its wait;
- a write to a register of operand A between an HGMMA that reads it and the wait for its group; ptxas before CUDA 13.3
  can insert one (triton-lang/triton, issue 9433);
- an access to an accumulator before the wait for its HGMMA, or a call while an HGMMA may run;
- a register beyond those that setmaxnreg (USETMAXREG) has left to the warp;
- an end of the kernel without a wait for an HGMMA;
- no HGMMA at all, because the file is the wrong one or the kernel does not use the matrix unit.

Every path through a function is followed, including loops and branches. A predicated instruction counts as executed.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NVCC_FLAGS = ("-cubin", "-gencode", "arch=compute_90a,code=sm_90a", "-O3", "-std=c++17")
FUNCTION = re.compile(r"^\s*Function : (\S+)")
LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)\s*([^;]*);")
PREDICATED = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+@")
REGISTER = re.compile(r"(?<![\w.])R(\d+)\b")
ADDRESS = re.compile(r"0x([0-9a-f]+)\)?$")
# Instructions that read their first register; all others write it.
READERS = ("BAR", "BRX", "CALL", "FCHK", "JMX", "NANOSLEEP", "RET", "WARPSYNC")
ENDS = ("EXIT", "RET", "KILL")


class Unavailable(RuntimeError):
    """A required tool is not installed."""


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str  # with its modifiers: LDG.E.128
    operands: tuple[str, ...]
    predicated: bool

    @property
    def opcode(self) -> str:
        return self.name.split(".")[0]

    def written(self) -> range:
        """Return the general registers that it writes."""
        if self.opcode in READERS or "SETP" in self.opcode:
            return range(0)
        for operand in self.operands:
            if match := re.match(r"R(\d+)", operand):
                first = int(match[1])
                return range(first, first + self._width())
            if not re.fullmatch(r"!?U?P[0-9T]", operand):
                break
        return range(0)

    def mentioned(self) -> set[int]:
        """Return the general registers that it names, but only the first one of a wide operand."""
        return {int(n) for operand in self.operands for n in REGISTER.findall(operand)}

    def _width(self) -> int:
        if self.opcode == "HGMMA":
            columns = int(self.name.split("x")[1])
            return columns // 2 if ".F32" in self.name else columns // 4
        if ".128" in self.name:
            return 4
        wide = ".64" in self.name or ".WIDE" in self.name or self.opcode in ("DADD", "DFMA", "DMUL")
        return 2 if wide else 1

    def operand_a(self) -> range:
        """Return the registers of operand A of an HGMMA, none if A is in shared memory."""
        match = re.match(r"R(\d+)", self.operands[1])
        return range(int(match[1]), int(match[1]) + 4) if match else range(0)


@dataclass
class Function:
    name: str
    code: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True)
class Products:
    """Describe the HGMMAs of one group by their addresses and the registers that they use."""

    at: tuple[int, ...] = ()
    a: frozenset[int] = frozenset()
    d: frozenset[int] = frozenset()


@dataclass(frozen=True)
class State:
    """Describe what may be in flight before an instruction."""

    open: Products = Products()  # not committed yet
    groups: tuple[Products, ...] = ()  # committed, oldest first
    registers: int = 256  # that the warp has
    joins: tuple[tuple[str, int], ...] = ()  # the target of each BSYNC, by the name of its barrier


def parse(sass: str) -> list[Function]:
    """Parse the output of `cuobjdump -sass` into functions."""
    functions: list[Function] = []
    for line in sass.splitlines():
        if match := FUNCTION.match(line):
            functions.append(Function(match[1]))
        elif functions and (match := LINE.match(line)):
            operands = tuple(part.strip() for part in match[3].split(",") if part.strip())
            predicated = bool(PREDICATED.match(line))
            functions[-1].code.append(Instruction(int(match[1], 16), match[2], operands, predicated))
    return functions


def audit(sass: str) -> list[str]:
    """Return the faults, one line each."""
    functions = parse(sass)
    found = [f"{f.name}: {line}" for f in functions for line in dict.fromkeys(_audit(f))]
    if not any(i.opcode == "HGMMA" for f in functions for i in f.code):
        found.append("no HGMMA anywhere: not a kernel of the matrix unit of sm_90")
    return found


def _audit(function: Function) -> Iterator[str]:
    code = function.code
    for i in code:
        if i.opcode in ("LDL", "STL"):
            yield f"{i.address:#x} {i.name}: local memory"
    place = {i.address: n for n, i in enumerate(code)}
    seen: set[tuple[int, State]] = set()
    todo = [(0, State())]
    while todo:
        n, state = todo.pop()
        if n >= len(code) or (n, state) in seen:
            continue
        seen.add((n, state))
        i = code[n]
        yield from _wrong(i, state)
        state = _after(i, state)
        todo += [(place.get(a, len(code)), state) for a in _targets(i, state)]
        leaves = i.opcode in ("BRA", "BSYNC", *ENDS)
        if not leaves or i.predicated or (i.opcode == "BRA" and len(i.operands) > 1):
            todo.append((n + 1, state))


def _wrong(i: Instruction, state: State) -> Iterator[str]:
    flying = [*state.groups, state.open]
    written = set(i.written())
    if (last := max(written | i.mentioned(), default=0)) >= state.registers:
        yield f"{i.address:#x} {i.name}: R{last}, of {state.registers} registers"
    for group in flying:
        since = f"while {_places(group)} may run"
        if hit := sorted(written & group.a):
            yield f"{i.address:#x} {i.name} writes R{hit[0]}, operand A, {since}"
        if i.opcode != "HGMMA" and (hit := sorted((written | i.mentioned()) & group.d)):
            yield f"{i.address:#x} {i.name} touches R{hit[0]}, an accumulator, {since}"
        if group.at and i.opcode == "CALL":
            yield f"{i.address:#x} {i.name}: a call {since}"
        if group.at and i.opcode in ENDS:
            yield f"{i.address:#x} {i.name}: the end {since}"
    if i.opcode == "WARPGROUP" and _pending(i) == 0 and [len(g.at) for g in state.groups] == [1]:
        yield f"{i.address:#x} {i.name}: serialised, {_places(state.groups[-1])} is waited for alone"


def _after(i: Instruction, state: State) -> State:
    opened, groups, joins, registers = state.open, state.groups, state.joins, state.registers
    if i.opcode == "HGMMA":
        opened = Products(
            (*opened.at, i.address), opened.a | frozenset(i.operand_a()), opened.d | frozenset(i.written())
        )
        if any(operand.startswith("gsb") for operand in i.operands):
            groups, opened = (*groups, opened), Products()
    elif i.opcode == "WARPGROUP" and (left := _pending(i)) is not None:
        groups = groups[len(groups) - left :] if len(groups) > left else groups
    elif i.opcode == "USETMAXREG":
        registers = int(i.operands[-1], 16)
    elif i.opcode == "BSSY":
        joins = (*(j for j in joins if j[0] != i.operands[0]), (i.operands[0], _address(i)))
    return State(opened, groups, registers, joins)


def _pending(i: Instruction) -> int | None:
    """Return how many groups a WARPGROUP.DEPBAR leaves in flight."""
    return int(i.operands[-1], 16) if ".DEPBAR" in i.name else None


def _targets(i: Instruction, state: State) -> list[int]:
    if i.opcode == "BRA":
        return [_address(i)]
    return [address for name, address in state.joins if i.opcode == "BSYNC" and name == i.operands[0]]


def _address(i: Instruction) -> int:
    match = ADDRESS.search(i.operands[-1])
    if not match:
        raise ValueError(f"{i.address:#x} {i.name} {', '.join(i.operands)}: no address to go to")
    return int(match[1], 16)


def _places(group: Products) -> str:
    return "HGMMA " + ", ".join(f"{a:#x}" for a in group.at)


def disassemble(path: Path) -> str:
    """Return the machine code of a cubin, an object or a shared library, as text."""
    tool = _cuobjdump()
    done = subprocess.run([tool, "-sass", path], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{path}: {tool} found no machine code: {done.stderr.strip()}")
    return done.stdout


def compile_cubin(source: Path, cubin: Path, macros: Sequence[str] = ()) -> list[str]:
    """Compile for sm_90a; return the warnings of ptxas about serialisation."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise Unavailable("nvcc is not on the path")
    flags = [*NVCC_FLAGS, *(f"-D{macro}" for macro in macros)]
    done = subprocess.run([nvcc, *flags, source, "-o", cubin], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{source}: nvcc failed:\n{done.stderr}")
    return [f"ptxas: {line.strip()}" for line in (done.stdout + done.stderr).splitlines() if "serialized" in line]


def audit_file(path: Path, macros: Sequence[str] = ()) -> list[str]:
    """Return the faults of a file, one line each."""
    if path.suffix != ".cu":
        return audit(disassemble(path))
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        said = compile_cubin(path, cubin, macros)
        return said + audit(disassemble(cubin))


def missing(*, compiler: bool = True) -> str:
    """Return which tool is missing, "" if none is."""
    try:
        _cuobjdump()
    except Unavailable as error:
        return str(error)
    return "" if not compiler or shutil.which("nvcc") else "nvcc is not on the path"


def _cuobjdump() -> str:
    """Find cuobjdump on the path or in Triton's package."""
    if tool := shutil.which("cuobjdump"):
        return tool
    spec = importlib.util.find_spec("triton")
    for folder in (spec and spec.submodule_search_locations) or ():
        tool = shutil.which("cuobjdump", path=str(Path(folder) / "backends" / "nvidia" / "bin"))
        if tool:
            return tool
    raise Unavailable("cuobjdump is neither on the path nor in Triton's package")


def main(argv: Sequence[str] | None = None) -> int:
    """Audit the files named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit_sass", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="cubin, object, extension or .cu")
    parser.add_argument("-D", dest="macros", action="append", default=[], metavar="NAME", help="for nvcc")
    options = parser.parse_args(argv)
    wrong = 0
    for path in options.files:
        try:
            found = audit_file(path, options.macros)
        except (Unavailable, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
        wrong += len(found)
        for line in found:
            print(f"{path}: {line}")
        if not found:
            print(f"{path}: no faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
