"""Execute a cluster of blocks: warps advance in a random order, bulk copies land late and in pieces."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np

from ..memory import Fault, Global
from ..parser import Program
from .order import COPIES, RANK, START, WARPS, Barrier, Order, Shared
from .warp import Warp

THREADS = 32 * WARPS
LIMIT = 400_000  # instructions of a cluster


class Copy(NamedTuple):
    """Hold a bulk copy under way."""

    data: np.ndarray
    block: Block
    start: int  # in its shared memory
    barrier: Barrier
    actor: int
    event: int
    stops: list[int]  # where its pieces end


class Block:
    """Hold what the warps of a block share."""

    def __init__(self, rank: int, size: int, cluster: int) -> None:
        self.rank, self.shared = rank, Shared(size, cluster)
        self.named: dict[int, Barrier] = {}
        self.mbarriers: dict[int, Barrier] = {}
        self.products: dict[int, list[tuple]] = {}  # of each warpgroup, as its fastest warp issued them
        self.spare = 0  # registers that warps gave back
        self.visits: list[tuple[int, int]] = []  # (actor, event) that reach into it and are none of its warps
        self.warps: list[Warp] = []

    @property
    def ended(self) -> bool:
        return not any(warp.groups for warp in self.warps)


class Cluster:
    """Hold blocks that run together."""

    def __init__(self, program: Program, parameters: np.ndarray, first: int, grid: int, size: int, shared: int,
                 memory: Global, seed: object, truncate: int = 0) -> None:  # fmt: skip
        self.random = random.Random(str(seed))
        self.memory = memory
        self.actors = size * (2 * WARPS + COPIES * size)
        self.copying: dict[tuple[int, int, int], int] = {}
        self.copied = np.zeros(self.actors, np.int32)  # events of those that copy
        self.copies: list[Copy] = []
        self.meeting = Barrier(size * THREADS, self.actors)
        self.blocks = [Block(rank, shared, size) for rank in range(size)]
        for block in self.blocks:
            block.warps = [
                Warp(self, block, number, program, parameters, first + block.rank, grid, memory, truncate)
                for number in range(WARPS)
            ]

    @property
    def warps(self) -> list[Warp]:
        return [warp for block in self.blocks for warp in block.warps]

    def run(self) -> int:
        """Execute to the end, and return how many instructions that took."""
        chance, waiting, steps = self.random, set[Warp](), 0
        while live := [warp for warp in self.warps if warp.groups]:
            ready = [warp for warp in live if warp not in waiting]
            if self.copies and (not ready or chance.random() < 0.2):
                self.land(chance.randrange(len(self.copies)))
                waiting.clear()
            elif not ready:
                raise Fault("deadlock: " + "; ".join(sorted({warp.where() for warp in live})))
            else:
                warp = chance.choice(ready)
                done = warp.advance(chance.choice((1, 10, 100, 1000)))
                steps += done
                waiting = set() if done else waiting | {warp}
            if chance.random() < 0.2:
                chance.choice(self.warps).multiply_one()
            if steps > LIMIT:
                raise Fault("the kernel does not end")
        self.check_end()
        return steps

    def check_end(self) -> None:
        if self.copies:
            raise Fault("the kernel ends while copies are under way")
        for block in self.blocks:
            known = np.max([warp.order.seen for warp in block.warps], 0)
            if any(event > known[actor] for actor, event in block.visits):
                raise Fault("shared memory of a block that may have ended")
            for kind, barriers in (("named barrier", block.named), ("mbarrier", block.mbarriers)):
                for name, barrier in barriers.items():
                    if not barrier.at_rest:
                        raise Fault(f"{kind} {name:#x} is left half full")
            if any(warp.issued != len(block.products.get(warp.number // 4, ())) for warp in block.warps):
                raise Fault("products that a part of a warpgroup issues")

    def find(self, address: int) -> tuple[Block, int]:
        """Return the block and the address in it that an address of the cluster's shared memory means."""
        rank = address >> RANK
        if not 0 <= rank < len(self.blocks):
            raise Fault("an address of a block that is not in the cluster")
        if self.blocks[rank].ended:
            raise Fault("shared memory of a block that may have ended")
        return self.blocks[rank], address & (1 << RANK) - 1

    def mbarrier(self, address: int) -> Barrier:
        block, at = self.find(address)
        if at not in block.mbarriers:
            raise Fault("an mbarrier is used that need not be initialised")
        return block.mbarriers[at]

    def begin_copy(self, issuer: Warp, to: int, data: np.ndarray, barrier: int, ranks: list[int]) -> None:
        """Give the bytes at `to` to a copy, in each block of `ranks`; until a piece lands they hold NaN."""
        for rank in ranks:
            base = to & (1 << RANK) - 1 | rank << RANK
            block, start = self.find(base)
            full = self.mbarrier(barrier & (1 << RANK) - 1 | rank << RANK)
            known = issuer.order.known(True, block.shared.generic)
            full.usable(known, asynchronous=True)
            key = issuer.block.rank, rank, barrier & (1 << RANK) - 1
            actor = 2 * WARPS * len(self.blocks) + self.copying.setdefault(key, len(self.copying))
            if actor >= self.actors:
                raise Fault("copies that tell more barriers than this model has room for")
            self.copied[actor] += 1
            event = int(self.copied[actor])
            words = block.shared.words(start + np.arange(0, data.size, 16), 16)
            block.shared.write(words, actor, event, known)
            block.visits.append((actor, event))
            block.shared.bytes[start - START :][: data.size] = 0xFF
            stops = sorted({16 * self.random.randint(1, data.size // 16) for _ in range(2)} | {data.size})
            self.copies.append(Copy(data, block, start - START, full, actor, event, [0, *stops]))

    def land(self, which: int) -> None:
        """Let the next piece of a copy arrive."""
        data, block, start, barrier, actor, event, stops = self.copies[which]
        if block.ended:
            raise Fault("a copy to a block that may have ended")
        first, stop = stops[:2]
        del stops[0]
        block.shared.bytes[start + first : start + stop] = data[first:stop]
        if len(stops) == 1:
            del self.copies[which]
            order = Order(self.actors)
            order.seen[actor] = event
            barrier.gathered.learn(order)
        barrier.bytes -= stop - first
        barrier.complete()
