"""Lanes that execute PTX in numpy, all at a time: registers, operands, and instructions without control flow.

A register that was not written holds NaN, and reading one that no lane wrote is a fault.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from . import matrix
from .arithmetic import COMPARE, OPERATIONS, TYPES, UNSIGNED
from .memory import Fault, Global, Shared
from .parser import Instruction, Program, elements

REGISTER = re.compile(r"%(rs|rd|r|f|p)\d+")
WIDTH = {"rs": 2, "r": 4, "rd": 8, "f": 4, "p": 0}  # bytes of a register; a predicate is a bool


@functools.cache
def width(register: str) -> int:
    return WIDTH[REGISTER.fullmatch(register)[1]]


@functools.cache
def place(operand: str) -> tuple[str, str, int]:
    """Split an address [base+offset] into its base, the type of that, and the offset."""
    base, _, offset = operand.strip("[] ").partition("+")
    base = base.strip()
    return base, "u64" if base.startswith("%rd") else "u32", int(offset or "0", 0)


@functools.cache
def literal(operand: str, kind: str) -> np.ndarray:
    """Return a number in a program as an array of one element."""
    if operand[:2] in ("0f", "0F"):
        return np.array([int(operand[2:], 16)], np.uint32).view(TYPES[kind])
    number = 0 if operand == "global_smem" else int(operand.rstrip("U"), 0)
    size = TYPES[kind].itemsize
    return np.array([number & (1 << 8 * size) - 1], UNSIGNED[size]).view(TYPES[kind])


@functools.cache
def source_types(opcode: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Return the types of the operands of arithmetic."""
    name, kind = opcode[0], opcode[-1]
    if name in ("shl", "shr"):
        return kind, "u32"
    if name in ("bfe", "bfi"):
        return *(kind,) * (count - 2), "u32", "u32"
    if name == "mad" and "wide" in opcode:
        return kind, kind, f"{kind[0]}{16 * TYPES[kind].itemsize}"
    if name not in OPERATIONS or (kind == "bf16" and name != "cvt"):
        raise NotImplementedError(f"PTX instruction {'.'.join(opcode)}")
    return (kind,) * count


