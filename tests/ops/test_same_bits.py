"""Check promise 3: the forward's bits depend only on the query, and the backward is repeatable."""

import pytest
import torch

from liif_fast import functional, make_cell, make_coord
from liif_fast.backends import cpu

from .. import warm
from .support import ALL_SWITCHES, BACKENDS, Problem, run_python, same_bits

# The backends whose kernels fix every order of summation; the others leave it to PyTorch's matrix products.
FUSED = [name for name in BACKENDS if name not in ("reference", "torch")]
pytestmark = pytest.mark.parametrize("backend", FUSED)
LOW = pytest.param(
    torch.bfloat16,
    id="bfloat16",
    marks=pytest.mark.skipif(not cpu.BFLOAT16, reason="this processor has no AVX512-BF16"),
)
# One or two tests of each operator; random configurations 30 to 37 have all of decoding.
OF_EACH_ISA = (
    "random.py::test_random",
    "same_bits.py::test_few_queries_of_a_large_map[switches0-dtype1-cpu]",
    "same_bits.py::test_regions[switches0-dtype0-cpu]",
    "terms.py::test_order_of_rows[hidden1-dtype0]",
    "terms.py::test_order_of_rows_in_gradients[hidden1-dtype0]",
    "attend.py::test_against_the_plain_form[dtype0-1e-05-cpu-(64, 1, 8, 64)]",
    "attend.py::test_small_maps_and_circles[True-(2, 3)]",
    "fourier.py::test_every_form_is_the_formula[dtype0-1e-05-cpu-(32, (32, 32, 3))]",
    "fourier.py::test_gradients[None-cpu-(36, (40, 36, 40, 1))]",
    "modulated.py::test_every_form_is_the_formula[dtype0-1e-05-cpu-(40, 2, 21, 35, False, True)]",
    "modulated.py::test_gradients[cpu-(33, 2, 7, 3, True, False)]",
    "conv3x3_random.py::test_random",
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, LOW])


def gather(problem, backend):
    """Return the network's input; gather_corners itself computes in float32 at least."""
    feat, coord, cell, *_ = problem.arguments
    wide = torch.promote_types(feat.dtype, torch.float32)
    return functional.gather_corners(feat.to(wide), coord, cell, backend=backend)[0].to(feat.dtype)


def decode(problem, backend, queries=slice(None), images=slice(None)):
    feat, coord, cell, weights, biases = problem.arguments
    options = {**problem.switches._asdict(), "backend": backend}
    return functional.liif_decode(
        feat[images], coord[images, queries], cell[images, queries], weights, biases, **options
    )


@DTYPES
@pytest.mark.parametrize("switches", ALL_SWITCHES)
def test_chunks_and_batches(backend, switches, dtype):
    problem = Problem(batch=3, shape=(6, 7), queries=1000, hidden=(33, 17), switches=switches, dtype=dtype)
    whole = decode(problem, backend)
    assert same_bits(decode(problem, backend), whole), "run to run"
    for size in (63, 97, 999):
        chunks = [decode(problem, backend, slice(first, first + size)) for first in range(0, 1000, size)]
        assert same_bits(torch.cat(chunks, 1), whole), size
    images = [decode(problem, backend, images=slice(b, b + 1)) for b in range(3)]
    assert same_bits(torch.cat(images), whole)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert same_bits(decode(problem, backend, order), whole[:, order])


@DTYPES
@pytest.mark.parametrize("switches", ALL_SWITCHES)
def test_few_queries_of_a_large_map(backend, switches, dtype):
    """The direct form, chosen for one query, equals the factorised form, chosen for many."""
    problem = Problem(shape=(41, 37), queries=1600, switches=switches, dtype=dtype)
    whole = decode(problem, backend)
    for train in (False, True):
        problem.feat.requires_grad_(train)
        for first in range(0, 1600, 200):
            assert same_bits(decode(problem, backend, slice(first, first + 3)), whole[:, first : first + 3])


