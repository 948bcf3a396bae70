"""Test the Hopper kernel on a GPU beyond the common promises: packing there, and its two variants."""

import pytest
import torch

from liif_fast.backends import cpu, cuda
from liif_fast.ops import sm90

from ..ops.support import ALL_SWITCHES, make_layers
from .test_operator import decode, wide

pytestmark = pytest.mark.cuda


@pytest.mark.skipif(bool(cuda._missing or cpu._missing), reason="needs both extensions")
@pytest.mark.parametrize("bfloat", [False, True])
@pytest.mark.parametrize("hidden", [2, 4, 17, 18, 40])  # of 16 products a launch
def test_packed_bytes_are_the_cpus(hidden, bfloat, device):
    weights, biases = make_layers((24, *[256] * hidden, 3))
    on_gpu = [[t.to(device) for t in each] for each in (weights, biases)]
    assert torch.equal(sm90.pack(*on_gpu, 4, bfloat).cpu(), sm90.pack(weights, biases, 4, bfloat))


@pytest.mark.parametrize("switches", ALL_SWITCHES)
@pytest.mark.parametrize("queries", [1, 63, 1000, 30_001])
def test_multicast_has_the_bits_of_unicast(queries, switches, device, needs, monkeypatch):
    problem = wide(device, torch.float16, switches=switches, queries=queries)
    needs("cuda", problem)
    found = []
    for cluster in (1, 2):
        monkeypatch.setattr(cuda, "CLUSTER", cluster)
        found.append(decode(problem, "cuda"))
    assert torch.equal(*found)
