"""Compare modulated_decode of every backend with the plain form: widths, depths, maps, gradients, hostile input."""

import math

import pytest
import torch
import torch.nn.functional as F

from liif_fast import functional

from .relatives import check_chunks, check_empty, check_torch_places
from .support import assert_near, make_layers, same_bits
from .test_flops import counted

FORMS = ["reference", "torch", "cpu"]
# neurons, modulated layers, features, outputs; local_ensemble, cell_decode
NETWORKS = [
    (16, 6, 16, 3, True, True),
    (5, 3, 6, 1, False, False),
    (5, 1, 0, 4, True, True),
    (33, 2, 7, 3, True, False),
    (40, 2, 21, 35, False, True),
    (1, 2, 1, 1, True, True),
]


class Call:
    """Hold a call of modulated_decode with every tensor as a leaf."""

    def __init__(self, neurons=5, depth=3, features=7, outs=3, ensemble=True, cell=True, shape=(5, 7), batch=2,
                 queries=83, dtype=torch.float32):  # fmt: skip
        torch.manual_seed(0)
        self.feat = torch.randn(batch, 2 * depth * neurons + features, *shape, dtype=dtype)
        self.coord = torch.rand(batch, queries, 2) * 2.4 - 1.2
        self.cell = torch.rand(batch, queries, 2) * 0.3 if cell else None
        widths = (features + (4 if cell else 2), *[neurons] * depth, outs)
        self.weights, self.biases = make_layers(widths, dtype=dtype)
        self.weigh = torch.randn(batch, queries, outs).to(dtype)
        self.switches = {"local_ensemble": ensemble, "cell_decode": cell}

    def run(self, backend, **options):
        return functional.modulated_decode(
            self.feat, self.coord, self.cell, self.weights, self.biases, backend=backend, **self.switches, **options
        )

    def gradients(self, backend, **options):
        leaves = [self.feat, *self.weights, *self.biases]
        for leaf in leaves:
            leaf.requires_grad_()
        out = self.run(backend, **options)
        return out.detach(), torch.autograd.grad((out * self.weigh).sum(), leaves)


def formula(call):
    """Compute the definition, on the corner plan, in float64."""
    shape = call.feat.shape[2:]
    index, rel, weight = functional.corner_plan(call.coord, shape, local_ensemble=call.switches["local_ensemble"])
    image = torch.arange(len(call.feat)).view(-1, 1, 1)
    rows = call.feat.double()[image, :, index[..., 0], index[..., 1]]
    depth, neurons = len(call.weights) - 1, len(call.weights[0])
    parts = [rows[..., 2 * depth * neurons :], rel.double()]
    if call.cell is not None:
        parts.append((call.cell * torch.tensor(shape)).double()[:, :, None].expand(rel.shape))
    x = torch.cat(parts, -1)
    for i in range(depth):
        scale = rows[..., i * neurons : (i + 1) * neurons]
        shift = rows[..., (depth + i) * neurons : (depth + i + 1) * neurons]
        x = F.relu(F.linear(x, call.weights[i].double(), call.biases[i].double()) * (1 + scale) + shift)
    out = F.linear(x, call.weights[-1].double(), call.biases[-1].double())
    return (out * weight.double()[..., None]).sum(2)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_every_form_is_the_formula(network, backend, dtype, tolerance):
    call = Call(*network, dtype=dtype)
    expected = formula(call)
    assert_near(call.run(backend).double(), expected, tolerance)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("backend", FORMS[1:])
def test_gradients(network, backend):
    call = Call(*network)
    out, grads = call.gradients(backend, recompute=True)
    expected, wanted = call.gradients("reference")
    assert_near(out, expected, 1e-5)
    for ours, theirs in zip(grads, wanted, strict=True):
        assert_near(ours, theirs, 1e-4)


@pytest.mark.parametrize("seed", range(12))
def test_random_configurations(seed):
    """Any widths, maps and numbers of queries, over several tiles and chunks; outputs, gradients, repeated bits."""
    rng = torch.Generator().manual_seed(seed)

    def any_of(*values):
        return values[torch.randint(len(values), (1,), generator=rng).item()]

    network = any_of(1, 2, 7, 8, 16, 31, 32, 48), any_of(1, 2, 5), any_of(0, 1, 9, 64), any_of(1, 3, 17)
    shape, batch, queries = (any_of(1, 2, 9), any_of(1, 5, 11)), any_of(1, 2, 3), any_of(1, 23, 25, 500)
    call = Call(*network, any_of(True, False), any_of(True, False), shape, batch, queries, torch.float64)
    expected, wanted = call.gradients("reference")
    out, grads = call.gradients("cpu")
    for ours, theirs in zip((out, *grads), (expected, *wanted), strict=True):
        assert_near(ours, theirs, 1e-9)
    again, same = call.gradients("cpu")
    assert all(map(torch.equal, (again, *same), (out, *grads)))


