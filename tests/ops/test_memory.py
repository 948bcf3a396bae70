"""Promise 4: memory beyond inputs, outputs and P does not grow with the number of queries.

Each measurement is the growth of the peak resident size of a process of its own, after a small call of the same kind.
"""

import pytest

from .support import BACKENDS, run_python

MIB = 2**20
SETUP = """
import resource, torch
torch.set_num_threads(1)
from liif_fast import functional, make_coord
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def problem(hidden):
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(1, 8, 32, 32, generator=generator)
    widths = (76, *hidden, 3)
    weights = [torch.randn(o, i, generator=generator) * i**-0.5 for i, o in zip(widths, widths[1:])]
    return feat, weights, [torch.zeros(w.shape[0]) for w in weights]
"""
INFERENCE = """
feat, weights, biases = problem((16, 16))
def call(side):
    with torch.no_grad():
        return functional.liif_render(feat, (side, side), weights, biases, backend={backend!r}).nbytes
"""
TRAINING = """
feat, weights, biases = problem((32, 32, 32, 32))
leaves = [t.requires_grad_() for t in (feat, *weights, *biases)]
def call(queries):
    coord = torch.rand(1, queries, 2) * 2 - 1
    cell = torch.full((1, 1, 2), 0.01).expand(coord.shape)
    out = functional.liif_decode(feat, coord, cell, weights, biases, backend={backend!r}, recompute={recompute})
    torch.autograd.grad(out.sum(), leaves)
    return 4 * out.nbytes + coord.nbytes  # with the output's gradient, and one copy of each of the two
"""
MEASURE = """
call({warm})
before = peak()
for size in {sizes}:
    counted = call(size)
    print(peak() - before - counted)
"""


def measure(code, warm, sizes, **values):
    """Bytes beyond what is counted, for each size in turn, the largest last."""
    code = (SETUP + code + MEASURE).format(warm=warm, sizes=sizes, **values)
    return [int(line) for line in run_python(code, OMP_NUM_THREADS="1").split()]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_inference(backend):
    """A render of 2.25 million queries: 64 MiB, or, in plain PyTorch, some chunks of 8 MiB an activation."""
    small, large = measure(INFERENCE, 64, (500, 1500), backend=backend)
    assert large < (64 if backend == "cpu" else 256) * MIB
    assert large - small < (8 if backend == "cpu" else 32) * MIB  # nine times the queries; allocators round


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_training(backend):
    """A step on a network so small that many queries are quick: a constant, where activations are not kept."""
    small, large = measure(TRAINING, 2000, (50_000, 250_000), backend=backend, recompute=True)
    assert large < 256 * MIB
    assert large - small < 32 * MIB  # keeping them would be 800,000 rows of 96 activations: 300 MiB


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("reference", "torch")])
def test_a_million_training_queries(backend):
    """By default, too: kept would be 1.5 GiB of hidden activations, and the budget of 4 GiB is for 256 wide layers."""
    assert measure(TRAINING, 2000, (1_000_000,), backend=backend, recompute=None)[0] < 768 * MIB
