"""Check promise 5: hostile values, sizes and layouts."""

import mmap
import os

import pytest
import torch

from liif_fast import functional

from . import oracle
from .oracle import Switches
from .support import ALL_SWITCHES, BACKENDS, Problem, in_dim, make_layers, same_bits

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
NAN = float("nan")


def surrounded(tensor):
    """Return the same values as a view into a tensor full of NaN."""
    around = torch.full([n + 4 for n in tensor.shape], NAN, dtype=tensor.dtype)
    inside = around[tuple(slice(2, n + 2) for n in tensor.shape)]
    return inside.copy_(tensor)


def everything(problem, backend, recompute=None):
    """Return outputs and gradients of every operator."""
    feat, coord, cell, weights, biases = problem.arguments
    options = {**problem.switches._asdict(), "backend": backend}
    x, weight = functional.gather_corners(feat, coord, cell, **options)
    mlp = functional.fused_mlp(x, weights, biases, backend=backend, recompute=recompute)
    options["recompute"] = recompute
    out = functional.liif_decode(feat, coord, cell, weights, biases, **options)
    whole = functional.liif_render(feat, (30, 19), weights, biases, **options)
    part = functional.liif_render(feat, (30, 19), weights, biases, region=(7, 3, 9, 8), **options)
    outputs = [out, whole, part, x, mlp]
    total = sum((each.sin() * torch.arange(each.numel()).view(each.shape).cos()).sum() for each in outputs)
    return [each.detach() for each in outputs] + [weight, *torch.autograd.grad(total, problem.leaves)]


@pytest.mark.parametrize("switches", ALL_SWITCHES)
@pytest.mark.parametrize("recompute", [True, False])
def test_surroundings_change_no_bit(backend, switches, recompute, nan_empty, poison):
    """NaN around inputs, in uninitialised tensors and in the scratch memory of earlier calls has no effect."""
    clean = everything(Problem(switches=switches).requires_grad(), backend, recompute)
    problem = Problem(switches=switches)
    problem.feat, problem.coord, problem.cell = map(surrounded, (problem.feat, problem.coord, problem.cell))
    problem.weights = [surrounded(w) for w in problem.weights]
    problem.biases = [surrounded(b) for b in problem.biases]
    poison()
    hostile = everything(problem.requires_grad(), backend, recompute)
    for ours, expected in zip(hostile, clean, strict=True):
        assert not expected.isnan().any()
        if backend == "cpu":
            assert same_bits(ours, expected)
        else:  # PyTorch picks another matrix product for another layout: rounding only, test_random.py's bound
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("switches", ALL_SWITCHES)
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_one_bad_latent_reaches_its_readers_only(backend, switches, value):
    problem = Problem(batch=2, shape=(13, 17), queries=1000, switches=switches)
    feat, coord, cell, weights, biases = problem.arguments
    options = {**switches._asdict(), "backend": backend}
    size = (39, 40)
    clean = functional.liif_decode(feat, coord, cell, weights, biases, **options)
    clean_render = functional.liif_render(feat, size, weights, biases, **options)
    at = torch.tensor([6, 9])
    bad = feat.clone()
    bad[1, 2, 6, 9] = value
    reach = 1 if switches.feat_unfold else 0

    def readers(coord):
        index = torch.from_numpy(oracle.plan(coord.numpy(), (13, 17), switches.local_ensemble)[0])
        return ((index - at).abs() <= reach).all(-1).any(-1)

    out = functional.liif_decode(bad, coord, cell, weights, biases, **options)
    read = readers(coord)
    read[0] = False
    assert read.any()
    assert same_bits(out[~read], clean[~read])
    assert not out[read].isfinite().all(-1).any()
    render = functional.liif_render(bad, size, weights, biases, **options)
    read = readers(torch.from_numpy(oracle.grid(size))).view(size)
    assert same_bits(render[0], clean_render[0])
    assert same_bits(render[1][:, ~read], clean_render[1][:, ~read])
    assert not render[1][:, read].isfinite().all(0).any()
    few = functional.liif_decode(bad, coord[:, :3], cell[:, :3], weights, biases, **options)  # possibly the direct form
    assert same_bits(few.isfinite(), out[:, :3].isfinite())


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_nan_passes_relu(backend, layer):
    """A NaN in any layer survives forward (a swapped max(x, 0) would give 0) and backward."""
    problem = Problem().requires_grad()
    with torch.no_grad():
        problem.biases[layer][1] = NAN
    feat, coord, cell, weights, biases = problem.arguments
    x, _ = functional.gather_corners(feat, coord, cell, backend=backend)
    for recompute in (True, False):
        for out in (
            functional.liif_decode(*problem.arguments, backend=backend, recompute=recompute),
            functional.fused_mlp(x.detach(), weights, biases, backend=backend, recompute=recompute),
        ):
            expected = torch.ones_like(out, dtype=torch.bool)
            if layer == 2:
                expected[..., [0, 2]] = False
            assert torch.equal(out.isnan(), expected)
            grads = torch.autograd.grad(out.sum(), weights)
            assert grads[layer + 1 if layer < 2 else 2].isnan().any() == (layer < 2)