class Lanes:
    """Lanes of whole warps, of which each instruction may be for a part."""

    def __init__(self, program: Program, memory: Global, shared: Shared, warp: np.ndarray, truncate: int) -> None:
        """Make lanes that wrote no register yet; `warp` holds the number of each lane's warp."""
        self.program, self.memory, self.shared, self.warp, self.truncate = program, memory, shared, warp, truncate
        self.threads = warp.size
        self.all = np.ones(self.threads, bool)
        self.registers: dict[str, np.ndarray] = {}
        self.special: dict[str, np.ndarray] = {}
        self.parameters: dict[str, np.ndarray] = {}
        self.literals: dict[tuple[str, str], np.ndarray] = {}

    def active(self, instruction: Instruction) -> np.ndarray:
        if not instruction.guard:
            return self.all
        guard = self.predicate(instruction.guard)
        return ~guard if instruction.negated else guard

    def execute(self, instruction: Instruction, mask: np.ndarray) -> object:
        """Execute an instruction for lanes, and return what its method does."""
        method = getattr(self, f"do_{instruction.opcode[0]}", self.compute)
        return method(instruction.opcode, instruction.operands, mask)

    # Registers and operands

    def predicate(self, name: str) -> np.ndarray:
        if name[0] == "!":
            return ~self.predicate(name[1:])
        if name[0] != "%":
            return self.all if int(name) else ~self.all
        if name not in self.registers:
            raise Fault(f"{name} is read before it is written")
        return self.registers[name]

    def get(self, operand: str, kind: str) -> np.ndarray:
        """Return an operand as lanes of a type. No array of lanes is ever changed."""
        value = self.registers.get(operand)
        if value is None:
            if operand[0] != "%":
                if (operand, kind) not in self.literals:
                    self.literals[operand, kind] = np.repeat(literal(operand, kind), self.threads)
                return self.literals[operand, kind]
            if operand not in self.special:
                raise Fault(f"{operand} is read before it is written")
            value = self.special[operand]
        dtype = TYPES[kind]
        if value.dtype == dtype:
            return value
        size = value.dtype.itemsize
        if size != dtype.itemsize:
            value = value.view(UNSIGNED[size]).astype(UNSIGNED[dtype.itemsize])
        return value.view(dtype)

    def put(self, operand: str, value: np.ndarray, mask: np.ndarray) -> None:
        """Write active lanes of a register."""
        if operand == "_":
            return
        size = width(operand)
        if size and value.dtype.itemsize != size:
            value = value.astype(UNSIGNED[size])
        if mask is not self.all:
            before = self.registers.get(operand)
            if before is None:
                before = np.full(self.threads, -1, f"i{size}") if size else ~self.all
            value = np.where(mask, value, before.view(value.dtype))
        self.registers[operand] = value

    def address(self, operand: str) -> np.ndarray:
        base, kind, offset = place(operand)
        return self.get(base, kind).astype(np.int64) + offset

    # Instructions

    def compute(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        target, *sources = operands
        kinds = source_types(opcode, len(sources))
        values = map(self.predicate, sources) if opcode[-1] == "pred" else map(self.get, sources, kinds)
        self.put(target, OPERATIONS[opcode[0]](opcode, *values), mask)

    def do_mov(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        target, source = operands
        kind = opcode[-1]
        if kind == "pred":
            self.put(target, self.predicate(source), mask)
        elif target[0] == "{":
            parts = elements(target)
            bits = 8 * TYPES[kind].itemsize // len(parts)
            value = self.get(source, kind).astype(np.uint64)
            for i, part in enumerate(parts):
                self.put(part, (value >> np.uint64(bits * i)).astype(UNSIGNED[bits // 8]), mask)
        elif source[0] == "{":
            parts = elements(source)
            bits, value = 8 * TYPES[kind].itemsize // len(parts), np.zeros(self.threads, np.uint64)
            for i, part in enumerate(parts):
                value |= self.get(part, f"u{bits}").astype(np.uint64) << np.uint64(bits * i)
            self.put(target, value.astype(TYPES[kind]), mask)
        else:
            self.put(target, self.get(source, kind), mask)

    def do_setp(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        test, kind = opcode[1], opcode[-1]
        a, b = (self.get(each, kind) for each in operands[1:])
        if kind in ("f16x2", "bf16x2"):
            left, right = matrix.halves(a, kind[:-2]), matrix.halves(b, kind[:-2])
            for i, target in enumerate(operands[0].split("|")):
                self.put(target, self.compare(test, left[:, i], right[:, i]), mask)
            return
        if kind == "bf16":
            a, b = ((each.astype(np.uint32) << 16).view(np.float32) for each in (a, b))
        self.put(operands[0], self.compare(test, a, b), mask)

    @staticmethod
    def compare(test: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if test in ("num", "nan"):
            unordered = np.isnan(a) | np.isnan(b)
            return unordered if test == "nan" else ~unordered
        if test in COMPARE:
            ordered = ~(np.isnan(a) | np.isnan(b)) if a.dtype.kind == "f" else True
            return COMPARE[test](a, b) & ordered
        return COMPARE[test[:-1]](a, b) | np.isnan(a) | np.isnan(b)  # "u": true of a NaN

    def do_selp(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        a, b = (self.get(each, opcode[-1]) for each in operands[1:3])
        self.put(operands[0], np.where(self.predicate(operands[3]), a, b), mask)

    def do_ld(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        targets, size = elements(operands[0]), TYPES[opcode[-1]].itemsize
        if opcode[1] == "param":
            self.put(targets[0], self.parameters[operands[1].strip("[] ")], mask)
            return
        data = self.load(opcode[1], self.address(operands[1]), size * len(targets), mask)
        for target, value in zip(targets, data.view(UNSIGNED[size]).T, strict=True):
            self.put(target, np.ascontiguousarray(value), mask)

    def load(self, space: str, address: np.ndarray, size: int, mask: np.ndarray) -> np.ndarray:
        """Return bytes [lanes, size], 0xFF where a lane is not active."""
        memory = self.shared if space == "shared" else self.memory
        if mask is self.all:
            return memory.read(address, size, self.warp)
        data = np.full((self.threads, size), 0xFF, np.uint8)
        if mask.any():
            data[mask] = memory.read(address[mask], size, self.warp[mask])
        return data

    def do_st(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        kind, sources = opcode[-1], elements(operands[1])
        data = np.stack([self.get(each, kind) for each in sources], 1).view(np.uint8)
        address, warp = self.address(operands[0]), self.warp
        if mask is not self.all:
            address, data, warp = address[mask], data[mask], warp[mask]
        if address.size:
            (self.shared if opcode[1] == "shared" else self.memory).write(address, data, warp)

    def do_atom(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        if opcode[-1] != "f32" or not {"add", "relaxed"} <= {*opcode}:
            raise NotImplementedError(f"PTX instruction {'.'.join(opcode)}")
        if mask.any():
            address, values = operands if opcode[0] == "red" else operands[1:]
            added = np.stack([self.get(each, "f32") for each in elements(values)], 1)
            self.memory.increase(self.address(address)[mask], added[mask], self.warp[mask])

    do_red = do_atom

    def do_ldmatrix(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        self.whole(mask)
        targets = elements(operands[0])
        used = np.arange(self.threads) % 32 < 8 * len(targets)
        data = self.load("shared", self.address(operands[1]), 16, used & mask)[used]
        rows = data.view(np.uint16).reshape(-1, len(targets), 8, 8)
        for target, value in zip(targets, matrix.spread(rows, "trans" in opcode), strict=True):
            self.put(target, value, mask)

    def do_mma(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        self.whole(mask)
        targets, a, b, c = map(elements, operands)
        left, right = (np.stack([self.get(each, "u32") for each in ab]) for ab in (a, b))
        results = matrix.multiply(
            left, right, np.stack([self.get(each, "f32") for each in c]), opcode[-2], self.truncate
        )
        for target, value in zip(targets, results, strict=True):
            self.put(target, value, mask)

    def do_shfl(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        self.whole(mask)
        value = self.get(operands[1], "u32").reshape(-1, 32)
        lane = self.get(operands[2], "u32").reshape(-1, 32).astype(int)
        source = np.arange(32) ^ lane if "bfly" in opcode else lane
        if opcode[2] not in ("bfly", "idx"):
            raise NotImplementedError(f"PTX instruction {'.'.join(opcode)}")
        self.put(operands[0].split("|")[0], np.take_along_axis(value, source & 31, 1).ravel(), mask)

    def whole(self, mask: np.ndarray) -> None:
        if mask is not self.all and (mask != mask[::32].repeat(32)).any():
            raise Fault("an instruction of a whole warp reached by a part of it")
