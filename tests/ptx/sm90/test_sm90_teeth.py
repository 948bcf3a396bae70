"""Faults planted into the compiled Hopper kernel are found by executing it: the checks have teeth."""

import re
import struct

import numpy as np
import pytest
import torch

from ..faults import removed
from ..memory import Fault
from . import cluster, launch, order, warp
from .faults import ARRIVE, PAIRS, PLAIN
from .support import decoded, require

require()
pytestmark = pytest.mark.ptx


@pytest.fixture(scope="module")
def right():
    """Return the result and the number of instructions without a fault, of a block and of a cluster of two."""
    return {size: (run(size), launch.Executor.steps) for size in (1, 2)}


def run(size):
    """Run two tiles of two products in each block, so that everything in the ring is overwritten."""
    return decoded(torch.float16, True, size, 5, hidden=3, queries=32 * size)[0]


def found(size, change, right, monkeypatch):
    """Return how a fault shows itself, "" if it does not."""
    out, steps = right[size]
    monkeypatch.setattr(launch.Executor, "change", staticmethod(change))
    monkeypatch.setattr(cluster, "LIMIT", 2 * steps)
    try:
        other = run(size)
    except Fault as fault:
        return str(fault)
    return "" if np.array_equal(out, other) else "other results"


@pytest.mark.parametrize("title", PLAIN)
def test_a_fault_is_found(title, right, monkeypatch):
    change, how = PLAIN[title]
    said = found(1, change, right, monkeypatch)
    assert said and re.search(how, said), said


@pytest.mark.parametrize("title", PAIRS)
def test_a_fault_of_a_cluster_is_found(title, right, monkeypatch):
    change, how = PAIRS[title]
    said = found(2, change, right, monkeypatch)
    assert said and re.search(how, said), said


def test_lanes_meet_again_in_whatever_order_they_come(right, monkeypatch):
    """Where lanes diverged, __syncwarp lets them meet before instructions of whole warps; without one they do not."""
    monkeypatch.setattr(warp.Warp, "scattered", True)
    assert np.array_equal(run(1), right[1][0])
    for number in range(3):  # of the first plan, of the next tile's, and behind the stores
        assert "a whole warp reached by a part" in found(1, removed("bar.warp.sync", number), right, monkeypatch)


def test_the_trap_build_says_where_it_hangs(right, monkeypatch):
    """It gives the same results. If a stage is not handed back, the waiting warps write that to the host's page."""
    monkeypatch.setattr(launch.Executor, "macros", ("LIIF_TRAP",))
    assert np.array_equal(run(1), right[1][0])
    clusters, init = [], cluster.Cluster.__init__
    monkeypatch.setattr(cluster.Cluster, "__init__", lambda *args: clusters.append(args[0]) or init(*args))
    assert "deadlock" in found(1, removed(ARRIVE[1], 0), right, monkeypatch)
    # Only now the tries fail and time passes, or warps would be stopped that wait for others.
    never = np.zeros(32, bool)
    monkeypatch.setattr(warp.Warp, "do_mbarrier", lambda self, _, operands, mask: self.put(operands[0], never, mask))
    hanging = clusters[0].warps[8]  # the one that loads
    page = hanging.memory.add(np.zeros(4096, np.uint8))
    pointer = hanging.memory.add(np.frombuffer(page.to_bytes(8, "little"), np.uint8))
    hanging.special |= {
        "%hangs": np.full(32, pointer, np.uint64),
        "%globaltimer_lo": np.full(32, 2**32 - 9**9, np.uint32),
    }

    def wait():
        for _ in range(100):
            hanging.advance(1)
            hanging.special["%globaltimer_lo"] += np.uint32(10**8)

    with pytest.raises(Fault, match="the kernel stops itself"):
        wait()
    written = hanging.memory.read_back(page, 4096)
    assert np.flatnonzero(written).max() < 9 * 16
    said, block, barrier, parity = struct.unpack_from("<4I", written, 8 * 16)
    number, rest = divmod(barrier % (1 << order.RANK) - order.START - launch.SHARED_BYTES + 16 * launch.STAGES, 8)
    assert (said, block, rest) == (1, 0, 0) and launch.STAGES <= number < 2 * launch.STAGES
    assert parity in (0, 1)
