"""Thread blocks of sm_90, for which Triton compiles matrix products of warpgroups, on operands in shared memory.

A product reads its operands at any time between its issue and its wait. So until the wait nothing may touch its
registers or write its memory, and what it reads must have passed a fence between the proxies, and a barrier. The warps
of a warpgroup may issue their shares of it in any order, but they must issue the same products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import blocks, matrix, wgmma
from .memory import EPOCH, MANY, NEVER, PENDING, Fault, Shared
from .parser import elements

WARPS = 4  # of a warpgroup


class Product(NamedTuple):
    """A wgmma that was issued, of all warps of a part."""

    d: tuple[str, ...]
    a: tuple[str, ...]  # registers, if it takes A from there
    memory: list[tuple[np.ndarray, int, np.ndarray]]  # what it reads: see AsyncShared.end_product


class AsyncShared(Shared):
    """Shared memory that products read, too: through another proxy, which sees writes only behind a fence."""

    def __init__(self, size: int, warps: int, blocks: int = 1) -> None:
        super().__init__(size, warps, blocks)
        self.unfenced = np.zeros(self.bytes.size, bool)
        self.reading = np.zeros(self.bytes.size, np.int32)  # products that read a byte and were not waited for
        self.products: dict[int, list[tuple]] = {}  # of each warpgroup, as its fastest warp issued them

    def fence(self, warps: np.ndarray) -> None:
        """Let products see what these warps wrote, and what their blocks did before the last barrier."""
        at = np.flatnonzero(self.unfenced)
        block, written = at * (self.mark.size // self.warps) // self.bytes.size, self.writes[at]
        fencing = np.zeros(self.mark.size, bool)
        fencing[warps] = True
        before = written < (self.mark & -EPOCH)[block * self.warps]
        seen = np.where(before, fencing.reshape(-1, self.warps).any(1)[block],
                        fencing[block * self.warps + written % EPOCH % self.warps])  # fmt: skip
        self.unfenced[at[seen]] = False

    def _claim(self, at: np.ndarray, size: int, mark: np.ndarray, first: np.ndarray, what: str
               ) -> tuple[np.ndarray, ...]:  # fmt: skip
        if self.checked and self.reading.reshape(-1, size)[at].any():
            raise Fault(f"{what} to shared memory that a product reads")
        self.unfenced.reshape(-1, size)[at] = True
        return super()._claim(at, size, mark, first, what)

    def land(self, address: np.ndarray, data: np.ndarray, warp: np.ndarray) -> None:
        super().land(address, data, warp)
        at, *_ = self._rows(address, data.shape[1], warp)
        self.unfenced.reshape(-1, data.shape[1])[at] = True

    def begin_product(self, address: np.ndarray, size: int, warp: np.ndarray) -> np.ndarray:
        """Check what products of warpgroups read, and return where that lies, in units of `size`.

        Args:
            address: of elements in their blocks, [warpgroups, rows, columns].
            warp: one of each warpgroup.
        """
        if address.min() < 0 or address.max() + size > self.size:
            raise Fault(f"a product of memory outside of the block's {self.size} bytes")
        at = (address + self.base[warp, None, None]) // size
        if self.checked:
            written, first = self.writes.reshape(-1, size)[at], self.mark[warp, None, None, None] & -EPOCH
            if (written == NEVER).any():
                raise Fault("a product of shared memory that was never written")
            if (written == PENDING).any():
                raise Fault("a product of shared memory to which a copy is under way")
            if (written >= first).any():
                raise Fault("a race: product of shared memory that was written since the last barrier")
            if self.unfenced.reshape(-1, size)[at].any():
                raise Fault("a product of shared memory written without a proxy fence behind")
        self.reading.reshape(-1, size)[at] += 1
        return at

    def end_product(self, at: np.ndarray, size: int, warp: np.ndarray) -> None:
        """Note the read, of all warps of a warpgroup: none may write there before the next barrier."""
        self.reading.reshape(-1, size)[at] -= 1
        self.reads.reshape(-1, size)[at] = (self.mark[warp, None, None, None] & -EPOCH) + MANY


class Part(blocks.Part):
    """Some warps of sm_90."""

    shared: AsyncShared

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.unready: set[str] = set()  # registers written since the last wgmma.fence
        self.batches: list[list[Product]] = [[]]  # products not waited for, by groups, the last not committed
        self.writing: set[str] = set()  # accumulators of products under way
        self.holding: set[str] = set()  # operands of theirs
        self.issued = 0

    def keep(self, mask: np.ndarray) -> None:
        if self.writing:
            raise Fault("a branch divides warps while products are under way")
        super().keep(mask)
        self.unready, self.batches = {*self.unready}, [[]]

    def end(self) -> None:
        super().end()
        if self.writing:
            raise Fault("the kernel ends while products are under way")

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
        data = matrix.gathered(np.stack([self.get(each, "u32") for each in sources]), "trans" in opcode)
        used = np.arange(self.threads) % 32 < 8 * len(sources)
        self.shared.write(self.address(operands[0])[used & mask], data[mask[used]], self.warp[used & mask])

    def do_fence(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        if opcode[1:] != ("proxy", "async", "shared::cta"):
            raise NotImplementedError(f"PTX instruction {'.'.join(opcode)}")
        if not mask.all():
            raise Fault("a proxy fence reached by a part of the block")
        self.shared.fence(self.warp[::32])

    def do_wgmma(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        self.whole(mask)
        if not mask.all():
            raise Fault("an instruction of all warpgroups reached by a part of the block")
        if opcode[1] == "fence":
            self.unready.clear()
        elif opcode[1] == "commit_group":
            self.batches.append([])
        elif opcode[1] == "wait_group":
            while len(self.batches) - 1 > int(operands[0], 0):
                for product in self.batches.pop(0):
                    for each in product.memory:
                        self.shared.end_product(*each)
            self.in_use()
        else:
            self.issue(opcode, operands)

    def issue(self, opcode: tuple[str, ...], operands: tuple[str, ...]) -> None:
        kind, columns = opcode[-1], int(opcode[4].split("n")[1].split("k")[0])
        d, scale = elements(operands[0]), operands[3]
        a = elements(operands[1]) if operands[1][0] == "{" else ()
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
        warp = self.warp[::32]
        groups, first, group = np.unique(warp // WARPS, return_index=True, return_inverse=True)
        memory: list[tuple[np.ndarray, int, np.ndarray]] = []
        if a:
            left = matrix.rows(np.stack([self.registers[each].view(np.uint32) for each in a]), kind)
        else:
            all_rows = self.operand(operands[1], first, group, 64, kind, transposed[0], memory)
            left = all_rows.reshape(len(groups), WARPS, 16, -1)[group, warp % WARPS]
        right = self.operand(operands[2], first, group, columns, kind, transposed[-1], memory)
        sums = np.zeros((len(d), self.threads), np.float32)
        if adds[0]:
            sums = np.stack([self.registers[each].view(np.float32) for each in d])
        result = wgmma.multiply(sums, left, right.swapaxes(1, 2)[group], self.truncate)
        self.registers |= zip(d, result, strict=True)
        for number, lane in zip(groups, 32 * first, strict=True):
            log = self.shared.products.setdefault(number, [])
            issued = d, a, *(int(self.get(each, "u64")[lane]) for each in operands[1:3] if each[0] == "%")
            if self.issued == len(log):
                log.append(issued)
            elif log[self.issued] != issued:
                raise Fault("the warps of a warpgroup issue different products")
        self.issued += 1
        self.batches[-1].append(Product(d, a, memory))
        self.in_use()

    def operand(self, name: str, first: np.ndarray, group: np.ndarray, rows: int, kind: str, transposed: bool,
                memory: list[tuple[np.ndarray, int, np.ndarray]]) -> np.ndarray:  # fmt: skip
        """Return an operand's elements of each warpgroup as float64, [warpgroups, rows, K]; add to what is read."""
        lanes = self.get(name, "u64").reshape(-1, 32)
        descriptors = lanes[first, 0]
        if (lanes != descriptors[group, None]).any():
            raise Fault("the lanes of a warpgroup issue different products")
        size = wgmma.SIZES[kind]
        address = np.stack([wgmma.addresses(int(each), rows, size, transposed) for each in descriptors])
        warp = self.warp[32 * first]
        at = self.shared.begin_product(address, size, warp)
        memory.append((at, size, warp))
        return matrix.numbers(self.shared.bytes.view(f"u{size}")[at], kind)

    def in_use(self) -> None:
        under_way = [product for batch in self.batches for product in batch]
        self.writing = {name for product in under_way for name in product.d}
        self.holding = {name for product in under_way for name in product.a}


class Blocks(blocks.Blocks):
    """Blocks of sm_90."""

    PART, MEMORY = Part, AsyncShared
    shared: AsyncShared

    def run(self) -> int:
        count = super().run()
        for part in self.parts:
            if any(part.issued != len(self.shared.products.get(group, ())) for group in part.warp[::32] // WARPS):
                raise Fault("products that a part of a warpgroup issues")
        return count