@DTYPES
@pytest.mark.parametrize("switches", ALL_SWITCHES)
def test_regions(backend, switches, dtype):
    """Windows and strips of a render equal a decode of the same grid."""
    feat, _, _, weights, biases = Problem(shape=(13, 9), switches=switches, dtype=dtype).arguments
    options = {**switches._asdict(), "backend": backend}
    for size in ((40, 31), (13, 27), (5, 4), (1, 1), (117, 3)):
        whole = functional.liif_render(feat, size, weights, biases, **options)
        coord, cell = (t.to(feat.device).expand(2, -1, -1) for t in (make_coord(size), make_cell(size)))
        decoded = functional.liif_decode(feat, coord, cell, weights, biases, **options)
        assert same_bits(whole.flatten(2).transpose(1, 2), decoded)
        for rows in (1, 3, 16):
            strips = [
                functional.liif_render(
                    feat, size, weights, biases, region=(top, 0, min(rows, size[0] - top), size[1]), **options
                )
                for top in range(0, size[0], rows)
            ]
            assert same_bits(torch.cat(strips, 2), whole)
        for i in range(6):
            top, left = size[0] * i // 7, size[1] * i // 6
            height, width = min(1 + 2 * i, size[0] - top), min(7 - i, size[1] - left)
            part = functional.liif_render(feat, size, weights, biases, region=(top, left, height, width), **options)
            assert same_bits(part, whole[:, :, top : top + height, left : left + width])


@DTYPES
def test_threads(backend, dtype, threads):
    problem = Problem(queries=4097, dtype=dtype)
    feat, _, _, weights, biases = problem.arguments
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        x = gather(problem, backend)
        results.append(
            (
                decode(problem, backend),
                decode(problem, backend, slice(0, 20)),
                functional.liif_render(feat, (50, 61), weights, biases, backend=backend),
                x,
                functional.fused_mlp(x, weights, biases, backend=backend),
            )
        )
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@DTYPES
@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_repeat(backend, dtype, count, threads, request):
    """Gradients repeat at one number of threads, with activations kept, recomputed, or some of each."""
    threads(count)
    if backend == "triton":  # which adds in a fixed order only if PyTorch is told to
        request.getfixturevalue("nan_empty")
    problem = Problem(batch=3, shape=(5, 4), queries=4097, dtype=dtype).requires_grad()

    def gradients(recompute):
        options = {"backend": backend, "recompute": recompute}
        feat, _, _, weights, biases = problem.arguments
        out = functional.liif_decode(*problem.arguments, **options)
        rendered = functional.liif_render(feat, (33, 34), weights, biases, **options)
        x = gather(problem, backend)
        mlp = functional.fused_mlp(x, weights, biases, **options)
        total = out.square().sum() + rendered.square().sum() + mlp.square().sum()
        return torch.autograd.grad(total, problem.leaves)

    first = gradients(False)
    for recompute in (False, True, True):
        again = gradients(recompute)
        assert all(same_bits(a, b) for a, b in zip(first, again, strict=True))


def test_threads_of_python(backend):
    """Several Python threads, each with its own problem, do not disturb one another."""
    from concurrent.futures import ThreadPoolExecutor

    problems = [Problem(seed, queries=500 + seed, hidden=(40 + seed, 24)) for seed in range(6)]
    alone = [decode(problem, backend) for problem in problems]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(5):
            together = list(pool.map(lambda problem: decode(problem, backend), problems))
            assert all(same_bits(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_micro_kernels(backend, isa):
    """Each instruction set of this processor passes a few tests of every operator in its own process."""
    from liif_fast.backends import cpu

    if backend != "cpu":
        pytest.skip("the cpu backend's choice")
    if isa == cpu.ISA:
        pytest.skip("every other test runs it")
    options = [*(f"tests/ops/test_{each}" for each in OF_EACH_ISA), "-q", "-p", "no:cacheprovider"]
    found = run_python(
        "import sys, pytest, liif_fast.backends.cpu as cpu; print(cpu.ISA, flush=True)\n"
        f"if cpu.ISA == {isa!r}: sys.exit(pytest.main({options!r}))",
        modules=warm.OPTIMIZERS,  # deterministic algorithms import the compiler
        LIIF_FAST_CPU_ISA=isa, LIIF_FAST_TEST_SEED="30", LIIF_FAST_TEST_CONFIGS="8", LIIF_FAST_TEST_BACKENDS="cpu",
    )  # fmt: skip
    if found.split()[0] != isa:
        pytest.skip(f"this processor has no {isa}")
    assert " passed" in found