def test_gradients_of_the_places():
    check_torch_places(Call(dtype=torch.float64))


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_fused_gradients_of_the_places(network):
    call = Call(*network, dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (call.coord, call.cell) if leaf is not None]
    wanted = torch.autograd.grad((call.run("reference") * call.weigh).sum(), leaves)
    for ours, theirs in zip(torch.autograd.grad((call.run("cpu") * call.weigh).sum(), leaves), wanted, strict=True):
        assert ours.dtype == torch.float32
        assert_near(ours, theirs, 1e-4)
    leaves[0].requires_grad_(False)
    for leaf in leaves[1:]:
        (alone,) = torch.autograd.grad((call.run("cpu") * call.weigh).sum(), [leaf])
        assert_near(alone, wanted[1], 1e-4)


def test_only_the_wanted_gradients():
    call = Call()
    call.weights[1].requires_grad_()
    (expected,) = torch.autograd.grad(call.run("reference").sum(), [call.weights[1]])
    (grad,) = torch.autograd.grad(call.run("cpu").sum(), [call.weights[1]])
    assert_near(grad, expected, 1e-4)
    call.feat.requires_grad_()
    (grad,) = torch.autograd.grad(call.run("cpu").sum(), [call.feat], create_graph=False)
    assert grad.shape == call.feat.shape
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(call.run("cpu").sum(), [call.feat], create_graph=True)


def test_chunks_change_nothing(monkeypatch):
    check_chunks(Call(), "torch", monkeypatch)


@pytest.mark.parametrize("backend", FORMS)
def test_a_part_of_the_map(backend):
    call, size, region = Call(shape=(40, 9)), (61, 20), (30, 3, 11, 12)
    network = (call.weights, call.biases)
    expected = functional.modulated_render(call.feat, size, *network, backend=backend)[:, :, 30:41, 3:15]
    top, left, rows, columns = functional.latents_read(size, region, (40, 9), feat_unfold=False)
    part, place = call.feat[:, :, top : top + rows, left : left + columns], (top, left, 40, 9)
    got = functional.modulated_render(part, size, *network, region=region, backend=backend, place=place)
    assert rows < 40
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    if backend == "cpu":
        assert torch.equal(got, expected)


def test_the_operator_refuses_what_would_be_read_wrongly():
    """`functional` has checked its arguments; a direct call is checked by the operator."""
    call = Call(shape=(4, 6))
    p, run = call.feat.permute(0, 2, 3, 1).contiguous(), torch.ops.liif_fast.modulated_decode
    layers, whole = (call.weights, call.biases), (0, 0, 4, 6)
    with pytest.raises(RuntimeError, match="outside of p's part of the map"):
        run(p, call.coord, call.cell, *layers, True, (0, 0, 9, 6), None)
    with pytest.raises(RuntimeError, match="place must be"):
        run(p, call.coord, call.cell, *layers, True, (1, 0, 4, 6), None)
    with pytest.raises(RuntimeError, match=r"p must be \[B, h, w, 2 L K \+ C\]"):
        run(p[..., :-1].contiguous(), call.coord, call.cell, *layers, True, whole, None)
    with pytest.raises(RuntimeError, match="one width"):
        run(p, call.coord, call.cell, *make_layers((11, 5, 6, 5, 3)), True, whole, None)
    with pytest.raises(RuntimeError, match="of a modulated layer at least"):
        run(p, call.coord, call.cell, call.weights[:1], call.biases[:1], True, whole, None)
    with pytest.raises(RuntimeError, match="grad must have the output's shape"):
        torch.ops.liif_fast.modulated_decode_backward(
            call.weigh[:, 1:], p, call.coord, call.cell, *layers, True, [True] * (2 + 2 * len(call.weights)), None
        )


