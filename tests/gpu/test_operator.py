"""Test the operator on a GPU: exactness, accuracy in half precision, repeatability, graphs, streams.

Promises for every device are in tests/ops, which LIIF_FAST_TEST_DEVICE=cuda runs on a GPU.
"""

import os

import pytest
import torch

from liif_fast import functional, make_cell, make_coord

from ..ops import oracle
from ..ops.support import ALL_SWITCHES, DEFAULT, Problem, same_bits
from ..ops.test_fourier import Call

BACKENDS = ("torch", "triton", "cuda")  # LIIF_FAST_TEST_BACKENDS: only some of them
ASKED = os.environ.get("LIIF_FAST_TEST_BACKENDS", ",".join(BACKENDS)).split(",")
BACKENDS = tuple(each for each in BACKENDS if each in ASKED)
HALF = (torch.float16, torch.bfloat16)
EVERY = pytest.mark.parametrize("backend", BACKENDS)
FUSED = pytest.mark.parametrize("backend", [each for each in BACKENDS if each != "torch"])
TRITON = pytest.mark.parametrize("backend", [each for each in BACKENDS if each == "triton"])
WIDE = {"channels": 64, "hidden": (256,) * 4}  # what every fused kernel takes


def wide(device, dtype=torch.float32, **options):
    return Problem(**{**WIDE, **options}).to(device, dtype)


def decode(problem, backend, **options):
    return functional.liif_decode(*problem.arguments, **problem.switches._asdict(), backend=backend, **options)


def rms(tensor):
    return tensor.double().square().mean().sqrt().item()


@EVERY
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("switches", ALL_SWITCHES)
def test_half_precision(backend, dtype, switches, device, needs):
    """Promise 2: at most twice the error of eager PyTorch in the same dtype, on decode and render."""
    problem = wide(device, dtype, switches=switches, shape=(13, 17), queries=1001)
    needs(backend, problem)
    double = wide("cpu", torch.float64, switches=switches, shape=(13, 17), queries=1001)
    for ours, theirs in zip(double.leaves, problem.leaves, strict=True):
        ours.copy_(theirs)
    exact = oracle.decode(*double.arguments, switches)
    plain = oracle.decode(*problem.arguments, switches)
    ours = decode(problem, backend)
    assert ours.dtype == dtype
    assert rms(ours.cpu() - exact) <= 2 * rms(plain.cpu() - exact)
    size = (29, 31)
    coord, cell = (t.to(device).expand(2, -1, -1) for t in (make_coord(size), make_cell(size)))
    feat, _, _, weights, biases = problem.arguments
    options = {**switches._asdict(), "backend": backend}
    whole = functional.liif_render(feat, size, weights, biases, **options)
    grid = functional.liif_decode(feat, coord, cell, weights, biases, **options)
    assert torch.equal(whole.flatten(2).transpose(1, 2), grid) or backend == "torch"
    part = functional.liif_render(feat, size, weights, biases, region=(3, 5, 20, 21), **options)
    assert torch.equal(part, whole[:, :, 3:23, 5:26]) or backend == "torch"


@EVERY
@pytest.mark.parametrize("dtype", HALF)
def test_gradients_in_half_precision(backend, dtype, device, needs):
    """Under autocast, as in training: at most three times the error of the plain form under autocast."""
    problem, double = wide(device, batch=2, queries=2001), wide("cpu", torch.float64, batch=2, queries=2001)
    needs(backend, problem)
    grad = torch.randn(2, 2001, 3, generator=torch.Generator().manual_seed(1))

    def gradients(problem, run):
        problem.requires_grad()
        out = run(problem)
        return torch.autograd.grad(out, problem.leaves, grad.to(out.device, out.dtype))

    exact = gradients(double, lambda p: oracle.decode(*p.arguments, p.switches))
    with torch.autocast(torch.device(device).type, dtype):
        plain = gradients(problem, lambda p: decode(p, "reference"))
        try:
            ours = gradients(problem, lambda p: decode(p, backend))
        except RuntimeError as reason:
            pytest.skip(str(reason))
    for name, o, p, e in zip("feat w0 w1 w2 w3 w4 b0 b1 b2 b3 b4".split(), ours, plain, exact, strict=True):
        if e.numel() > 100:
            assert rms(o.cpu() - e) <= 3 * rms(p.cpu() - e), name


@pytest.mark.parametrize("backend", [each for each in BACKENDS if each != "cuda"])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_fourier_decode(backend, dtype, device):
    """LTE's decoder: at most twice, for gradients three times, the error of the plain form in the same dtype."""
    calls = [Call(256, (256, 256, 256, 3), (13, 17), batch=1, queries=101).to(dtype) for _ in range(3)]
    (ours, grads), (plain, plain_grads), (exact, exact_grads) = (
        calls[0].to(device).gradients(backend),
        calls[1].to(device).gradients("reference"),
        calls[2].to(torch.float64).gradients("reference"),
    )
    assert ours.dtype == dtype
    assert rms(ours.cpu() - exact) <= 2 * rms(plain.cpu() - exact)
    for o, p, e in zip(grads, plain_grads, exact_grads, strict=True):
        if e.numel() > 100:
            assert rms(o.cpu() - e) <= 3 * rms(p.cpu() - e)


