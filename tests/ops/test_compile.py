"""Check promise 6: torch.compile without graph breaks or a recompile for each new size; torch.export; autocast."""

import os
import sysconfig

import pytest
import torch

from liif_fast import LIIFDecoder, functional

from . import oracle
from .support import ALL_SWITCHES, BACKENDS, Problem, same_bits

# One graph for all sizes, or one for many queries and one for few on a large map (see backends.factorises).
SIZES = {
    "many": [((13, 17), 163), ((9, 21), 1000), ((2, 3), 5), ((40, 33), 4097)],
    "few": [((13, 17), 11), ((40, 33), 63), ((9, 30), 7), ((60, 3), 2)],
}
INDUCTOR = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))


@pytest.fixture(autouse=True)
def no_recompiling():
    """Make a second graph for the same function an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def problems(sizes="many", **options):
    return [
        Problem(i, batch=2, shape=shape, queries=queries, **options) for i, (shape, queries) in enumerate(SIZES[sizes])
    ]


def check_close(a, b):
    """A traced backend computes the same sums, possibly in another order (test_random.py's bound)."""
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("switches", "sizes"), [(ALL_SWITCHES[0], "many"), (ALL_SWITCHES[7], "few")])
def test_decode(backend, switches, sizes):
    """Test few queries here; test_training has all switches with many queries."""
    options = {**switches._asdict(), "backend": backend}

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def decode(feat, coord, cell, weights, biases):
        return functional.liif_decode(feat, coord, cell, weights, biases, **options)

    for problem in problems(sizes, switches=switches):
        check_close(decode(*problem.arguments), functional.liif_decode(*problem.arguments, **options))


@pytest.mark.parametrize("backend", BACKENDS)
def test_training(backend):
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def loss(feat, coord, cell, weights, biases):
        return functional.liif_decode(feat, coord, cell, weights, biases, backend=backend).square().sum()

    for problem in problems():
        problem.requires_grad()
        grads = []
        for step in (loss, loss._torchdynamo_orig_callable):
            value = step(*problem.arguments)
            grads.append((value, *torch.autograd.grad(value, problem.leaves)))
        for ours, expected in zip(*grads, strict=True):
            scale = expected.abs().max()
            check_close(ours / scale, expected / scale)


def test_render_of_the_whole():
    """Test auto, because no backend can tell the whole from a window of that size."""

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def render(feat, height, width, weights, biases):
        return functional.liif_render(feat, (height, width), weights, biases)

    for i, problem in enumerate(problems()):
        feat, _, _, weights, biases = problem.arguments
        size = 20 + 7 * i, 31 + 3 * i
        check_close(render(feat, *size, weights, biases), functional.liif_render(feat, size, weights, biases))


@pytest.mark.parametrize("backend", BACKENDS)
def test_render(backend):
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def window(feat, size, region, weights, biases):
        return functional.liif_render(feat, size, weights, biases, region=region, backend=backend)

    for i, problem in enumerate(problems()):
        feat, _, _, weights, biases = problem.arguments
        size, region = (20 + 7 * i, 31 + 3 * i), (3 + i, 2 + i, 7 + 3 * i, 9 + 2 * i)
        whole = functional.liif_render(feat, size, weights, biases, backend=backend)
        top, left, height, width = region
        part = window(feat, size, region, weights, biases)
        check_close(part, whole[:, :, top : top + height, left : left + width])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gather_corners_and_fused_mlp(backend):
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def both(feat, coord, cell, weights, biases):
        x, weight = functional.gather_corners(feat, coord, cell, backend=backend)
        return x, weight, functional.fused_mlp(x, weights, biases, backend=backend)

    for problem in problems():
        feat, coord, cell, weights, biases = problem.arguments
        x, weight, out = both(*problem.arguments)
        expected = oracle.gather(feat, coord, cell, problem.switches)
        assert same_bits(x, expected[0])
        assert same_bits(weight, expected[1])
        check_close(out, functional.fused_mlp(x, weights, biases, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_of_fused_mlp(backend):
    def loss(x, *layers):
        return functional.fused_mlp(x, layers[::2], layers[1::2], backend=backend).square().sum()

    leaves = [torch.randn(shape, requires_grad=True) for shape in ((50, 4), (8, 4), (8,), (3, 8), (3,))]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(*(torch.autograd.grad(f(*leaves), leaves) for f in (compiled, loss)), strict=True):
        check_close(ours / expected.abs().max(), expected / expected.abs().max())


@pytest.mark.skipif(not INDUCTOR, reason="PyTorch's own compiler needs Python.h (python3-dev)")
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in ("reference", "torch")])
def test_inductor_keeps_the_plan(backend):
    """PyTorch's compiler fuses multiply-adds, and at x3 one fused plan operation would show.

    It sees the other backends as single operators.
    """
    problem = Problem(queries=1, shape=(9, 11), batch=1)
    size = 27, 33
    coord = torch.from_numpy(oracle.grid(size))[None]
    cell = torch.tensor([2 / 27, 2 / 33]).expand(coord.shape)
    feat, _, _, weights, biases = problem.arguments

    @torch.compile(fullgraph=True, dynamic=True)
    def decode(feat, coord, cell, weights, biases):
        return functional.liif_decode(feat, coord, cell, weights, biases, backend=backend)

    check_close(
        decode(feat, coord, cell, weights, biases), oracle.decode(feat, coord, cell, weights, biases, problem.switches)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_export(backend):
    problem = Problem(channels=3, hidden=(16, 12))
    module = LIIFDecoder(3, hidden_list=(16, 12), backend=backend).eval()
    height, width, queries = (torch.export.Dim(name, min=2, max=8192) for name in ("height", "width", "queries"))
    dynamic = {"feat": {2: height, 3: width}, "coord": {1: queries}, "cell": {1: queries}}
    program = torch.export.export(module, (problem.feat[:, :3], problem.coord, problem.cell), dynamic_shapes=dynamic)
    for each in problems(channels=3) + problems("few", channels=3):
        arguments = each.feat, each.coord, each.cell
        check_close(program.module()(*arguments), module(*arguments))


def test_export_of_sizes():
    """Symbolic sizes pass the checks of size, region and shape."""

    class Windows(torch.nn.Module):
        def forward(self, feat, like):
            height, width = like.shape
            window = functional.liif_render(feat, (2 * height, width), weights, biases, region=(1, 0, height, width))
            return window, functional.corner_plan(coord, feat.shape[2:])[0]

    feat, coord, _, weights, biases = Problem().arguments
    sides = {0: torch.export.Dim("rows", min=2, max=64), 1: torch.export.Dim("columns", min=2, max=64)}
    latents = {2: torch.export.Dim("height", min=2, max=64), 3: torch.export.Dim("width", min=2, max=64)}
    program = torch.export.export(
        Windows(), (feat, torch.zeros(9, 8)), dynamic_shapes={"feat": latents, "like": sides}
    ).module()
    for sides in ((9, 8), (5, 21)):
        like, features = torch.zeros(sides), feat[:, :, : sides[0]]
        (ours, index), (window, plan) = program(features, like), Windows()(features, like)
        check_close(ours, window)
        assert torch.equal(index, plan)
