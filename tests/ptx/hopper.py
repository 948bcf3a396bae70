"""A thread block of sm_90, for which Triton compiles matrix products of warpgroups, on operands in shared memory.

A product reads its operands at any time between its issue and its wait. So until the wait nothing may touch its
registers or write its memory, and what it reads must have passed a fence between the proxies, and a barrier.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import machine, matrix, wgmma
from .arithmetic import TYPES
from .memory import Fault, Shared
from .parser import elements

GROUP = 128  # threads of a warpgroup


class Product(NamedTuple):
    """A wgmma that was issued, of all warpgroups."""

    d: tuple[str, ...]
    a: tuple[str, ...]  # registers, if it takes A from there
    memory: list[np.ndarray]  # of each warpgroup, the bytes that it reads


class AsyncShared(Shared):
    """Shared memory that products read, too: through another proxy, which sees writes only behind a fence."""

    def __init__(self, size: int, warps: int) -> None:
        super().__init__(size, warps)
        self.unfenced = np.zeros(size, bool)
        self.reading = np.zeros(size, int)  # products that read a byte and were not waited for

    def fence(self) -> None:
        self.unfenced[:] = False

    def _claim(self, at: np.ndarray, warp: np.ndarray) -> None:
        if self.reading[at].any():
            raise Fault("a write to shared memory that a product reads")
        super()._claim(at, warp)
        self.unfenced[at] = True

    def begin_product(self, at: np.ndarray) -> None:
        """Check the bytes that a warpgroup's product reads."""
        if at.min() < 0 or at.max() >= self.bytes.size:
            raise Fault(f"a product of memory outside of the block's {self.bytes.size} bytes")
        if self.pending[at].any():
            raise Fault("a product of shared memory to which a copy is under way")
        if not self.written[at].all():
            raise Fault("a product of shared memory that was never written")
        if (self.write_epoch[at] == self.epoch).any():
            raise Fault("a race: product of shared memory that was written since the last barrier")
        if self.unfenced[at].any():
            raise Fault("a product of shared memory written without a proxy fence behind")
        self.reading[at] += 1

    def end_product(self, at: np.ndarray, warps: range) -> None:
        """Note the read: another warp may write there behind the next barrier."""
        self.reading[at] -= 1
        self.read_epoch[np.asarray(warps)[:, None], at] = self.epoch


