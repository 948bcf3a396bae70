"""The factorised form equals the plain one: forward and backward, chunked, recomputed, compiled and exported."""

import itertools

import pytest
import torch

from liif_fast.backends import chunks
from liif_fast.backends import factorised as backend
from liif_fast.functional import corner_plan, fused_mlp, gather_corners, liif_decode, liif_render
from liif_fast.layers import LIIFDecoder, linear_chain

SWITCHES = list(itertools.product((True, False), repeat=3))
TOLERANCE = 1e-5  # relative to the largest value, the promise for float32; float64 must reach 1e-13


def problem(switches=(True, True, True), shape=(2, 5, 9, 11), queries=50, hidden=(16, 16), dtype=torch.float32):
    """Make a feature map, queries and a network; coord and cell are float64, to compare their gradients."""
    torch.manual_seed(0)
    unfold, ensemble, cell = switches
    decoder = LIIFDecoder(shape[1], 3, hidden, feat_unfold=unfold, local_ensemble=ensemble, cell_decode=cell).to(dtype)
    feat = torch.randn(shape, dtype=dtype)
    coord = torch.rand(shape[0], queries, 2) * 2.2 - 1.1
    cells = torch.rand(shape[0], queries, 2)
    options = {"feat_unfold": unfold, "local_ensemble": ensemble, "cell_decode": cell}
    return feat, coord, cells, *linear_chain(decoder.layers), options


def assert_near(got, expected, tolerance=TOLERANCE):
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    error = (got - expected).abs().max() / expected.abs().max().clamp(min=1e-30) if expected.numel() else 0
    assert error <= tolerance


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CPU_CHUNK_BYTES", 2000)  # about eight queries


@pytest.fixture(params=["factorised", "direct"])
def form(request, monkeypatch):
    monkeypatch.setattr(backend, "factorises", lambda latents, rows: request.param == "factorised")


@pytest.mark.parametrize("hidden", [(), (8,), (16, 12, 16)])
@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.usefixtures("form", "small_chunks")
def test_equals_the_plain_form(switches, hidden):
    feat, coord, cell, weights, biases, options = problem(switches, hidden=hidden)
    expected = liif_decode(feat, coord, cell, weights, biases, backend="reference", **options)
    with torch.no_grad():
        assert_near(liif_decode(feat, coord, cell, weights, biases, backend="torch", **options), expected)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.usefixtures("form", "small_chunks")
def test_gradients_equal_the_plain_forms(switches, recompute):
    feat, coord, cell, weights, biases, options = problem(switches, dtype=torch.float64)
    inputs = [feat, coord.double(), cell.double(), *weights, *biases]
    inputs = [t.detach().requires_grad_() for t in inputs]

    def gradients(name, recompute):
        out = liif_decode(*inputs[:3], inputs[3:6], inputs[6:], backend=name, recompute=recompute, **options)
        return torch.autograd.grad(out.square().sum(), inputs, allow_unused=not switches[2])

    for got, expected in zip(gradients("torch", recompute), gradients("reference", None), strict=True):
        assert (got is None) == (expected is None)
        if expected is not None:
            assert_near(got, expected, 1e-11)


@pytest.mark.usefixtures("form", "small_chunks")
def test_only_the_gradients_wanted():
    feat, coord, cell, weights, biases, options = problem()
    for wanted in (feat, weights[0], biases[1]):
        for tensor in (feat, *weights, *biases):
            tensor.requires_grad_(tensor is wanted)
        grads = [
            torch.autograd.grad(
                liif_decode(feat, coord, cell, weights, biases, backend="torch", recompute=r, **options).sum(), wanted
            )[0]
            for r in (True, False)
        ]
        assert_near(*grads)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.usefixtures("small_chunks")
def test_render_and_its_gradients(recompute):
    feat, _, _, weights, biases, _ = problem(dtype=torch.float64)
    cell = torch.rand(2, 2)
    inputs = [t.detach().requires_grad_() for t in (feat, cell, *weights, *biases)]

    def run(name):
        feat, cell, *params = inputs
        options = {"cell": cell, "region": (2, 3, 11, 13), "backend": name, "recompute": recompute}
        out = liif_render(feat, (20, 30), params[:3], params[3:], **options)
        return out, torch.autograd.grad(out.square().sum(), inputs)

    (out, grads), (expected, expected_grads) = run("torch"), run("reference")
    assert_near(out, expected, 1e-7)  # cell is float32
    for got, grad in zip(grads, expected_grads, strict=True):
        assert_near(got, grad, 1e-6)


def test_large_training_calls_are_recomputed(monkeypatch):
    feat, coord, cell, weights, biases, options = problem()
    kept = liif_decode(feat.requires_grad_(), coord, cell, weights, biases, backend="torch", **options)
    assert "Recomputed" not in str(kept.grad_fn)
    monkeypatch.setattr(backend, "KEEP_BYTES", 1000)
    recomputed = liif_decode(feat, coord, cell, weights, biases, backend="torch", **options)
    assert "Recomputed" in str(recomputed.grad_fn)


def test_second_derivatives_of_a_recomputed_call_are_refused():
    feat, coord, cell, weights, biases, options = problem()
    out = liif_decode(feat.requires_grad_(), coord, cell, weights, biases, backend="torch", recompute=True, **options)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.sum(), feat, create_graph=True)


