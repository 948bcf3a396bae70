"""Calls of few rows read weights in place, with the bits of packed weights and no copy that could become stale."""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from liif_fast import functional
from liif_fast.backends import cpu

from .support import CPU_DTYPES, CPU_KERNELS, Problem, make_layers, same_bits

pytestmark = CPU_KERNELS
DTYPES = pytest.mark.parametrize("dtype", CPU_DTYPES)
MANY = 400  # rows that one thread packs weights for


def inside(weight):
    """Lay a weight out with NaN around it, at an odd address and with an odd distance between rows."""
    rows, columns = weight.shape
    around = weight.new_full((rows + 2, columns + 4 - columns % 2 + 1), float("nan"))
    around[1:-1, 1 : columns + 1] = weight
    return around[1:-1, 1 : columns + 1]


def strided(weight):
    return weight.repeat_interleave(2, 1)[:, ::2]


def turned(weight):
    return weight.T.contiguous().T


def expanded(weight):
    return weight[:1].expand(weight.shape)


@DTYPES
@pytest.mark.parametrize("lay_out", [torch.Tensor.contiguous, inside, strided, turned, expanded])
def test_same_bits(dtype, lay_out, threads, nan_empty, poison):
    """Depths are whole and broken groups of four products, and of pairs; widths are whole panels."""
    threads(1)
    poison(dtype)
    generator = torch.Generator().manual_seed(0)
    for ins, hidden in ((36, (64, 32)), (38, (32,)), (37, (32, 64)), (1, (32, 32))):
        weights, biases = make_layers((ins, *hidden, 3), generator, dtype)
        weights = [lay_out(weight) for weight in weights]
        x = torch.randn(MANY, ins, generator=generator, dtype=torch.float64).to(dtype)
        whole = functional.fused_mlp(x, weights, biases, backend="cpu")
        plain = functional.fused_mlp(x.double(), [w.double() for w in weights], [b.double() for b in biases])
        assert torch.allclose(whole.double(), plain, atol=0.05 if dtype == torch.bfloat16 else 1e-5)
        for rows in (1, 11, 13, 60):
            assert same_bits(functional.fused_mlp(x[:rows], weights, biases, backend="cpu"), whole[:rows]), rows


@DTYPES
def test_no_weights_are_copied(dtype):
    """A call of one query takes less memory than a copy of the weights of one layer."""
    problem = Problem(batch=1, queries=1, hidden=(256, 256, 256), shape=(2, 2), channels=1, dtype=dtype)
    assert functional.explain(*problem.arguments).chosen == "cpu"
    if cpu.ISA == "portable" or dtype == torch.float64:
        pytest.skip("packs weights in every call")
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as made:
        functional.liif_decode(*problem.arguments, backend="cpu")
    taken = [event.nbytes() for event in made.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert 0 < max(taken) < problem.weights[1].nbytes / 2


def through_data(weight):
    weight.data.mul_(2)


def through_numpy(weight):
    bits = weight.detach().view(torch.int16 if weight.dtype == torch.bfloat16 else weight.dtype).numpy()
    np.negative(bits, out=bits) if bits.dtype.kind == "f" else np.bitwise_xor(bits, np.int16(-(2**15)), out=bits)


def through_storage(weight):
    weight.untyped_storage().copy_(torch.randn_like(weight).untyped_storage())


def one_element(weight):
    weight.data[-1, -1] = float("nan")  # which passes every ReLU


def in_place(weight):
    with torch.no_grad():
        weight.add_(1)


def step(weight):
    parameter = torch.nn.Parameter(weight)  # of the same memory
    parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD([parameter], lr=1).step()


WRITES = (through_data, through_numpy, through_storage, one_element, in_place, step)


@DTYPES
@pytest.mark.parametrize("queries", [1, 24, 300])
def test_every_write_is_seen(dtype, queries):
    """These include writes that no version counter shows, in each layer, in the direct form, with few rows and many."""
    problem = Problem(batch=1, queries=queries, hidden=(64, 32), dtype=dtype)
    feat, coord, cell, given, biases = problem.arguments
    small = feat[..., :2, :2].contiguous()  # one query of a large map takes the direct form
    for write in WRITES:
        for layer in range(len(given)):
            weights = [each.clone() for each in given]
            before = [functional.liif_decode(each, coord, cell, weights, biases) for each in (feat, small)]
            write(weights[layer])
            fresh = [each.clone() for each in weights]
            for each, old in zip((feat, small), before, strict=True):
                found = functional.liif_decode(each, coord, cell, weights, biases)
                assert not torch.equal(found, old), write.__name__
                assert same_bits(found, functional.liif_decode(each, coord, cell, fresh, biases)), write.__name__


@DTYPES
def test_writes_of_another_process_are_seen(dtype, tmp_path):
    """A second mapping of a file stands for another process that shares the memory."""
    rows = torch.rand(3, 64).to(dtype)  # the first neuron becomes positive
    weights, biases = make_layers((64, 64, 32), dtype=dtype)
    size = weights[0].numel()
    ours, theirs = (torch.from_file(str(tmp_path / "weights"), True, size, dtype=dtype) for _ in range(2))
    ours.copy_(weights[0].flatten())
    weights[0] = ours.view(64, 64)
    before = functional.fused_mlp(rows, weights, biases, backend="cpu")
    theirs[:64] = 3  # the first neuron's weights
    after = functional.fused_mlp(rows, weights, biases, backend="cpu")
    assert not torch.equal(before, after)
    assert same_bits(after, functional.fused_mlp(rows, [w.clone() for w in weights], biases, backend="cpu"))
