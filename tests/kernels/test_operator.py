"""Compare every operator of the backend `triton`, forward and backward, with the formula in float64.

The interpreter is slow, so the problems are small. Sizes are odd, maps as small as one latent, queries beyond the
edges, and every uninitialised tensor is full of NaN. The bounds are promise 2's (docs/backends.md): at most twice, for
gradients three times, the error of plain PyTorch in the same dtype. FLOOR units in the last place are added for tensors
of a few elements, where that error may be 0 by luck.
"""

import functools
import math

import pytest
import torch

from liif_fast import functional, make_cell, make_coord

from ..ops import oracle
from ..ops.conftest import nan_empty
from ..ops.support import ALL_SWITCHES, DEFAULT, Problem, same_bits

__all__ = ["nan_empty"]  # a fixture
pytestmark = pytest.mark.usefixtures("nan_empty")

EPS = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
FLOOR = 12  # as in tests/ops/test_random.py; it covers the second rounding to half precision, in P
FLIPS = (
    0.1  # of a gradient's size: in half precision a ReLU near 0 may fall either way, and plain PyTorch's by luck not
)
NETWORKS = [(20,), (33, 24), (130, 16, 65)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def rms(tensor):
    return tensor.double().square().mean().sqrt().item() if tensor.numel() else 0.0


def clear_of_zero(hidden, margin):
    """Return which queries have no pre-activation so near 0 that rounding may change its sign and the gradient."""
    closest = torch.cat([h.detach().abs() for h in hidden], -1).amin(-1)
    return closest > margin


def compare(names, ours, plain, exact, dtype, times):
    slack = FLOOR * EPS[dtype] + (FLIPS if dtype != torch.float32 and times == 3 else 0)
    for name, o, p, e in zip(names, ours, plain, exact, strict=True):
        assert o.shape == e.shape, name
        limit = times * rms(p - e) + slack * rms(e)
        assert rms(o - e) <= limit, f"{name}: error {rms(o - e):.3g}, allowed {limit:.3g}"


def check(problem, run, plain, networks=True):
    """run(problem) of the backend against plain(problem, hidden) in float64 and in the problem's dtype."""
    dtype = problem.feat.dtype
    double = Problem().to(torch.float64)
    double.switches, double.coord, double.cell = problem.switches, problem.coord, problem.cell
    double.feat = problem.feat.double()
    double.weights, double.biases = ([p.double() for p in ps] for ps in (problem.weights, problem.biases))
    hidden = []
    count = None if networks else 1
    exact = plain(double.requires_grad(), hidden)
    grad = torch.randn(exact.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    if hidden and dtype == torch.float32:  # in half precision a ReLU falls either way in plain PyTorch, too
        clear = clear_of_zero(hidden, 4e-6)
        grad *= (clear if clear.ndim == exact.ndim - 1 else clear.all(-1)).unsqueeze(-1).reshape(*grad.shape[:-1], 1)
    grad = grad.to(dtype)
    problem.requires_grad()
    eager = plain(problem, [])
    names = ["feat", *(f"weights[{i}]" for i in range(len(problem.weights)))]
    names += [f"biases[{i}]" for i in range(len(problem.biases))]

    def gradients(out, leaves):
        return torch.autograd.grad(out, leaves[:count], grad.to(out.dtype))

    exact_grads, eager_grads = gradients(exact, double.leaves), gradients(eager, problem.leaves)
    outs = [run(problem, recompute) for recompute in (True, False)]
    for out in outs:
        assert out.dtype == dtype
        compare(["output"], [out.detach()], [eager.detach()], [exact.detach()], dtype, 2)
        compare(names[:count], gradients(out, problem.leaves), eager_grads, exact_grads, dtype, 3)
    torch.testing.assert_close(*outs, rtol=2 * EPS[dtype], atol=2 * EPS[dtype])


@pytest.mark.parametrize(
    ("switches", "dtype"), [(s, d) for i, s in enumerate(ALL_SWITCHES) for d in DTYPES[: 3 if i % 3 == 2 else 2]]
)
def test_decode(switches, dtype):
    at = ALL_SWITCHES.index(switches)
    shape, queries = ((5, 7), (1, 1), (3, 2))[at % 3], (15, 7, 1)[at // 3]
    problem = Problem(seed=at, shape=shape, queries=queries, channels=(5, 3)[at % 2],
                      hidden=NETWORKS[at % 3], out_dim=(3, 1, 17)[at % 3], switches=switches, dtype=dtype)  # fmt: skip

    def run(p, recompute):
        return functional.liif_decode(*p.arguments, **switches._asdict(), backend="triton", recompute=recompute)

    check(problem, run, lambda p, hidden: oracle.decode(*p.arguments, switches, hidden))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("switches", ALL_SWITCHES[::3])
def test_render(switches, dtype):
    at = ALL_SWITCHES.index(switches)
    problem = Problem(seed=at, shape=(4, 3), channels=3, hidden=NETWORKS[at % 3], switches=switches, dtype=dtype)
    size, region, cell = (12, 7), (3, 1, 3, 5), torch.tensor([[0.3, 0.2], [0.1, 0.4]])

    def run(p, recompute):
        feat, _, _, weights, biases = p.arguments
        options = {**switches._asdict(), "backend": "triton", "recompute": recompute}
        return functional.liif_render(feat, size, weights, biases, region=region, cell=cell, **options)

    def plain(p, hidden):
        return oracle.render(p.feat, size, region, cell, p.weights, p.biases, switches, None)

    check(problem, run, plain)


def test_render_of_a_part():
    """A render from a part of the map equals that from the whole map bit for bit."""
    problem = Problem(shape=(13, 4), channels=3, hidden=NETWORKS[0])
    feat, _, _, weights, biases = problem.arguments
    size, region = (26, 8), (20, 1, 2, 3)
    top, left, height, width = functional.latents_read(size, region, (13, 4))
    assert height < 13
    part = feat[:, :, top : top + height, left : left + width]
    options = {"region": region, "backend": "triton"}
    whole = functional.liif_render(feat, size, weights, biases, **options)
    assert torch.equal(functional.liif_render(part, size, weights, biases, place=(top, left, 13, 4), **options), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at", range(3))
def test_fused_mlp(at, dtype):
    problem = Problem(seed=at, channels=(4, 13, 3)[at], hidden=NETWORKS[at], out_dim=(5, 64, 1)[at], dtype=dtype)
    generator = torch.Generator().manual_seed(at)
    problem.feat = torch.randn(2, 9, problem.weights[0].shape[1], generator=generator).to(dtype)

    def run(p, recompute):
        return functional.fused_mlp(p.feat, p.weights, p.biases, backend="triton", recompute=recompute)

    check(problem, run, lambda p, hidden: oracle.mlp(p.feat, p.weights, p.biases, hidden))


@pytest.mark.parametrize(("switches", "dtype"), [(each, DTYPES[i % 3]) for i, each in enumerate(ALL_SWITCHES)])
def test_gather_corners(switches, dtype):
    """Values are copied, so they are equal; the gradient is a sum of copies."""
    problem = Problem(shape=(4, 5), queries=19, switches=switches, dtype=dtype)
    options = {**switches._asdict(), "backend": "triton"}
    x, weight = functional.gather_corners(*problem.arguments[:3], **options)
    expected = oracle.gather(*problem.arguments[:3], switches)
    if dtype == torch.bfloat16:  # the interpreter cuts to bfloat16 where hardware rounds
        latent = 45 if switches.feat_unfold else 5
        assert same_bits(x[..., :latent], expected[0][..., :latent])
        torch.testing.assert_close(x, expected[0], rtol=2.0**-7, atol=0)
    else:
        assert same_bits(x, expected[0])
    assert same_bits(weight, expected[1])
    feat = problem.feat.requires_grad_()
    x, _ = functional.gather_corners(feat, *problem.arguments[1:3], **options)
    grad = torch.randint(-4, 5, x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    doubles = feat.detach().double().requires_grad_()
    exact = torch.autograd.grad(oracle.gather(doubles, *problem.arguments[1:3], switches)[0], doubles, grad.double())[0]
    assert torch.equal(torch.autograd.grad(x, feat, grad)[0].double(), exact.to(dtype).double())


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_gradients_of_coord_and_cell_in_half_precision(backend, dtype):
    """Large biases keep every pre-activation clear of 0, so that no ReLU falls the other way by rounding."""

    def gradients(name, kind):
        problem = Problem(shape=(4, 5), queries=7, channels=3, hidden=(33, 24)).to(dtype).to(kind)
        coord, cell = (each.to(torch.promote_types(kind, torch.float32)) for each in (problem.coord, problem.cell))
        places = [each.requires_grad_() for each in (coord, cell)]
        biases = [*(bias + 4 for bias in problem.biases[:-1]), problem.biases[-1]]
        out = functional.liif_decode(problem.feat, *places, problem.weights, biases, backend=name)
        weight = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape)
        return torch.autograd.grad((out * weight).sum(), places)

    answers = {name: can for name, can, _ in functional.explain(*Problem(dtype=dtype).arguments).answers}
    if not answers[backend]:
        pytest.skip(f"{backend} does not take {dtype} here")
    exact = gradients("reference", torch.float64)
    for name, ours, plain, right in zip(("coord", "cell"), gradients(backend, dtype), gradients("torch", dtype), exact,
                                        strict=True):  # fmt: skip
        limit = 3 * rms(plain - right) + FLOOR * EPS[dtype] * rms(right)
        assert ours.dtype == torch.float32
        assert rms(ours - right) <= limit, f"{name}: error {rms(ours - right):.3g}, allowed {limit:.3g}"


@pytest.mark.parametrize("low", [False, True])
def test_a_sum_beyond_float16(low):
    """P's gradient sums rows in float32, so it may exceed 65504 though no row's gradient and no result does.

    GradScaler starts at a factor of 65536, so that is usual. The results are finite and keep their promise.
    """
    queries, channels = 300, 2
    generator = torch.Generator().manual_seed(2)
    feat = torch.randn(1, channels, 1, 2, generator=generator)
    coord, cell = torch.rand(2, 1, queries, 2, generator=generator)
    # The first layer is positive and small: dP sums to 1e6 and the map's gradient to 1e4.
    weights = [torch.rand(8, 9 * channels + 4, generator=generator) * 1e-3, torch.rand(3, 8, generator=generator)]
    biases = [torch.ones(8), torch.zeros(3)]

    def gradients(backend, dtype, autocast=None):
        leaves = [t.to(dtype).requires_grad_() for t in (feat, *weights, *biases)]
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            out = functional.liif_decode(leaves[0], coord, cell, leaves[1:3], leaves[3:], backend=backend)
        return torch.autograd.grad(out, leaves, torch.full_like(out, 8000))

    with torch.no_grad():
        weights[0][:, -4:] = 0  # its columns for rel and cell would pass it, too
    exact = gradients("reference", torch.float64)
    assert exact[3].abs().max() > 10 * 65504  # of the first bias: P's gradient, over the two latents
    ours = gradients("triton", torch.float16) if low else gradients("triton", torch.float32, torch.float16)
    assert ours[0].dtype == (torch.float16 if low else torch.float32)
    for o, e in zip(ours[:1] if low else ours, exact, strict=False):
        assert o.isfinite().all()
        assert rms(o - e) <= 3 * EPS[torch.float16] * rms(e)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_the_scale_is_of_finite_elements(wrong):
    """One image's NaN or infinity leaves another's large gradient finite."""
    from liif_fast.kernels import project

    grad, feat = torch.full((2, 1, 2, 8), 1e6), torch.zeros(2, 3, 1, 2, dtype=torch.float16)
    grad[0, 0, 1, 4] = wrong
    weight = torch.full((8, 3), 1e-3, dtype=torch.float16)
    of_feat, _, _ = project.project_backward(grad, feat, weight, False, 0, 0, (True, False, False))
    expected = torch.full((2, 3, 1, 2), 8e3)
    expected[0, :, :, 1] = wrong
    torch.testing.assert_close(of_feat.float(), expected, rtol=2e-3, atol=0, equal_nan=True)


@pytest.mark.parametrize("ensemble", [True, False])
def test_atomic_and_sorted_gradients_agree(ensemble):
    """use_deterministic_algorithms selects the sorted form, which is repeatable."""
    switches = DEFAULT._replace(local_ensemble=ensemble)
    problem = Problem(shape=(3, 4), queries=40, switches=switches).requires_grad()

    def gradients():
        out = functional.liif_decode(*problem.arguments, **switches._asdict(), backend="triton")
        return torch.autograd.grad(out.sin().sum(), problem.leaves)

    ordered = gradients()  # nan_empty asks for deterministic algorithms
    assert all(map(torch.equal, ordered, gradients()))
    torch.use_deterministic_algorithms(False)
    for a, b in zip(ordered, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_chunks_are_summed(monkeypatch):
    """Gradients in chunks of 128 rows, some kept and some recomputed, equal those of one chunk."""
    from liif_fast.backends import triton
    from liif_fast.kernels import backward

    problem = Problem(shape=(3, 4), queries=34, hidden=(9, 8)).requires_grad()
    feat, _, _, weights, biases = problem.arguments
    x = torch.randn(150, weights[0].shape[1], requires_grad=True)

    def run(recompute):
        options = {"backend": "triton", "recompute": recompute}
        out = functional.liif_decode(*problem.arguments, **options)
        image = functional.liif_render(feat, (7, 6), weights, biases, **options)
        rows = functional.fused_mlp(x, weights, biases, **options)
        total = out.sin().sum() + image.sin().sum() + rows.sin().sum()
        return [out, image, rows, *torch.autograd.grad(total, [*problem.leaves, x])]

    whole = run(False)
    monkeypatch.setattr(backward, "CHUNK_BYTES", 128 * 2 * 2 * 9 * 4)
    monkeypatch.setattr(triton, "KEEP_BYTES", 150 * 2 * 9 * 4)
    for recompute in (None, True, False):
        for a, b in zip(run(recompute), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_cuts_do_not_show():
    """Cutting queries changes nothing, and render equals decode of the same grid.

    Promise 3 requires the same bits, but the interpreter's NumPy matrix products do not keep them.
    """
    problem = Problem(batch=2, shape=(6, 7), hidden=(33, 20), queries=1)
    feat, _, _, weights, biases = problem.arguments
    size = (9, 7)
    coord, cell = (t.expand(2, -1, -1) for t in (make_coord(size), make_cell(size)))
    close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
    whole = functional.liif_render(feat, size, weights, biases, backend="triton")
    part = functional.liif_render(feat, size, weights, biases, region=(2, 3, 6, 4), backend="triton")
    close(part, whole[:, :, 2:8, 3:7])
    rows = functional.liif_decode(feat, coord, cell, weights, biases, backend="triton")
    close(rows.transpose(1, 2).unflatten(2, size), whole)
    for start, stop in ((0, 1), (1, 40), (40, 63)):
        some = coord[:, start:stop], cell[:, start:stop]
        close(functional.liif_decode(feat, *some, weights, biases, backend="triton"), rows[:, start:stop])


def test_precision(monkeypatch):
    from liif_fast.kernels import host

    for allowed, expected in ((True, "tf32"), (False, "tf32x3")):
        monkeypatch.setattr(host, "tf32_allowed", lambda allowed=allowed: allowed)
        assert host.precision(torch.float32) == expected
        assert host.precision(torch.bfloat16) == "half"