@pytest.mark.parametrize(("batch", "queries", "size"), [(3, 10, 4), (7, 3, 8), (2, 0, 5), (0, 9, 4), (1, 1, 0)])
def test_chunks_cover_every_query_once(batch, queries, size):
    count = torch.zeros(batch, queries)
    for images, part in chunks.chunk_slices(batch, queries, size):
        count[images, part] += 1
        assert count[images, part].numel() <= max(size, 1)
    assert (count == 1).all()


@pytest.mark.parametrize(("unfold", "ensemble", "cell"), SWITCHES)
@pytest.mark.usefixtures("small_chunks")
def test_gather_corners_is_the_references_bits(unfold, ensemble, cell):
    feat, coord, cells, _, _, options = problem((unfold, ensemble, cell))
    for tensor in (feat, feat.clone().requires_grad_()):
        got = gather_corners(tensor, coord, cells, backend="torch", **options)
        for one, other in zip(got, gather_corners(feat, coord, cells, backend="reference", **options), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.usefixtures("small_chunks")
def test_mlp(recompute):
    weights, biases = problem(hidden=(16, 8))[3:5]
    x = torch.randn(3, 70, 49, requires_grad=True)
    expected = fused_mlp(x, weights, biases, backend="reference")
    with torch.no_grad():
        assert_near(fused_mlp(x, weights, biases, backend="torch"), expected)
    out = fused_mlp(x, weights, biases, backend="torch", recompute=recompute)
    for inputs in (x, weights[0], biases[2]):
        (got,) = torch.autograd.grad(out.square().sum(), inputs, retain_graph=True)
        (grad,) = torch.autograd.grad(expected.square().sum(), inputs, retain_graph=True)
        assert_near(got, grad)


@pytest.mark.parametrize("unfold", [True, False])
@pytest.mark.usefixtures("form", "small_chunks")
def test_nan_reaches_the_queries_that_read_it(unfold):
    feat, coord, cell, weights, biases, options = problem((unfold, True, True), queries=300)
    clean = liif_decode(feat, coord, cell, weights, biases, backend="torch", **options)
    for value in (float("nan"), float("inf")):
        feat[1, 2, 4, 5] = value
        out = liif_decode(feat, coord, cell, weights, biases, backend="torch", **options)
        reads = ((corner_plan(coord, (9, 11))[0] - torch.tensor([4, 5])).abs().amax(-1) <= int(unfold)).any(-1)
        reads[0] = False
        assert torch.equal(out[~reads], clean[~reads])
        if value != value:
            assert out[reads].isnan().all()


@pytest.mark.usefixtures("form")
def test_autocast():
    """The MLP runs in bfloat16 with its 8 bits of mantissa, the plan in float32, so no neighbour changes."""
    feat, coord, cell, weights, biases, options = problem(hidden=(32, 32))
    exact = liif_decode(feat, coord, cell, weights, biases, backend="reference", **options)
    with torch.autocast("cpu", torch.bfloat16):
        out = liif_decode(feat.requires_grad_(), coord, cell, weights, biases, backend="torch", **options)
        plain = liif_decode(feat, coord, cell, weights, biases, backend="reference", **options)
    assert out.dtype == torch.float32
    assert (out - exact).abs().max() <= 2 * (plain - exact).abs().max()  # the promise is twice eager's error
    out.sum().backward()
    assert feat.grad.dtype == torch.float32


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype):
    feat, coord, cell, weights, biases, options = problem()
    exact = liif_decode(feat, coord, cell, weights, biases, backend="reference", **options)
    half = [[t.to(dtype) for t in tensors] for tensors in ([feat], weights, biases)]
    out = liif_decode(half[0][0], coord, cell, *half[1:], backend="torch", **options)
    assert out.dtype == dtype
    assert_near(out.float(), exact, 8 * torch.finfo(dtype).eps)


# B, H, W, Q. The first sizes differ from one another, from C = 4 and from coord's 2, because dynamic=True treats sizes
# that are equal at first as one.
SIZES = [(3, 9, 11, 1400), (2, 12, 13, 2100), (4, 14, 10, 1300), (5, 11, 12, 1200)]


def test_one_compiled_graph_for_every_size():
    decoder = LIIFDecoder(4, 3, (8, 8), backend="torch")
    compiled = torch.compile(decoder, fullgraph=True, dynamic=True)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, height, width, queries in SIZES:
            feat = torch.randn(batch, 4, height, width, requires_grad=True)
            coord, cell = torch.rand(batch, queries, 2) * 2 - 1, torch.rand(batch, queries, 2)
            got, expected = compiled(feat, coord, cell), decoder(feat, coord, cell)
            assert_near(got, expected)
            inputs = (feat, *decoder.parameters())
            for one, other in zip(
                torch.autograd.grad(got.square().sum(), inputs),
                torch.autograd.grad(expected.square().sum(), inputs),
                strict=True,
            ):
                assert_near(one, other, 1e-5)


def test_export():
    decoder = LIIFDecoder(4, 3, (8,), backend="torch").eval()
    inputs = (torch.randn(2, 4, 5, 6), torch.rand(2, 50, 2), torch.rand(2, 50, 2))
    auto, batch, queries = torch.export.Dim.DYNAMIC, torch.export.Dim("batch"), torch.export.Dim("queries")
    shapes = {"feat": {0: batch, 2: auto, 3: auto}, "coord": {0: batch, 1: queries}, "cell": {0: batch, 1: queries}}
    exported = torch.export.export(decoder, inputs, dynamic_shapes=shapes).module()
    inputs = (torch.randn(3, 4, 7, 8), torch.rand(3, 20, 2), torch.rand(3, 20, 2))
    assert_near(exported(*inputs), decoder(*inputs))