@FUSED
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_integers_are_exact(backend, dtype, device, needs):
    """Sums of small integers are exact in any order and precision, so one register reused too early would show."""
    problem = wide(device, dtype, shape=(6, 7), queries=1, switches=DEFAULT._replace(local_ensemble=False))
    needs(backend, problem)
    generator = torch.Generator().manual_seed(3)

    def integers(tensor, low, high, density):
        values = torch.randint(low, high + 1, tensor.shape, generator=generator)
        return (values * (torch.rand(tensor.shape, generator=generator) < density)).to(device, dtype)

    problem.feat = integers(problem.feat, -1, 1, 1.0)
    problem.weights = [integers(w, -1, 1, 0.01) for w in problem.weights]
    problem.biases = [integers(b, -2, 2, 1.0) for b in problem.biases]
    problem.weights[0][:, -4:] = 0  # rel and cell are not integers
    feat, _, _, weights, biases = problem.arguments
    options = {**problem.switches._asdict(), "backend": backend}
    expected = None
    for _ in range(250):
        out = functional.liif_render(feat, (40, 33), weights, biases, **options)
        if expected is None:
            double = [feat.cpu().double(), [w.cpu().double() for w in weights], [b.cpu().double() for b in biases]]
            cell = torch.tensor([[2 / 40, 2 / 33]] * 2)
            expected = oracle.render(double[0], (40, 33), (0, 0, 40, 33), cell, *double[1:], problem.switches)
        assert torch.equal(out.cpu().double(), expected)


@FUSED
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_250_repeats(backend, dtype, device, needs):
    """Promise 3, also a race test: the same bits every time, whatever else is running."""
    problem = wide(device, dtype, shape=(48, 48), queries=4097)
    needs(backend, problem)
    first = decode(problem, backend)
    for _ in range(250):
        assert torch.equal(decode(problem, backend), first)
    for size in (1, 63, 1000):
        part = wide(device, dtype, shape=(48, 48), queries=4097)
        part.coord, part.cell = part.coord[:, :size], part.cell[:, :size]
        assert torch.equal(decode(part, backend), first[:, :size]), size


@TRITON
def test_deterministic_gradients(backend, device, needs):
    problem = wide(device, queries=4097).requires_grad()
    needs(backend, problem)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(decode(problem, backend).sum(), problem.leaves) for _ in range(20)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


@FUSED
def test_nan_stays_where_it_is(backend, device, needs):
    """Promise 5: a NaN or an infinity in one latent reaches the queries that read it, and only those."""
    problem = wide(device, torch.float16, batch=1, shape=(9, 9), queries=3000)
    needs(backend, problem)
    clean = decode(problem, backend)
    problem.feat[0, 5, 4, 4] = float("nan")
    index = functional.corner_plan(problem.coord, (9, 9))[0]
    reads = ((index - 4).abs() <= 1).all(-1).any(-1)
    dirty = decode(problem, backend)
    assert bool(dirty[reads].isnan().all())
    assert torch.equal(dirty[~reads], clean[~reads])


@pytest.mark.cuda
@FUSED
def test_graph_capture(backend, device, needs):
    """A captured call computes from the inputs' values at replay."""
    problem = wide(device, torch.float16, queries=2000)
    needs(backend, problem)
    decode(problem, backend)  # compiles, packs
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode(problem, backend)
    problem.feat.normal_()
    problem.weights[2].mul_(0.5)
    graph.replay()
    assert torch.equal(out, decode(problem, backend))


@pytest.mark.cuda
@FUSED
def test_side_stream(backend, device, needs):
    """A call on another stream waits for that stream's work, not for the default stream's."""
    problem = wide(device, torch.float16, shape=(48, 48), queries=30_000)
    needs(backend, problem)
    expected = decode(problem, backend)
    feat = problem.feat.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        problem.feat = torch.zeros_like(feat)
        torch.cuda._sleep(50_000_000)
        problem.feat.copy_(feat)
        out = decode(problem, backend)
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.cuda
@EVERY
def test_other_device(backend, needs):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    first, second = (wide(f"cuda:{i}", torch.float16, queries=1000) for i in (0, 1))
    needs(backend, second)
    assert same_bits(decode(first, backend).cpu(), decode(second, backend).cpu())


@pytest.mark.cuda
@EVERY
def test_compiled(backend, device, needs):
    """Promise 6: no graph break, no new graph for a new size."""
    problem = wide(device, torch.float16, queries=100)
    needs(backend, problem)
    torch.compiler.reset()  # because it sees the same function below for every backend
    compiled = torch.compile(lambda p: decode(p, backend), fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for queries, shape in ((100, (13, 17)), (333, (13, 17)), (1000, (21, 19))):
            problem = wide(device, torch.float16, queries=queries, shape=shape)
            torch.testing.assert_close(compiled(problem), decode(problem, backend), rtol=1e-2, atol=1e-3)


@pytest.mark.cuda
@EVERY
def test_memory(backend, device, needs):
    """Promise 4: a 4K frame in 256 MiB beyond P and output."""
    problem = wide(device, torch.float16, batch=1, shape=(540, 960), queries=1)
    needs(backend, problem)
    feat, _, _, weights, biases = problem.arguments
    functional.liif_render(feat[..., :8, :8], (16, 16), weights, biases, backend=backend)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = functional.liif_render(feat, (2160, 3840), weights, biases, backend=backend)
    beyond = torch.cuda.max_memory_allocated() - before - out.nbytes - 540 * 960 * 256 * 4
    assert beyond < 256 * 2**20


@pytest.mark.cuda
@TRITON
def test_a_million_training_queries(backend, device, needs):
    """Promise 4: under 4 GiB beyond P."""
    problem = wide(device, batch=16, shape=(48, 48), queries=62_500).requires_grad()
    needs(backend, problem)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        decode(problem, backend).float().sum().backward()
    p = 16 * 48 * 48 * 256 * 4
    assert torch.cuda.max_memory_allocated() - before - 3 * p < 4 * 2**30
