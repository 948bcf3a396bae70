"""Compare fourier_decode of every backend with the plain form: widths, depths, maps, gradients, hostile input."""

import math

import pytest
import torch
import torch.nn.functional as F

from liif_fast import functional, make_cell, make_coord

from .relatives import check_chunks, check_empty, check_torch_places
from .support import assert_near, make_layers

FORMS = ["reference", "torch", "cpu"]
# amplitudes, widths of the network
NETWORKS = [(32, (32, 32, 3)), (6, (5, 7, 4)), (2, (1, 2)), (20, (3,)), (36, (40, 36, 40, 1))]


class Call:
    """Hold a call of fourier_decode with every tensor as a leaf."""

    def __init__(self, width=6, widths=(5, 7, 4), shape=(5, 7), batch=2, queries=83, dtype=torch.float32):
        torch.manual_seed(0)
        self.feat = torch.randn(batch, 2 * width, *shape, dtype=dtype)
        self.coord = torch.rand(batch, queries, 2) * 2.4 - 1.2
        self.cell = torch.rand(batch, queries, 2) * 0.3
        self.phase = torch.randn(width // 2, 2).to(dtype)
        self.weights, self.biases = make_layers((width, *widths), dtype=dtype)
        self.weigh = torch.randn(batch, queries, widths[-1]).to(dtype)

    @property
    def leaves(self):
        return [self.feat, self.phase, *self.weights, *self.biases]

    def to(self, *target):
        """Move or convert everything, except the dtype of coord and cell, and return self."""
        for name in ("feat", "phase", "weigh"):
            setattr(self, name, getattr(self, name).to(*target))
        self.weights, self.biases = ([each.to(*target) for each in layers] for layers in (self.weights, self.biases))
        self.coord, self.cell = (each.to(self.feat.device) for each in (self.coord, self.cell))
        return self

    def requires_grad(self):
        for leaf in self.leaves:
            leaf.requires_grad_()
        return self

    def run(self, backend, **options):
        return functional.fourier_decode(
            self.feat, self.coord, self.cell, self.phase, self.weights, self.biases, backend=backend, **options
        )

    def gradients(self, backend, **options):
        out = self.requires_grad().run(backend, **options)
        return out.detach(), torch.autograd.grad((out * self.weigh).sum(), self.leaves)


def formula(call):
    """Compute the definition, on the corner plan, in float64."""
    index, rel, weight = functional.corner_plan(call.coord, call.feat.shape[2:])
    image = torch.arange(len(call.feat)).view(-1, 1, 1)
    rows = call.feat.double()[image, :, index[..., 0], index[..., 1]]
    amplitude, frequency = rows.chunk(2, -1)
    cell = (call.cell * torch.tensor(call.feat.shape[2:])).double() @ call.phase.double().T
    angle = (
        frequency[..., 0::2] * rel[..., :1].double() + frequency[..., 1::2] * rel[..., 1:].double() + cell[:, :, None]
    )
    x = amplitude * torch.cat((torch.cos(math.pi * angle), torch.sin(math.pi * angle)), -1)
    for number, (w, b) in enumerate(zip(call.weights, call.biases, strict=True)):
        x = F.linear(F.relu(x) if number else x, w.double(), b.double())
    return (x * weight.double()[..., None]).sum(2)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_every_form_is_the_formula(network, backend, dtype, tolerance):
    call = Call(*network, dtype=dtype)
    expected = formula(call)
    assert_near(call.run(backend).double(), expected, tolerance)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("backend", FORMS[1:])
@pytest.mark.parametrize("recompute", [None, True, False])
def test_gradients(network, backend, recompute):
    call = Call(*network)
    out, grads = call.gradients(backend, recompute=recompute)
    expected, wanted = call.gradients("reference")
    assert_near(out, expected, 1e-5)
    least = 0.1 * max(theirs.abs().max().item() for theirs in wanted)  # sums of signs cancel
    for ours, theirs in zip(grads, wanted, strict=True):
        assert_near(ours, theirs, 1e-4, least)


def test_gradients_of_the_places():
    check_torch_places(Call(dtype=torch.float64))


def check_places(backend, dtype=torch.float32, tolerance=1e-5, **options):
    """Compare the gradients of coord and cell with torch's."""
    call = Call(32, (32, 24, 3), queries=options.pop("queries", 83), dtype=dtype)
    places = [each.requires_grad_() for each in (call.coord, call.cell)]
    for each in (call.feat, *call.weights):
        each.requires_grad_()
    names = (backend, "torch")
    grads = [torch.autograd.grad((call.run(name, **options) * call.weigh).sum(), places) for name in names]
    for ours, theirs in zip(*grads, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("recompute", [True, False])
def test_gradients_of_the_places_in_the_kernels(dtype, tolerance, recompute):
    check_places("cpu", dtype, tolerance, recompute=recompute)


@pytest.mark.parametrize("backend", FORMS[1:])
def test_chunks_change_nothing(backend, monkeypatch):
    check_chunks(Call(), backend, monkeypatch)


@pytest.mark.parametrize("backend", FORMS)
def test_a_grid_and_a_part_of_the_map(backend):
    call, size = Call(shape=(40, 9)), (61, 20)
    network = (call.phase, call.weights, call.biases)
    coord, cell = (make(size).expand(2, -1, 2) for make in (make_coord, make_cell))
    expected = functional.fourier_decode(call.feat, coord, cell, *network, backend=backend).mT.unflatten(2, size)
    region = (30, 3, 11, 12)
    got = functional.fourier_render(call.feat, size, *network, region=region, backend=backend)
    torch.testing.assert_close(got, expected[:, :, 30:41, 3:15], rtol=0, atol=1e-6)
    top, left, rows, columns = functional.latents_read(size, region, (40, 9), feat_unfold=False)
    part, place = call.feat[:, :, top : top + rows, left : left + columns], (top, left, 40, 9)
    again = functional.fourier_render(part, size, *network, region=region, backend=backend, place=place)
    assert rows < 40
    assert torch.equal(again, got)
    with pytest.raises(ValueError, match="must hold the latents that the region reads"):
        functional.fourier_render(part[:, :, 1:], size, *network, region=region, place=(top + 1, left, 40, 9))


def test_the_operator_reads_nothing_outside_of_a_part():
    """`fourier_render` has checked its part; a direct call is checked by the operator."""
    call = Call(shape=(4, 6))
    p, place = call.feat.permute(0, 2, 3, 1).contiguous(), (0, 0, 9, 6)
    arguments = (p, call.coord, call.cell, call.phase, call.weights, call.biases, place, (0, 0))
    with pytest.raises(RuntimeError, match="outside of p's part of the map"):
        torch.ops.liif_fast.fourier_decode(*arguments, None)


@pytest.mark.parametrize("low", [False, True])
def test_bits_do_not_depend_on_threads_or_neighbours(threads, low):
    """This holds in bfloat16, too, if the processor has it; few queries read weights that many pack."""
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        call = Call(32, (32, 32, 3), queries=300)
        expected, grads = call.gradients("cpu")
        part = Call(32, (32, 32, 3), queries=300)
        for queries in (slice(7, 9), slice(7, 100)):
            part.coord, part.cell = call.coord[:, queries], call.cell[:, queries]
            assert torch.equal(part.run("cpu"), expected[:, queries])
        again, same = call.gradients("cpu")
        assert all(map(torch.equal, (again, *same), (expected, *grads)))
        threads(3)
        assert torch.equal(call.run("cpu"), expected)


@pytest.mark.parametrize("scale", [1.0, 40.0, 3e4])
def test_large_frequencies(scale):
    """The error against float64 on the same angles is at most twice eager PyTorch's."""
    call = Call(32, (32, 3), queries=400)
    call.feat[:, 32:] *= scale
    expected = formula(call)
    errors = {name: (call.run(name).double() - expected).abs().max().item() for name in ("reference", "cpu")}
    assert errors["cpu"] <= 2 * errors["reference"] + 1e-7
    call.feat[:, 40] = math.inf
    assert call.run("cpu").isnan().all()


@pytest.mark.parametrize("backend", FORMS)
def test_hostile_input(backend):
    """Test no queries, no images, one latent, strides; NaN in one latent reaches only the queries that read it."""
    check_empty(Call, backend)
    call = Call()
    strided = Call()
    strided.feat = call.feat.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    strided.coord = torch.stack((call.coord, call.coord), -1)[..., 0]
    assert torch.equal(strided.run(backend), call.run(backend))
    index, _, _ = functional.corner_plan(call.coord, (5, 7))
    reads = ((index == torch.tensor([2, 3])).all(-1)).any(-1)
    assert 0 < reads[1].sum() < 83
    call.feat[1, :, 2, 3] = math.nan
    out = call.run(backend)
    assert torch.equal(out[1].isnan().all(-1), reads[1])
    assert out[0].isfinite().all()


@pytest.mark.parametrize("backend", FORMS)
def test_autocast(backend):
    call = Call()
    expected = formula(call)
    with torch.autocast("cpu", torch.bfloat16):
        out = call.run(backend)
    assert out.dtype == torch.float32
    assert_near(out.double(), expected, 0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feat": torch.zeros(2, 10, 5, 7)}, r"feat must have shape \[B, 2 D, H, W\] with an even D"),
        ({"phase": torch.zeros(2, 2)}, r"phase must have shape \[3, 2\]"),
        ({"cell": None}, "cell must be a tensor"),
        (
            {"weights": [torch.zeros(5, 7)] * 3},
            r"weights\[0\] must have shape \[out, 6\] \(D = 6, half the channels of feat\)",
        ),
    ],
)
def test_bad_arguments(change, message):
    call = Call()
    vars(call).update(change)
    with pytest.raises(ValueError, match=message):
        call.run("auto")


def test_features_are_checked():
    with pytest.raises(ValueError, match=r"x must have shape \[\.\.\., 4 K \+ 4\]"):
        functional.fourier_features(torch.zeros(3, 11), torch.zeros(2, 2))


@pytest.mark.parametrize("backend", FORMS)
def test_it_trains_compiled(backend):
    call = Call()
    out, expected = call.gradients(backend)
    call.run = torch.compile(call.run, fullgraph=True, backend="aot_eager")
    again, grads = call.gradients(backend)
    for ours, right in zip((again, *grads), (out, *expected), strict=True):
        torch.testing.assert_close(ours, right)