@pytest.mark.parametrize("switches", ALL_SWITCHES[::3])
def test_nothing_to_do(backend, switches):
    """Q = 0, B = 0 or an empty window give empty outputs and gradients of 0."""
    options = {**switches._asdict(), "backend": backend}
    for batch, queries in ((2, 0), (0, 5), (0, 0)):
        problem = Problem(batch=batch, queries=queries, switches=switches).requires_grad()
        feat, coord, cell, weights, biases = problem.arguments
        for recompute in (True, False, None):
            out = functional.liif_decode(*problem.arguments, recompute=recompute, **options)
            assert out.shape == (batch, queries, 3)
            window = (2, 3, 0, 4) if batch else (2, 3, 5, 4)
            render = functional.liif_render(
                feat, (20, 30), weights, biases, region=window, recompute=recompute, **options
            )
            assert render.shape == (batch, 3, *window[2:])
            for grad in torch.autograd.grad(out.sum() + render.sum(), problem.leaves):
                assert not grad.any()
        x, weight = functional.gather_corners(feat, coord, cell, **options)
        corners = 4 if switches.local_ensemble else 1
        assert x.shape == (batch, queries, corners, in_dim(5, switches))
        assert weight.shape == (batch, queries, corners)
        assert not torch.autograd.grad(x.sum(), feat)[0].any()
        mlp = functional.fused_mlp(x, weights, biases, backend=backend)
        assert mlp.shape == (batch, queries, corners, 3)
        with torch.no_grad():
            assert functional.liif_decode(*problem.arguments, **options).shape == (batch, queries, 3)


@pytest.mark.parametrize("switches", ALL_SWITCHES)
def test_one_latent(backend, switches):
    """On a 1x1 map every corner is the same latent, and the ensemble is its prediction."""
    problem = Problem(shape=(1, 1), queries=257, switches=switches)
    out = functional.liif_decode(*problem.arguments, **switches._asdict(), backend=backend)
    torch.testing.assert_close(out, oracle.decode(*problem.arguments, switches), rtol=1e-5, atol=1e-6)


