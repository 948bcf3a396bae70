"""Faults planted into the compiled Hopper kernel are found by executing it: the checks have teeth."""

import re

import numpy as np
import pytest
import torch

from ..memory import Fault
from . import cluster, launch
from .faults import PAIRS, PLAIN
from .support import decoded, require

require()
pytestmark = pytest.mark.ptx


@pytest.fixture(scope="module")
def right():
    """The result and the number of instructions without a fault, of a block and of a cluster of two."""
    return {size: (run(size), launch.Executor.steps) for size in (1, 2)}


def run(size):
    """Two tiles of two products for each block, so that all that the ring holds is overwritten."""
    return decoded(torch.float16, True, size, 5, hidden=3, queries=32 * size)[0]


def found(size, change, right, monkeypatch):
    """How a fault shows itself, "" if it does not."""
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
