"""Execute one warp of a cluster, with the instructions that PTX of sm_90 adds to ../machine.py.

Lanes may diverge. The group of lanes that is furthest behind goes on, so that lanes meet where compilers expect it.
PTX promises no such order; with `Warp.scattered` any group may go on, and they meet only where the program lets them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import machine, matrix, wgmma
from ..arithmetic import TYPES, UNSIGNED
from ..memory import Fault, Global
from ..parser import Program, elements
from .order import RANK, START, WARPS, Barrier, Order

if TYPE_CHECKING:
    from .cluster import Block, Cluster

COLUMNS = 256  # of a product
LAUNCHED = 168  # registers a thread: the 65,536 of an SM for 384 threads, a multiple of 8
WAIT = object()  # what an instruction returns that cannot be executed yet


class Product(NamedTuple):
    """Hold a wgmma that was issued."""

    d: tuple[str, ...]
    a: tuple[str, ...]
    descriptor: int
    kind: str


class Warp(machine.Lanes):
    """Hold 32 lanes of a block."""

    scattered = False

    def __init__(self, cluster: Cluster, block: Block, number: int, program: Program, parameters: np.ndarray,
                 place: int, grid: int, memory: Global, truncate: int) -> None:  # fmt: skip
        super().__init__(program, memory, self, np.zeros(32, int), truncate)  # accesses by lanes: see read and write
        self.cluster, self.block, self.number = cluster, block, number
        self.actor = block.rank * WARPS + number
        self.unit = block.shared.generic + self.actor
        self.order = Order(cluster.actors)
        self.order.seen[self.actor] = 1
        lane = np.arange(32, dtype=np.uint32)
        self.special = {
            "%ctaid.x": np.full(32, place, np.uint32),
            "%tid.x": lane + np.uint32(32 * number), "%laneid": lane, "%nctaid.x": np.full(32, grid, np.uint32),
            "%shared": np.full(32, START | block.rank << RANK, np.uint32),
            "%param_0": np.zeros(32, np.uint64), "%param_1": np.full(32, parameters.size - 8, np.uint64),
        }  # fmt: skip
        self.constants = parameters
        self.groups: dict[int, np.ndarray] = {0: self.all}  # lanes by their next instruction
        self.parked: tuple[Barrier, int] | None = None  # where it waits, and for which phase
        self.held = LAUNCHED
        self.unfenced: set[str] = set()  # registers written since the last wgmma.fence
        self.queue: list[Product] = []  # issued and not executed
        self.flight: list[list[Product]] = [[]]  # not waited for, by groups, the last not committed
        self.writing: set[str] = set()  # accumulators and operands in the hands of products
        self.reading: set[str] = set()
        self.issued = self.committed = 0

    def where(self) -> str:
        return ", ".join(".".join(self.program.code[at].opcode) for at in self.groups)

    def advance(self, count: int) -> int:
        """Execute up to `count` instructions, and return how many it could."""
        with np.errstate(all="ignore"):
            for done in range(count):
                groups = sorted(self.groups)
                if self.scattered:
                    self.cluster.random.shuffle(groups)
                if not any(self.go(at) for at in groups):
                    return done
        return count

    def go(self, at: int) -> bool:
        """Execute an instruction for the lanes that have come to it; return False if they have to wait."""
        instruction, lanes = self.program.code[at], self.groups[at]
        name, target, mask = instruction.opcode[0], "", lanes
        if instruction.guard:
            mask = self.active(instruction) & lanes
        try:
            if name in ("bra", "ret"):
                target = name
                if name == "ret" and self.writing and mask.any():
                    raise Fault("the kernel ends while products are under way")
            elif (mask is lanes or mask.any()) and self.execute(instruction, mask) is WAIT:
                return False
        except Fault as fault:
            text = f"{'.'.join(instruction.opcode)} {', '.join(instruction.operands)}"
            raise Fault(f"{fault}, at instruction {at} of warp {self.number}: {text[:120]}") from None
        del self.groups[at]
        if not target:
            self.join(at + 1, lanes)
            return True
        for place, those in ((self.program.labels[instruction.operands[0]] if name == "bra" else -1, mask),
                             (at + 1, lanes & ~mask)):  # fmt: skip
            if place >= 0 and those.any():
                self.join(place, those)
        return True

    def join(self, at: int, lanes: np.ndarray) -> None:
        if at in self.groups:
            lanes = self.groups[at] | lanes
        self.groups[at] = self.all if lanes.all() else lanes

    # Registers

    def get(self, operand: str, kind: str) -> np.ndarray:
        if operand in self.writing:
            raise Fault(f"{operand} is read while a product writes it")
        return super().get(operand, kind)

    def put(self, operand: str, value: np.ndarray, mask: np.ndarray) -> None:
        if operand in self.writing or operand in self.reading:
            raise Fault(f"{operand} is written while a product uses it")
        self.unfenced.add(operand)
        super().put(operand, value, mask)

    def do_mov(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        super().do_mov(opcode, operands, mask)
        # nvcc copies accumulators behind a fence; ptxas gives both one register, and nothing is written there.
        if operands[1] in self.registers and operands[1] not in self.unfenced:
            self.unfenced.discard(operands[0])

    def one(self, operand: str, kind: str, mask: np.ndarray) -> int:
        """Return an operand that is the same in all lanes."""
        values = self.get(operand, kind)[mask]
        if (values != values[0]).any():
            raise Fault(f"{operand} differs among the lanes")
        return int(values[0])

    def tick(self) -> None:
        """Begin a new event: what follows is not known to those who know what was before."""
        self.order.seen[self.actor] += 1

    # Memory

    def read(self, address: np.ndarray, size: int, warp: np.ndarray) -> np.ndarray:
        shared = self.block.shared
        place = self.own(address)
        words = shared.words(place, size)
        shared.read(words, self.actor, self.order.seen[self.actor], self.order.seen)
        return shared.bytes[(place - START)[:, None] + np.arange(size)]

    def write(self, address: np.ndarray, data: np.ndarray, warp: np.ndarray) -> None:
        shared = self.block.shared
        place = self.own(address)
        shared.write(shared.words(place, data.shape[1]), self.actor, self.order.seen[self.actor], self.order.seen)
        shared.bytes[(place - START)[:, None] + np.arange(data.shape[1])] = data

    def own(self, address: np.ndarray) -> np.ndarray:
        if (address >> RANK != self.block.rank).any():
            raise Fault("an address of another block's shared memory")
        return address & (1 << RANK) - 1

    def do_ld(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        if opcode[1] != "param":
            return super().do_ld(opcode, operands, mask)
        size, start = TYPES[opcode[-1]].itemsize, int(self.address(operands[1])[0])
        for i, target in enumerate(elements(operands[0])):
            value = self.constants[start + i * size :][:size].view(UNSIGNED[size])
            self.put(target, np.full(32, value[0]), mask)
        return None

    def do_cvta(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        self.put(operands[0], self.get(operands[1], opcode[-1]), mask)

    def do_mapa(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        address, rank = (self.get(each, "u32") for each in operands[1:])
        self.put(operands[0], address & np.uint32((1 << RANK) - 1) | rank << np.uint32(RANK), mask)

    def do_cp(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        if opcode[2] != "bulk" or mask.sum() != 1:
            raise Fault("one lane makes a bulk copy")
        to, source, barrier = (int(self.address(operands[i])[mask][0]) for i in (0, 1, 3))
        size = self.one(operands[2], "u32", mask)
        if size % 16 or size <= 0:
            raise Fault(f"a bulk copy of {size} bytes")
        data = self.memory.read(source + np.arange(0, size, 16), 16).ravel()
        to_all = self.one(operands[4], "u16", mask) if "multicast::cluster" in opcode else 1 << (to >> RANK)
        self.cluster.begin_copy(self, to, data, barrier, [rank for rank in range(16) if to_all >> rank & 1])

    # Barriers and fences

    def do_mbarrier(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> object:
        what = opcode[1]
        if what == "try_wait":
            (address,) = {int(each) for each in self.address(operands[1])[mask]}
            barrier = self.mbarrier(address)
            if barrier.phase % 2 == self.one(operands[2], "u32", mask):
                return WAIT
            self.order.learn(barrier.opened)
            self.put(operands[0], np.ones(32, bool), mask)
            return None
        at = 0 if what == "init" else 1
        counts = self.get(operands[-1], "u32")[mask] if len(operands) > at + 1 else [0] * int(mask.sum())
        for address, count in zip(self.address(operands[at])[mask], counts, strict=True):
            if what == "init":
                barrier = Barrier(int(count), self.cluster.actors)
                barrier.maker = self.actor, int(self.order.seen[self.actor])
                self.block.mbarriers[int(self.own(address))] = barrier
                continue
            barrier = self.mbarrier(int(address))
            barrier.bytes += int(count)  # expect_tx
            barrier.arrive(self.order)
        if what == "arrive":
            self.tick()
        return None

    def mbarrier(self, address: int) -> Barrier:
        barrier = self.cluster.mbarrier(address)
        if address >> RANK != self.block.rank:
            self.cluster.blocks[address >> RANK].visits.append((self.actor, int(self.order.seen[self.actor])))
        barrier.usable(self.order.seen)
        return barrier

    def do_bar(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> object:
        if opcode[1] == "warp" or (self.scattered and operands == ("0",)):  # ptxas lets lanes meet at __syncthreads
            if not mask.all():
                return WAIT
        if opcode[1] == "warp":
            return None
        self.whole(mask)
        threads = self.one(operands[1], "u32", mask) if len(operands) > 1 else 32 * WARPS
        number = self.one(operands[0], "u32", mask)
        barrier = self.block.named.setdefault(number, Barrier(threads, self.cluster.actors))
        if barrier.count != threads:
            raise Fault(f"a named barrier of {barrier.count} threads and of {threads}")
        return self.arrive(barrier, 32, mask, opcode[1] == "sync")

    def do_barrier(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> object:
        meeting = self.cluster.meeting
        if opcode[2] == "arrive":
            self.met = meeting.phase
            return self.arrive(meeting, int(mask.sum()), mask, False)
        if meeting.phase == self.met:
            return WAIT
        self.order.learn(meeting.opened)
        return None

    def arrive(self, barrier: Barrier, count: int, mask: np.ndarray, wait: bool) -> object:
        if not self.parked:
            phase = barrier.phase
            barrier.arrive(self.order, count)
            self.tick()
            self.parked = (barrier, phase) if wait else None
        if wait and self.parked:
            if barrier.phase == self.parked[1]:
                return WAIT
            self.parked = None
            self.order.learn(barrier.opened)
        return None

    def do_fence(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        if opcode[1] == "mbarrier_init":
            for barrier in self.block.mbarriers.values():
                barrier.published |= barrier.maker is not None and barrier.maker[0] == self.actor
        else:
            self.order.fence()
            self.tick()

    def do_trap(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        raise Fault("the kernel stops itself")

    def do_setmaxnreg(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> object:
        self.whole(mask)
        count = int(operands[0])
        if (count > self.held) != (opcode[1] == "inc") or count % 8 or not 24 <= count <= 256:
            raise Fault(f"setmaxnreg from {self.held} to {count} registers")
        if count - self.held > self.block.spare:
            return WAIT
        self.block.spare -= count - self.held
        self.held = count
        return None

    # Products

    def do_wgmma(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        self.whole(mask)
        if opcode[1] == "fence":
            self.unfenced.clear()
        elif opcode[1] == "commit_group":
            self.flight.append([])
            self.committed += 1
        elif opcode[1] == "wait_group":
            self.wait_for_products(int(operands[0]))
        else:
            self.issue(opcode, operands, mask)

    def issue(self, opcode: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        d, a = (tuple(elements(each)) for each in operands[:2])
        if opcode[4] != "m64n256k16" or len(set(d)) != 128 or operands[4:] != ("1", "1", "0"):
            raise Fault("a product that this model does not have")
        if not self.predicate(operands[3]).all():
            raise Fault("a product that does not add to its accumulators")
        if self.unfenced & {*d, *a}:
            raise Fault("a product of registers written since the last wgmma.fence")
        if not {*d, *a} <= self.registers.keys():
            raise Fault("a product of registers that were never written")
        if self.writing & {*a} or self.reading & {*d}:
            raise Fault("a product of registers in the hands of another")
        product = Product(d, a, self.one(operands[2], "u64", mask), opcode[-1])
        log = self.block.products.setdefault(self.number // 4, [])
        if self.issued == len(log):
            log.append((product.descriptor, d, a))
        elif log[self.issued] != (product.descriptor, d, a):
            raise Fault("the warps of a warpgroup issue different products")
        self.issued += 1
        shared, known = self.block.shared, self.order.known(True, self.block.shared.generic)
        words = np.unique((wgmma.addresses(product.descriptor, COLUMNS, 2, False) - START) // 4)
        if words[0] < 0 or words[-1] >= shared.writer.size:
            raise Fault("a product of memory outside of the block's")
        shared.read(words, self.unit, self.committed + 1, known)
        self.queue.append(product)
        self.flight[-1].append(product)
        self.writing |= {*d}
        self.reading |= {*a}

    def multiply_one(self) -> None:
        """Execute the oldest product that was issued and has not been executed, if there is one."""
        if not self.queue:
            return
        d, a, descriptor, kind = self.queue.pop(0)
        sums = np.stack([self.registers[each].view(np.float32) for each in d])
        places = (wgmma.addresses(descriptor, COLUMNS, 2, False) - START) // 2
        left = matrix.rows(np.stack([self.registers[each].view(np.uint32) for each in a]), kind)
        right = matrix.numbers(self.block.shared.bytes.view(np.uint16)[places], kind).T
        self.registers |= zip(d, wgmma.multiply(sums, left, right[None], self.truncate), strict=True)

    def wait_for_products(self, left: int) -> None:
        """Wait until no more than the `left` latest groups are under way."""
        del self.flight[: max(len(self.flight) - 1 - left, 0)]
        waiting = [product for group in self.flight for product in group]
        while len(self.queue) > len(waiting):
            self.multiply_one()
        self.order.seen[self.unit] = self.committed - (len(self.flight) - 1)
        self.writing = {name for product in waiting for name in product.d}
        self.reading = {name for product in waiting for name in product.a}