@pytest.mark.parametrize(("dtype", "low"), [(torch.float32, False), (torch.float64, False), (torch.float32, True)])
@pytest.mark.parametrize("neurons", [16, 32])
def test_bits_do_not_depend_on_threads_or_neighbours(threads, dtype, low, neurons):
    """This holds in bfloat16, too, if the processor has it; few queries read 32 neurons' weights, which many pack."""
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        call = Call(neurons, 6, 16, queries=300, dtype=dtype)
        expected, grads = call.gradients("cpu")
        part = Call(neurons, 6, 16, queries=300, dtype=dtype)
        for queries in (slice(7, 9), slice(7, 100)):
            part.coord, part.cell = call.coord[:, queries], call.cell[:, queries]
            assert torch.equal(part.run("cpu"), expected[:, queries])
        again, same = call.gradients("cpu")
        assert all(map(torch.equal, (again, *same), (expected, *grads)))
        threads(3)
        out, shared = call.gradients("cpu")
    assert torch.equal(out, expected)
    for ours, theirs in zip(shared, grads, strict=True):
        assert_near(ours, theirs, 1e-5)


def test_error_is_that_of_eager_pytorch():
    call = Call(16, 6, 16, queries=700)
    expected = formula(call)
    errors = {name: (call.run(name).double() - expected).norm() for name in ("reference", "cpu")}
    assert errors["cpu"] <= 2 * errors["reference"]


@pytest.mark.parametrize("backend", FORMS)
def test_hostile_input(backend):
    """Test no queries, no images, one latent, strides; NaN in one latent reaches only the queries that read it."""
    check_empty(Call, backend)
    call, strided = Call(), Call()
    strided.feat = call.feat.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    strided.coord = torch.stack((call.coord, call.coord), -1)[..., 0]
    strided.cell = call.cell.flip(1).flip(1).mT.contiguous().mT
    strided.weights = [weight.T.contiguous().T for weight in call.weights]
    strided.biases = [torch.stack((bias, bias), 1)[:, 0] for bias in call.biases]
    torch.testing.assert_close(strided.run(backend), call.run(backend), rtol=0, atol=1e-6)
    index, _, _ = functional.corner_plan(call.coord, (5, 7))
    reads = ((index == torch.tensor([2, 3])).all(-1)).any(-1)
    assert 0 < reads[1].sum() < 83
    for where in (0, 14, 15, 29, 30, 36):  # the first and the last scale, shift and feature
        call = Call()
        clean = call.run(backend)
        call.feat[1, where, 2, 3] = math.nan
        out = call.run(backend)
        assert torch.equal(out[1].isnan().all(-1), reads[1])
        assert same_bits(out[~out.isnan()], clean[~out.isnan()])
        assert out[0].isfinite().all()
    call = Call()
    call.feat[:, :15] = math.inf
    assert same_bits(call.run(backend).isfinite(), call.run("reference").isfinite())


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("network", [NETWORKS[0], NETWORKS[1], NETWORKS[3]], ids=str)
def test_autocast(backend, network):
    """Test odd widths, too: bfloat16 is multiplied in pairs. Gradients have at most 3 times the plain form's error."""
    call = Call(*network, queries=300)
    expected, wanted = call.gradients("reference")
    with torch.autocast("cpu", torch.bfloat16):
        results = {name: call.gradients(name) for name in {backend, "reference"}}
    out, grads = results[backend]
    assert out.dtype == torch.float32
    assert_near(out, expected, 0.05)
    for ours, plain, theirs in zip(grads, results["reference"][1], wanted, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 3 * (plain - theirs).norm() + 1e-3 * theirs.norm()


def test_bfloat16_tensors():
    call = Call(16, 6, 16)
    expected = formula(call)
    call.feat = call.feat.bfloat16()
    call.weights, call.biases = ([t.bfloat16() for t in each] for each in (call.weights, call.biases))
    out, grads = call.gradients("auto")
    assert {out.dtype, *(grad.dtype for grad in grads)} == {torch.bfloat16}
    assert_near(out.double(), expected, 0.1)


def test_compiled():
    """One graph without breaks for every size, forward and backward."""
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(feat, coord, cell, weights, biases):
        return functional.modulated_decode(feat, coord, cell, weights, biases, backend="cpu")

    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape, queries in (((8, 9), 83), ((10, 12), 200)):  # no width is a size of the map
            call = Call(shape=shape, queries=queries)
            expected, wanted = call.gradients("cpu")
            out = compiled(call.feat, call.coord, call.cell, call.weights, call.biases)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
            leaves = [call.feat, *call.weights, *call.biases]
            for ours, theirs in zip(torch.autograd.grad((out * call.weigh).sum(), leaves), wanted, strict=True):
                assert_near(ours, theirs, 1e-5)


@pytest.mark.parametrize("network", NETWORKS[:2], ids=str)
def test_operations_are_counted(network):
    call = Call(*network)
    call.gradients("cpu")  # makes the leaves
    counts = [counted(lambda name=name: call.run(name, recompute=True), call.feat) for name in ("cpu", "torch")]
    assert counts[0] == pytest.approx(counts[1], rel=0.02)
