"""A thread block of PTX executed in numpy, all lanes at a time.

Warps run in lockstep, which hides a missing barrier from the results; shared memory finds it (memory.py). Copies land
as late as the program's waits allow. A register that was not written holds NaN, and reading one that no lane wrote is
a fault.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from . import matrix
from .arithmetic import COMPARE, OPERATIONS, TYPES, UNSIGNED
from .memory import Fault, Global, Shared
from .parser import Instruction, Program, elements

REGISTER = re.compile(r"%(rs|rd|r|f|p)\d+")
WIDTH = {"rs": 2, "r": 4, "rd": 8, "f": 4, "p": 0}  # bytes of a register; a predicate is a bool
FLOATS = ("f16", "f32", "bf16")
LIMIT = 2_000_000  # instructions of a block


class Block:
    """One thread block."""

    MEMORY: type[Shared] = Shared

    def __init__(self, program: Program, arguments: Sequence[int | float], place: tuple[int, ...], threads: int,
                 shared: int, memory: Global, truncate: int = 0) -> None:  # fmt: skip
        self.program, self.memory, self.truncate, self.threads = program, memory, truncate, threads
        self.shared = self.MEMORY(shared, threads // 32)
        self.warp = np.arange(threads) // 32
        self.all = np.ones(threads, bool)
        self.registers: dict[str, np.ndarray] = {}
        self.special = {"%tid.x": np.arange(threads, dtype=np.uint32)}
        for axis, at in zip("xyz", (*place, 0, 0), strict=False):
            self.special[f"%ctaid.{axis}"] = np.full(threads, at, np.uint32)
        self.parameters = {
            name: np.full(threads, value, TYPES[kind]) if kind[0] == "f"
            else np.full(threads, int(value) & (1 << 8 * TYPES[kind].itemsize) - 1, UNSIGNED[TYPES[kind].itemsize])
            for (name, kind), value in zip(program.parameters, arguments, strict=True)
        }  # fmt: skip
        self.open: list[tuple[np.ndarray, ...]] = []  # copies since the last commit
        self.groups: list[list[tuple[np.ndarray, ...]]] = []

    def run(self) -> int:
        """Execute to the end, and return how many instructions that took."""
        at = count = 0
        with np.errstate(all="ignore"):
            while True:
                instruction = self.program.code[at]
                count += 1
                if count > LIMIT:
                    raise Fault("the kernel does not end")
                try:
                    target = self.step(instruction)
                except Fault as fault:
                    raise Fault(f"{fault}, at instruction {at}: {instruction}") from None
                if target == "ret":
                    break
                at = self.program.labels[target] if target else at + 1
        if self.open or any(self.groups):
            raise Fault("the kernel ends while copies are under way")
        return count

    def active(self, instruction: Instruction) -> np.ndarray:
        if not instruction.guard:
            return self.all
        guard = self.predicate(instruction.guard)
        return ~guard if instruction.negated else guard

    def step(self, instruction: Instruction) -> str | None:
        """Execute one instruction, and return the label to go on at, if not the next one."""
        name, mask = instruction.opcode[0], self.active(instruction)
        if name in ("bra", "ret"):
            if mask.any() and not mask.all():
                raise Fault("a branch divides the block")
            return (instruction.operands[0] if name == "bra" else "ret") if mask.all() else None
        if name == "brx":
            entry = self.get(instruction.operands[0], "u32")
            if not mask.all() or (entry != entry[0]).any():
                raise Fault("a branch divides the block")
            return self.program.tables[instruction.operands[1]][entry[0]]
        method = getattr(self, f"do_{name}", None)
        if method:
            method(instruction.opcode, instruction.operands, mask)
        elif name in OPERATIONS:
            self.compute(instruction.opcode, instruction.operands, mask)
        else:
            raise NotImplementedError(f"PTX instruction {'.'.join(instruction.opcode)}")
        return None

    # Registers and operands

    def predicate(self, name: str) -> np.ndarray:
        if name[0] == "!":
            return ~self.predicate(name[1:])
        if name[0] != "%":
            return np.full(self.threads, int(name) != 0)
        if name not in self.registers:
            raise Fault(f"{name} is read before it is written")
        return self.registers[name]

    def get(self, operand: str, kind: str) -> np.ndarray:
        """Return an operand as lanes of a type."""
        dtype = TYPES[kind]
        if operand[0] == "%":
            value = self.special.get(operand, self.registers.get(operand))
            if value is None:
                raise Fault(f"{operand} is read before it is written")
            if value.dtype.itemsize != dtype.itemsize:
                value = value.astype(UNSIGNED[dtype.itemsize])
            return value.view(dtype)
        bits = 8 * dtype.itemsize
        if operand == "global_smem":
            number = 0
        elif operand[:2] in ("0f", "0F"):
            return np.full(self.threads, int(operand[2:], 16), np.uint32).view(dtype)
        else:
            number = int(operand.rstrip("U"), 0)
        return np.full(self.threads, number & (1 << bits) - 1, UNSIGNED[dtype.itemsize]).view(dtype)

    def put(self, operand: str, value: np.ndarray, mask: np.ndarray) -> None:
        """Write active lanes of a register."""
        if operand == "_":
            return
        width = WIDTH[REGISTER.fullmatch(operand)[1]]
        if width:
            unsigned = UNSIGNED[width]
            same = value.dtype.itemsize == width
            value = np.ascontiguousarray(value).view(unsigned) if same else value.astype(unsigned)
        if mask is not self.all and not mask.all():
            before = self.registers.get(operand)
            if before is None:
                before = np.full(self.threads, ~value.dtype.type(0) if width else False)
            value = np.where(mask, value, before)
        self.registers[operand] = value

    def address(self, operand: str) -> np.ndarray:
        base, _, offset = operand.strip("[] ").partition("+")
        kind = "u64" if base.startswith("%rd") else "u32"
        return self.get(base.strip(), kind).astype(np.int64) + int(offset or "0", 0)

    # Instructions

    def compute(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        name, kind = opcode[0], opcode[-1]
        target, *sources = operands
        if kind == "pred":
            values = [self.predicate(each) for each in sources]
            return self.put(target, OPERATIONS[name](opcode, *values), mask)
        kinds = [kind] * len(sources)
        if name in ("shl", "shr"):
            kinds[1] = "u32"
        elif name in ("bfe", "bfi"):
            kinds[-2:] = ["u32", "u32"]
        elif name == "mad" and "wide" in opcode:
            kinds[2] = f"{kind[0]}{16 * TYPES[kind].itemsize}"
        elif kind == "bf16" and name != "cvt":
            raise NotImplementedError(f"PTX instruction {'.'.join(opcode)}")
        return self.put(target, OPERATIONS[name](opcode, *map(self.get, sources, kinds)), mask)

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

    def do_bar(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        if not mask.all():
            raise Fault("a barrier reached by a part of the block")
        if opcode[1] == "sync":
            self.shared.barrier()

    def do_ld(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        if opcode[1] == "param":
            self.put(operands[0], self.parameters[operands[1].strip("[] ")], mask)
            return
        targets, size = elements(operands[0]), TYPES[opcode[-1]].itemsize
        data = np.full((self.threads, size * len(targets)), 0xFF, np.uint8)
        data[mask] = self.load(opcode[1], self.address(operands[1])[mask], data.shape[1], mask)
        for i, target in enumerate(targets):
            value = np.ascontiguousarray(data[:, i * size : (i + 1) * size]).view(UNSIGNED[size])[:, 0]
            self.put(target, value, mask)

    def load(self, space: str, address: np.ndarray, size: int, mask: np.ndarray) -> np.ndarray:
        if not address.size:
            return np.empty((0, size), np.uint8)
        if space == "shared":
            return self.shared.read(address, size, self.warp[mask])
        return self.memory.bytes[self.memory.places(address, size, "ld", self.warp[mask])]

    def do_st(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        kind, sources = opcode[-1], elements(operands[1])
        size = TYPES[kind].itemsize
        values = [np.ascontiguousarray(self.get(each, kind)).view(np.uint8).reshape(-1, size) for each in sources]
        data, address = np.concatenate(values, 1)[mask], self.address(operands[0])[mask]
        if not address.size:
            return
        if opcode[1] == "shared":
            self.shared.write(address, data, self.warp[mask])
        else:
            self.memory.bytes[self.memory.places(address, data.shape[1], "st", self.warp[mask])] = data

    def do_atom(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        if opcode[-1] != "f32" or not {"add", "relaxed"} <= {*opcode}:
            raise NotImplementedError(f"PTX instruction {'.'.join(opcode)}")
        if not mask.any():
            return
        address, values = operands if opcode[0] == "red" else operands[1:]
        sources = elements(values)
        at = self.address(address)[mask]
        places = self.memory.places(at, 4 * len(sources), "atom", self.warp[mask])[:, ::4] // 4
        added = np.stack([self.get(each, "f32")[mask] for each in sources], 1)
        np.add.at(self.memory.bytes.view(np.float32), places, added)

    do_red = do_atom

    def do_cp(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        if opcode[2] == "commit_group":
            self.groups.append(self.open)
            self.open = []
        elif opcode[2] == "wait_group":
            while len(self.groups) > int(operands[0], 0):
                for copy in self.groups.pop(0):
                    self.shared.land(*copy)
        else:
            to, size = self.address(operands[0])[mask], int(operands[2], 0)
            data, warp = np.zeros((self.threads, size), np.uint8), self.warp[mask]
            reading = mask
            if len(operands) > 3:  # of so many bytes; the rest is zero
                length = self.get(operands[3], "u32")
                if not np.isin(length, (0, size)).all():
                    raise Fault("a copy of a part of its bytes")
                reading = mask & (length > 0)
            data[reading] = self.load("global", self.address(operands[1])[reading], size, reading)
            self.shared.begin_copy(to, size, warp)
            self.open.append((to, data[mask], warp))

    def do_ldmatrix(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        self.whole(mask)
        targets = elements(operands[0])
        used = np.arange(self.threads) % 32 < 8 * len(targets)
        data = self.shared.read(self.address(operands[1])[used], 16, self.warp[used])
        rows = np.ascontiguousarray(data).view(np.uint16).reshape(self.threads // 32, len(targets), 8, 8)
        for target, value in zip(targets, matrix.spread(rows, "trans" in opcode), strict=True):
            self.put(target, value, mask)

    def do_mma(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        self.whole(mask)
        targets, a, b, c = map(elements, operands)
        values = [[self.get(each, "u32") for each in ab] for ab in (a, b)], [self.get(each, "f32") for each in c]
        results = matrix.multiply(*values[0], values[1], opcode[-2], self.truncate)
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
        if not mask.reshape(-1, 32).all(1).all():
            raise Fault("an instruction of a whole warp reached by a part of it")
