"""Check promise 4 for a GPU without one: count the tensors that a call makes while no kernel runs.

The launchers run unchanged on fake tensors, with kernels that do nothing and matrix products that only allocate their
result, as cuBLAS does. The count is the bytes of all storages alive at once, without an allocator's rounding.
"""

import itertools
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from liif_fast.backends import triton as backend
from liif_fast.call import Switches

MIB = 2**20
WIDTHS = (580, 256, 256, 256, 256, 3)  # the paper's network


class Counter(TorchDispatchMode):
    """Count the bytes of live storages, and their maximum."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage):
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key)

    def forget(self, key):
        self.now -= self.alive.pop(key)


def network(dtype):
    pairs = [(torch.empty(o, i, dtype=dtype), torch.empty(o, dtype=dtype))
             for i, o in itertools.pairwise(WIDTHS)]  # fmt: skip
    return [w for w, _ in pairs], [b for _, b in pairs]


def test_the_counter():
    with FakeTensorMode(), Counter() as counter:
        a = torch.empty(MIB)
        b = a[10:1000] + 1
        del a
        c = b * 2
        assert counter.now == b.nbytes + c.nbytes
        assert counter.peak == 4 * MIB + b.nbytes


def training(dtype, recompute, queries):
    """Return the peak bytes of a training step of decode, beyond P."""
    with FakeTensorMode(), Counter() as counter:
        weights, biases = network(dtype)
        feat = torch.empty(16, 64, 48, 48, dtype=dtype)
        coord, cell = (torch.empty(16, queries // 16, 2) for _ in range(2))
        leaves = [t.requires_grad_() for t in (feat, *weights, *biases)]
        out = backend.decode(feat, coord, cell, weights, biases, Switches(True, True, True), recompute)
        torch.autograd.grad(out.sum(), leaves)
    return counter.peak - 16 * 48 * 48 * 256 * dtype.itemsize


@pytest.mark.parametrize(("dtype", "deterministic"), [(torch.float16, True), (torch.float32, False)])
def test_a_million_training_queries(idle, dtype, deterministic):
    """A step takes under 4 GiB beyond P, with inputs and gradients; only rows of a few numbers grow with queries."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        peaks = {recompute: training(dtype, recompute, 10**6) for recompute in (None, True)}
        assert peaks[None] < 4096 * MIB
        assert peaks[True] < peaks[None] - 512 * MIB
        growth = training(dtype, None, 2 * 10**6) - peaks[None]
        assert growth < 10**6 * 200
        assert training(dtype, False, 10**6) > 4 * 10**6 * 1024 * dtype.itemsize  # all kept: the counter sees it
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_4k_frame(idle, dtype):
    """A render of 3840 x 2160 at x4 takes under 256 MiB beyond P, output and map."""
    with FakeTensorMode(), torch.no_grad(), Counter() as counter:
        weights, biases = network(dtype)
        feat = torch.empty(1, 64, 540, 960, dtype=dtype)
        cell = torch.empty(1, 2)
        size = (2160, 3840)
        out = backend.render(feat, size, (0, 0, *size), cell, weights, biases, Switches(True, True, True), None)
        assert out.shape == (1, 3, *size)
        p = 540 * 960 * 256 * dtype.itemsize
        assert counter.peak - p - out.nbytes - feat.nbytes < 256 * MIB