def lazy(elements):
    """Return a float32 tensor of zeros whose memory exists only where it is touched."""
    no_reserve = 0x4000 if hasattr(mmap, "MAP_PRIVATE") else 0
    memory = mmap.mmap(-1, elements * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    return torch.frombuffer(memory, dtype=torch.float32)


@pytest.mark.skipif(not hasattr(mmap, "MAP_PRIVATE"), reason="needs memory that is not reserved")
def test_offsets_of_64_bits(backend):
    """Test inputs whose elements lie more than 2^31 apart in each direction that an operator steps."""
    problem = Problem(channels=3, shape=(5, 4), queries=40, hidden=(9, 8))
    expected = everything(problem.requires_grad(), backend)
    far = 2**31 // 3 + 11
    memory = lazy(6 * far + 2**14)
    cases = [
        ("feat", (4 * far, 400, 20, 4)),
        ("feat", (200, 2 * far, 20, 4)),
        ("feat", (600, 200, far, 4)),
        ("feat", (600, 200, 20, far)),
        ("coord", (5 * far, 2, 1)),
        ("coord", (2, far // 8, 1)),
        ("coord", (2, 97, 5 * far)),
        ("cell", (5 * far, 2, 1)),
        ("cell", (2, 97, 5 * far)),
        ("weights", (far // 2, 1)),
        ("weights", (9, far // 2)),
        ("biases", (far // 2,)),
    ]
    for name, strides in cases:
        hostile = Problem(channels=3, shape=(5, 4), queries=40, hidden=(9, 8))
        original = getattr(hostile, name)
        tensor = original[1] if isinstance(original, list) else original
        tensor = tensor.detach()
        assert sum((n - 1) * step for n, step in zip(tensor.shape, strides, strict=True)) > 2**31
        with torch.no_grad():
            view = memory.as_strided(tensor.shape, strides, 1000)
            view.copy_(tensor)
        if isinstance(original, list):
            original[1] = view
        else:
            setattr(hostile, name, view)
        if name == "feat":  # PyTorch's gradients keep a leaf's strides and would touch all the memory
            feat, coord, cell, weights, biases = hostile.arguments
            out = functional.liif_decode(feat, coord, cell, weights, biases, backend=backend)
            torch.testing.assert_close(out, expected[0], rtol=1e-5, atol=1e-6)
            x, _ = functional.gather_corners(feat, coord, cell, backend=backend)
            assert same_bits(x, expected[3])
        else:
            for leaf in hostile.leaves:
                leaf.requires_grad_(leaf is not view)
            feat, coord, cell, weights, biases = hostile.arguments
            out = functional.liif_decode(feat, coord, cell, weights, biases, backend=backend)
            torch.testing.assert_close(out.detach(), expected[0], rtol=1e-5, atol=1e-6)
            out.sum().backward()


@pytest.mark.skipif(not hasattr(mmap, "MAP_PRIVATE"), reason="needs memory that is not reserved")
def test_projection_beyond_2_31_elements(backend):
    """Test the cpu operator on a P of more than 2^31 elements, of which it reads the last few."""
    if backend != "cpu":
        pytest.skip("no other backend has P as an input")
    height, width, hidden = 4099, 8193, 64
    p = lazy(height * width * hidden).view(1, height, width, hidden)
    p[0, -3:, -3:] = torch.randn(3, 3, hidden, generator=torch.Generator().manual_seed(0))
    weights, biases = make_layers((2, hidden, 3))
    coord = 1 + torch.rand(1, 7, 2, generator=torch.Generator().manual_seed(1)) * -2e-4
    out, _ = torch.ops.liif_fast.decode(p, coord, None, weights, biases, True, [0, weights[1].shape[0]], None)
    index, rel, weight = map(torch.from_numpy, oracle.plan(coord.numpy(), (height, width)))
    assert (index >= torch.tensor([height - 3, width - 3])).all()
    assert ((index[..., 0] * width + index[..., 1]) * hidden > 2**31).all()
    first = p[0, index[..., 0], index[..., 1]] + rel @ weights[0].T
    expected = (torch.nn.functional.linear(first.relu(), weights[1], biases[1]) * weight[..., None]).sum(2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(os.environ.get("LIIF_FAST_TEST_LARGE") != "1", reason="LIIF_FAST_TEST_LARGE=1: 12 GiB and minutes")
def test_output_beyond_2_31_elements(backend):
    if backend == "reference":
        pytest.skip("the plain form would need 40 GiB")
    problem = Problem(
        batch=1, channels=1, shape=(8, 8), hidden=(), out_dim=1024, switches=Switches(False, False, False)
    )
    feat, _, _, weights, biases = problem.arguments
    size = 1449, 1449
    options = {**problem.switches._asdict(), "backend": backend}
    out = functional.liif_render(feat, size, weights, biases, **options)
    assert out.numel() > 2**31
    tail = functional.liif_render(feat, size, weights, biases, region=(1440, 1440, 9, 9), **options)
    assert same_bits(out[:, :, 1440:, 1440:].contiguous(), tail)
