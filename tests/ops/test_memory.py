"""Check promise 4: memory beyond inputs, outputs and P does not grow with the number of queries.

Each measurement is the growth of the peak resident size of a separate process after a small call of the same kind. One
process loads PyTorch and forks for each.
"""

import pytest

from .support import BACKENDS, run_python

pytestmark = pytest.mark.xdist_group("memory")  # one worker measures for all these tests
MIB = 2**20
CODE = """
import os, resource, sys, torch
torch.set_num_threads(1)
from liif_fast import functional
from liif_fast.backends import cpu

assert cpu.KEEP_BYTES == 1 << 30
cpu.KEEP_BYTES = 1 << 27  # the shipped 1 GiB is what a million queries of the small network would not exceed

def problem(hidden):
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(1, 8, 32, 32, generator=generator)
    widths = (76, *hidden, 3)
    weights = [torch.randn(o, i, generator=generator) * i**-0.5 for i, o in zip(widths, widths[1:])]
    return feat, weights, [torch.zeros(w.shape[0]) for w in weights]

def inference(backend, side):
    feat, weights, biases = problem((16, 16))
    with torch.no_grad():
        return functional.liif_render(feat, (side, side), weights, biases, backend=backend).nbytes

def training(backend, queries, recompute=True):
    feat, weights, biases = problem((32, 32, 32, 32))
    leaves = [t.requires_grad_() for t in (feat, *weights, *biases)]
    coord = torch.rand(1, queries, 2) * 2 - 1
    cell = torch.full((1, 1, 2), 0.01).expand(coord.shape)
    out = functional.liif_decode(feat, coord, cell, weights, biases, backend=backend, recompute=recompute)
    torch.autograd.grad(out.sum(), leaves)
    return 4 * out.nbytes + coord.nbytes  # with the output's gradient, and one copy of each of the two

def default(backend, queries):
    return training(backend, queries, None)

def modulated(backend, queries):
    feat = torch.randn(1, 2 * 3 * 8 + 4, 32, 32)
    weights = [torch.randn(o, i) for i, o in ((8, 8), (8, 8), (8, 8), (8, 3))]
    leaves = [t.requires_grad_() for t in (feat, *weights)]
    coord = torch.rand(1, queries, 2) * 2 - 1
    biases = [torch.zeros(len(w)) for w in weights]
    out = functional.modulated_decode(feat, coord, coord, weights, biases, backend=backend)
    torch.autograd.grad(out.sum(), leaves)
    return 4 * out.nbytes + coord.nbytes

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def measure(call, backend, warm, sizes):
    call(backend, warm)
    before = peak()
    print(call.__name__, backend)
    for size in sizes:
        counted = call(backend, size)
        print(peak() - before - counted)
    sys.stdout.flush()

for backend in sys.argv[1:]:
    for call, warm, *sizes in (
        (inference, 64, 300, 900), (training, 2000, 50_000, 250_000), (default, 2000, 1_000_000),
        (modulated, 2000, 70_000, 250_000)
    ):
        if call is default and backend == "torch":  # keeps what it is not asked to compute again
            continue
        if call is modulated and backend != "cpu":  # plain PyTorch takes seconds
            continue
        if not os.fork():
            measure(call, backend, warm, sizes)
            os._exit(0)
        assert os.wait()[1] == 0, (call, backend)
"""


@pytest.fixture(scope="module")
def beyond():
    """Return the bytes beyond those counted, by measurement and backend, the largest size last."""
    found, sizes = {}, []
    for line in run_python(CODE, *(name for name in BACKENDS if name != "reference"), OMP_NUM_THREADS="1").splitlines():
        if line.lstrip("-").isdigit():
            sizes.append(int(line))
        else:
            sizes = found[tuple(line.split())] = []
    return found


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_inference(beyond, backend):
    """A render of 810,000 queries takes 64 MiB, or in plain PyTorch some chunks of 8 MiB per activation."""
    small, large = beyond["inference", backend]
    assert large < (64 if backend == "cpu" else 256) * MIB
    assert large - small < (8 if backend == "cpu" else 32) * MIB  # nine times the queries; allocators round


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_training(beyond, backend):
    """A step takes constant memory if activations are not kept; the network is small, so many queries are quick."""
    small, large = beyond["training", backend]
    assert large < 256 * MIB
    assert large - small < 64 * MIB  # keeping them would be 800,000 rows of 96 activations: 300 MiB; allocators round


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("reference", "torch")])
def test_a_million_training_queries(beyond, backend):
    """The default keeps activations up to its limit, here 128 MiB, and recomputes the others, of 1.4 GiB in all."""
    assert beyond["default", backend][0] < 768 * MIB


@pytest.mark.skipif("cpu" not in BACKENDS, reason="measures the backend cpu")
def test_modulated_training(beyond):
    """Both passes of the modulated network take constant memory: no tile and no chunk of rows is kept."""
    small, large = beyond["modulated", "cpu"]
    assert large < 64 * MIB
    assert large - small < 8 * MIB  # keeping the products would be 720,000 rows of 24: 69 MiB