class Block(machine.Block):
    """One thread block of sm_90."""

    shared: AsyncShared
    MEMORY = AsyncShared

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.unready: set[str] = set()  # registers written since the last wgmma.fence
        self.batch: list[Product] = []  # products since the last commit
        self.batches: list[list[Product]] = []
        self.writing: set[str] = set()  # accumulators of products under way
        self.holding: set[str] = set()  # operands of theirs

    def run(self) -> int:
        count = super().run()
        if self.batch or any(self.batches):
            raise Fault("the kernel ends while products are under way")
        return count

    def get(self, operand: str, kind: str) -> np.ndarray:
        if operand in self.writing:
            raise Fault(f"{operand} is read while a product writes it")
        return super().get(operand, kind)

    def put(self, operand: str, value: np.ndarray, mask: np.ndarray) -> None:
        if operand in self.writing or operand in self.holding:
            raise Fault(f"{operand} is written while a product uses it")
        self.unready.add(operand)
        super().put(operand, value, mask)

    def do_mov(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        super().do_mov(opcode, operands, mask)
        # LLVM copies accumulators behind a fence; ptxas gives both one register, and nothing is written there.
        if operands[1] in self.registers and operands[1] not in self.unready:
            self.unready.discard(operands[0])

    def do_stmatrix(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        self.whole(mask)
        sources = elements(operands[1])
        data = matrix.gathered([self.get(each, "u32") for each in sources], "trans" in opcode)
        used = np.arange(self.threads) % 32 < 8 * len(sources)
        self.shared.write(self.address(operands[0])[used], data, self.warp[used])

    def do_fence(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        if opcode[1:] != ("proxy", "async", "shared::cta"):
            raise NotImplementedError(f"PTX instruction {'.'.join(opcode)}")
        if not mask.all():
            raise Fault("a proxy fence reached by a part of the block")
        self.shared.fence()

    def do_wgmma(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        self.whole(mask)
        if not mask.all():
            raise Fault("an instruction of all warpgroups reached by a part of the block")
        if opcode[1] == "fence":
            self.unready.clear()
        elif opcode[1] == "commit_group":
            self.batches.append(self.batch)
            self.batch = []
        elif opcode[1] == "wait_group":
            while len(self.batches) > int(operands[0], 0):
                self.finish(self.batches.pop(0))
        else:
            self.issue(opcode, operands)

    def issue(self, opcode: tuple[str, ...], operands: tuple[str, ...]) -> None:
        kind, columns = opcode[-1], int(opcode[4].split("n")[1].split("k")[0])
        d, scale = tuple(elements(operands[0])), operands[3]
        in_registers = operands[1][0] == "{"
        a = tuple(elements(operands[1])) if in_registers else ()
        signs, transposed = operands[4:6], [each == "1" for each in operands[6:]] or [False] * 2
        if opcode[5:] != ("f32", kind, kind) or signs != ("1", "1") or len(d) != columns // 2:
            raise NotImplementedError(f"PTX instruction {'.'.join(opcode)} {operands[4:]}")
        adds = self.predicate(scale)
        if (adds != adds[0]).any():
            raise Fault("a product that some lanes add up, and some do not")
        if self.unready & {*d, *a}:
            raise Fault("a product of registers written since the last wgmma.fence")
        if self.writing & {*a} or self.holding & {*d}:
            raise Fault("a product of registers in the hands of another")
        if not {*a, *(d if adds[0] else ())} <= self.registers.keys():
            raise Fault("a product of registers that were never written")
        size = wgmma.SIZES[kind]
        held = np.stack([self.registers[each] for each in a]) if a else None
        sums = np.zeros((len(d), self.threads), np.float32)
        if adds[0]:
            sums = np.stack([self.registers[each] for each in d]).view(np.float32)
        result, memory = np.empty_like(sums), []
        for start in range(0, self.threads, GROUP):
            right, at = self.operand(operands[2], start, columns, kind, transposed[-1])
            read = [at]
            if held is None:
                left, at = self.operand(operands[1], start, 64, kind, transposed[0])
                read.append(at)
            memory.append(np.unique(np.concatenate(read)[:, None] + np.arange(size)))
            self.shared.begin_product(memory[-1])
            for warp in range(4):
                lanes = slice(start + 32 * warp, start + 32 * warp + 32)
                rows = left[16 * warp :][:16] if held is None else wgmma.fragment([*held[:, lanes]], kind)
                result[:, lanes] = wgmma.multiply(sums[:, lanes], rows, right.T, self.truncate)
        self.registers |= zip(d, result.view(np.uint32), strict=True)
        self.batch.append(Product(d, a, memory))
        self.in_use()

    def operand(self, name: str, start: int, rows: int, kind: str, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return an operand's elements [rows, K] of a warpgroup as float64, and their addresses, flat."""
        descriptor = self.get(name, "u64")[start : start + GROUP]
        if (descriptor != descriptor[0]).any():
            raise Fault("the lanes of a warpgroup issue different products")
        size = wgmma.SIZES[kind]
        at = wgmma.addresses(int(descriptor[0]), rows, size, transposed)
        raw = self.shared.bytes[np.minimum(at[..., None] + np.arange(size), self.shared.bytes.size - 1)]
        return wgmma.values(raw.view(TYPES[f"u{8 * size}"])[..., 0], kind), at.ravel()

    def finish(self, batch: list[Product]) -> None:
        for product in batch:
            for group, at in enumerate(product.memory):
                self.shared.end_product(at, range(4 * group, 4 * group + 4))
        self.in_use()

    def in_use(self) -> None:
        under_way = [product for batch in (*self.batches, self.batch) for product in batch]
        self.writing = {name for product in under_way for name in product.d}
        self.holding = {name for product in under_way for name in product.a}
