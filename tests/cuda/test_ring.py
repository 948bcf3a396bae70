"""The protocol of the ring and the turns, executed in every kind of order: no deadlock, no stage overwritten too early.

Actors take steps as csrc/cuda/decode_sm90.cu does: the loading warp; copies that land when they will; eight warps in
two warpgroups; and each warp's products, which read their stage until they complete.
"""

import random
import re
from pathlib import Path

import pytest

HEADER = (Path(__file__).resolve().parents[2] / "csrc/cuda/layout.h").read_text()
STAGES = int(re.search(r"kStages = (\d+)", HEADER).group(1))
SLICES, WARPS = 4, 8


class Barrier:
    """An mbarrier: a wait for a parity passes once the phase of that parity is complete; a new one has completed 1."""

    def __init__(self, arrivals):
        self.arrivals = self.pending = arrivals
        self.parity = 0  # of the phase under way

    def arrive(self):
        assert self.pending > 0
        self.pending -= 1
        if self.pending == 0:
            self.pending, self.parity = self.arrivals, self.parity ^ 1

    def passed(self, parity):
        return self.parity != parity


class Turn:
    """A named barrier of 256 threads, by warps: four wait and four arrive, then all go on."""

    def __init__(self):
        self.waiting, self.arrived, self.rounds = set(), set(), 0

    def check(self):
        if len(self.waiting) == 4 and len(self.arrived) == 4:
            self.waiting, self.arrived, self.rounds = set(), set(), self.rounds + 1


class Block:
    """One thread block with its ring; `release` is what the eight warps' arrivals are to be."""

    def __init__(self, stages, products, tiles, arrivals=WARPS, early=False):
        self.products, self.tiles, self.stages = products, tiles, stages
        self.early = early  # a fault: a stage is handed back before its products are complete
        self.full = [Barrier(2) for _ in range(stages)]  # the expecting arrival, and the bytes
        self.empty = [Barrier(arrivals) for _ in range(stages)]
        self.turns = [Turn(), Turn()]
        self.content = [None] * stages  # the slice's number, None while a copy is under way
        self.copies, self.reading = [], [[] for _ in range(WARPS)]
        self.actors = [self.producer(), *[self.warp(w) for w in range(WARPS)]]

    def producer(self):
        for number in range(self.tiles * self.products * SLICES):
            stage, parity = number % self.stages, number // self.stages % 2
            while not self.empty[stage].passed(parity ^ 1):
                yield False
            assert not any(stage == s for reads in self.reading for s, _ in reads), "a stage in use is overwritten"
            self.content[stage] = None
            self.full[stage].arrive()
            self.copies.append((stage, number))
            yield True

    def land(self, index):
        stage, number = self.copies.pop(index)
        self.content[stage] = number
        self.full[stage].arrive()

    def complete(self, warp):  # the oldest group of products of a warp
        stage, number = self.reading[warp].pop(0)
        assert self.content[stage] == number, "products read another slice"

    def give(self, group, warp):
        turn = self.turns[group]
        assert warp not in turn.arrived, "given twice"
        turn.arrived.add(warp)
        turn.check()

    def warp(self, w):
        group, number = w // 4, 0
        if group == 1:
            self.give(0, w)
        for tile in range(self.tiles):
            for product in range(self.products):
                while not self.full[number % self.stages].passed(number // self.stages % 2):
                    yield False
                assert self.content[number % self.stages] == number, "the bias is another layer's"
                yield True
                turn = self.turns[group]
                round_ = turn.rounds
                turn.waiting.add(w)
                turn.check()
                while turn.rounds == round_:
                    yield False
                for slice_ in range(SLICES):
                    stage, parity = number % self.stages, number // self.stages % 2
                    while not self.full[stage].passed(parity):
                        yield False
                    self.reading[w].append((stage, number))
                    yield True
                    if slice_ > 0:
                        while len(self.reading[w]) > (2 if self.early else 1):
                            yield False
                        self.empty[(number - 1) % self.stages].arrive()
                        yield True
                    number += 1
                if group == 0 or product + 1 < self.products or tile + 1 < self.tiles:
                    self.give(1 - group, w)
                    yield True
                while self.reading[w]:
                    yield False
                self.empty[(number - 1) % self.stages].arrive()
                yield True

    def run(self, rng):
        """Take steps in random order, some actors favoured, until all are done; raises on a deadlock."""
        live = dict(enumerate(self.actors))
        favour = [rng.choice((0.05, 1.0)) for _ in range(len(live) + 2)]
        while live:
            moved = False
            order = sorted(live, key=lambda _: rng.random())
            for key in order:
                if rng.random() < favour[key]:
                    try:
                        moved |= next(live[key])
                    except StopIteration:
                        del live[key]
                        moved = True
            if self.copies and rng.random() < favour[-1]:
                self.land(rng.randrange(len(self.copies)))
                moved = True
            busy = [w for w in range(WARPS) if self.reading[w]]
            if busy and rng.random() < favour[-2]:
                self.complete(rng.choice(busy))
                moved = True
            if not moved and not self.copies and not busy and not self.can_move(live):
                raise AssertionError("deadlock")
        for turn in self.turns:
            assert not turn.waiting and not turn.arrived  # nothing is left in a barrier at the end

    def can_move(self, live):
        for key in list(live):
            try:
                if next(live[key]):
                    return True
            except StopIteration:
                del live[key]
                return True
        return False


@pytest.mark.parametrize("stages", sorted({4, 5, STAGES, 7, 13}))
@pytest.mark.parametrize("products", [1, 3, 4])
@pytest.mark.parametrize("tiles", [1, 2, 5])  # there are never more blocks than tiles
def test_every_order_ends(stages, products, tiles):
    for seed in range(8):
        Block(stages, products, tiles).run(random.Random(seed))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"stages": 3}, "deadlock"),  # a whole layer must fit: the other warpgroup waits for its turn
        ({"arrivals": WARPS - 1}, "overwritten|another"),
        ({"early": True}, "overwritten|another"),
    ],
)
def test_faults_are_found(fault, message):
    options = {"stages": STAGES, "products": 3, "tiles": 4, **fault}

    def every_seed():
        for seed in range(40):
            Block(**options).run(random.Random(seed))

    with pytest.raises(AssertionError, match=message):
        every_seed()
