"""Run torch.library.opcheck, torch.compile and torch.export on every operator on Triton, and test refusals."""

import pytest
import torch

from liif_fast import LIIFDecoder, functional
from liif_fast.backends import attention, cpu, factorised, reference, triton
from liif_fast.call import Switches

from ..ops import test_gradients
from ..ops.support import Problem, make_layers, make_transformer, same_bits
from ..ops.test_operators import opcheck

ops = torch.ops.liif_fast
triton.run_on_cpu()


def samples():
    """Operator name -> tuples of arguments."""
    for ensemble, cell_decode in ((True, True), (False, False)):
        problem = Problem(batch=1, channels=2, shape=(3, 4), queries=3, hidden=(9, 8))
        feat, coord, cell, weights, biases = problem.arguments
        terms, corners, cell = (4 if cell_decode else 2), (4 if ensemble else 1), cell if cell_decode else None
        weights[0] = weights[0][:, : 18 + terms].contiguous()
        p, cells, grid = torch.randn(1, 3, 4, 9), None if cell is None else cell[:, 0], (3, 4, 0, 0, 6, 5, 1, 2, 2, 3)
        yield "project", (feat, weights[0], biases[0], True, (1, 2, 2, 2))
        for wanted in ((True, True, True), (False, True, False), (True, False, False)):
            yield "project_backward", (torch.randn(1, 2, 2, 9), feat, weights[0], True, 1, 2, wanted)
        for keep in (0, 2):
            saved = torch.randn(2, keep * corners, 9)
            yield "decode", (p, coord, cell, weights, biases, ensemble, saved.shape)
            yield "render", (p, cells, weights, biases, ensemble, grid, (), saved.shape)
            grad = torch.randn(1, 3, 3)
            wanted = [True] * 6 if keep else [False] * 6
            yield "decode_backward", (grad, p, coord, cell, weights, biases, saved, ensemble, [*wanted, True])
            grad = torch.randn(1, 3, 2, 3)
            yield "render_backward", (grad, p, cells, weights, biases, saved, ensemble, grid, [True] * 6)
        x = torch.randn(1, 3, corners, 18 + terms)
        yield "gather_corners", (feat, coord, cell, True, ensemble)
        yield "gather_corners_backward", (x, coord, 2, 3, 4, True, ensemble)
        x = x.flatten(0, 2)
        yield "fused_mlp", (x, weights, biases, (2, 2, 9))
        wanted = [True, False] * 3 + [ensemble]
        yield "fused_mlp_backward", (torch.randn(len(x), 3), x, weights, biases, torch.randn(2, 2, 9), wanted)
    p, coord, cell, phase = torch.randn(2, 3, 4, 12), torch.rand(2, 3, 2), torch.rand(2, 3, 2), torch.randn(3, 2)
    for rows in (0, 8):
        saved, given = torch.randn(2, rows, 9), (p, coord, cell, phase, *make_layers((6, 9, 8, 3)))
        yield "fourier_decode", (*given, (0, 0, 3, 4), saved.shape)
        yield "fourier_decode_backward", (torch.randn(2, 3, 3), *given, saved, [True] * 8 + [rows > 0])

    for depth, planned in ((0, False), (1, False), (1, True)):
        net = make_transformer(16, depth, 4)
        first, layers = attention.split(torch.randn(1, 16, 3, 5), torch.randn(1, 2, 3, 5), net), attention.folded(net)
        coord = torch.rand(1, 7, 2) * 2 - 1
        places = list(attention.plan(coord, 3, 5, False)[:2]) if planned else [coord]
        rest = first.table, first.by_rel, layers, places, (1, 3, 5), False, 4
        yield "attend_corners", rest
        wanted = [not planned] + [True] * (1 + len(layers))
        yield "attend_corners_backward", (torch.randn(1, 7, 2), torch.randn(1, 7, 4), *rest, wanted)


SAMPLES = list(samples())


def test_every_operator_has_a_sample():
    assert set(triton.OPERATORS) == {name for name, _ in SAMPLES}


@pytest.mark.parametrize("name", sorted({name for name, _ in SAMPLES}))
def test_opcheck(name):
    opcheck(getattr(ops, name).default, [(*arguments, triton.NAME) for each, arguments in SAMPLES if each == name])


@pytest.mark.parametrize(("name", "arguments"), list(dict(SAMPLES).items()))
def test_autocast_rounds_nothing_within_an_operator(name, arguments):
    """As in a backward pass that is called within autocast: its products have the dtype of their operands."""

    def run():
        found = getattr(ops, name).default(*arguments, triton.NAME)
        return [found] if isinstance(found, torch.Tensor) else found

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(same_bits, run(), expected))


def test_compile():
    """One graph for every size, training included."""

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def loss(feat, coord, cell, weights, biases):
        out = functional.liif_decode(feat, coord, cell, weights, biases, backend="triton")
        image = functional.liif_render(feat, (feat.shape[2] + 1, 5), weights, biases, backend="triton")
        x, weight = functional.gather_corners(feat, coord, cell, backend="triton")
        rows = functional.fused_mlp(x, weights, biases, backend="triton")
        return out.square().sum() + image.sin().sum() + (weight.unsqueeze(3) * rows).cos().sum()

    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed, (shape, queries) in enumerate([((5, 4), 7), ((7, 6), 13)]):
            problem = Problem(seed, batch=1, channels=2, shape=shape, queries=queries, hidden=(9, 8)).requires_grad()
            compiled = loss(*problem.arguments)
            eager = loss._torchdynamo_orig_callable(*problem.arguments)
            torch.testing.assert_close(compiled, eager)
            pairs = (torch.autograd.grad(out, problem.leaves) for out in (compiled, eager))
            for a, b in zip(*pairs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_export():
    """An exported program has the operators as nodes and accepts other sizes."""
    problem = Problem(channels=2, hidden=(9, 8), queries=5, shape=(4, 3))
    module = LIIFDecoder(2, hidden_list=(9, 8), backend="triton").eval()
    sizes = {name: torch.export.Dim(name, min=2, max=8192) for name in ("height", "width", "queries")}
    dynamic = {
        "feat": {2: sizes["height"], 3: sizes["width"]}, "coord": {1: sizes["queries"]}, "cell": {1: sizes["queries"]}
    }  # fmt: skip
    program = torch.export.export(module, (problem.feat, problem.coord, problem.cell), dynamic_shapes=dynamic)
    called = {(node.target, node.args[-1]) for node in program.graph.nodes if node.op == "call_function"}
    assert {(ops.project.default, "triton"), (ops.decode.default, "triton")} <= called
    for shape, queries in (((4, 3), 5), ((6, 7), 11)):
        other = Problem(seed=1, channels=2, hidden=(9, 8), queries=queries, shape=shape)
        arguments = other.feat, other.coord, other.cell
        assert torch.equal(program.module()(*arguments), module(*arguments))


def answer(problem, name="triton", **options):
    answers = functional.explain(*problem.arguments, **options).answers
    return next((can, reason) for each, can, reason in answers if each == name)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hidden": (257,)}, "up to 256 wide, got 257"),
        ({"hidden": ()}, "needs a hidden layer"),
        ({"out_dim": 65}, "up to 64 outputs, got 65"),
        ({"dtype": torch.float64}, "got torch.float64"),
    ],
)
def test_what_is_refused(options, reason):
    problem = Problem(**options)
    can, answered = answer(problem)
    assert not can
    assert reason in answered
    with pytest.raises(RuntimeError, match=reason):
        functional.liif_decode(*problem.arguments, backend="triton")


def test_only_by_name():
    """auto refuses Triton until `liif-fast qualify` has passed on this machine, and `explain` says so."""
    problem = Problem()
    can, reason = answer(problem)
    assert can
    assert "off in auto until `liif-fast qualify` has passed it here" in reason
    assert functional.explain(*problem.arguments).chosen != "triton"


@pytest.mark.parametrize("backend", [reference, factorised, cpu, triton], ids=lambda backend: backend.NAME)
def test_every_function_takes_the_names_of_the_protocol(backend):
    if backend is cpu and cpu._missing:
        pytest.skip("the C++ kernels are not built")
    problem = Problem(batch=1, channels=2, shape=(3, 4), queries=3, hidden=(8,))
    x, layers = torch.randn(2, 4), dict(zip(("weights", "biases"), make_layers((4, 8, 3)), strict=True))
    assert backend.fused_mlp(x=x, **layers, recompute=None).shape == (2, 3)
    named = dict(zip(("feat", "coord", "cell", "weights", "biases"), problem.arguments, strict=True))
    named["switches"] = Switches()
    assert backend.decode(**named, recompute=True).shape == (1, 3, 3)
    del named["weights"], named["biases"]
    assert backend.gather_corners(**named)[1].shape == (1, 3, 4)


def test_cpu_tensors_need_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    can, reason = answer(Problem())
    assert not can
    assert "TRITON_INTERPRET=1" in reason


def test_no_second_derivative():
    problem = Problem(queries=3, shape=(3, 3), hidden=(9, 8)).requires_grad()
    out = functional.liif_decode(*problem.arguments, backend="triton")
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.sum(), problem.feat, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nothing_to_do(dtype):
    for batch, queries in ((2, 0), (0, 5)):
        problem = Problem(batch=batch, queries=queries, hidden=(9, 8), dtype=dtype).requires_grad()
        feat, _, _, weights, biases = problem.arguments
        out = functional.liif_decode(*problem.arguments, backend="triton")
        image = functional.liif_render(feat, (9, 9), weights, biases, region=(2, 3, 0, 4), backend="triton")
        x, _ = functional.gather_corners(*problem.arguments[:3], backend="triton")
        rows = functional.fused_mlp(x, weights, biases, backend="triton")
        assert out.shape == (batch, queries, 3)
        assert image.shape == (batch, 3, 0, 4)
        for grad in torch.autograd.grad(out.sum() + image.sum() + rows.sum(), problem.leaves):
            assert not grad.any()


def test_a_bad_latent_reaches_its_readers_only():
    """A NaN passes every ReLU and reaches only the queries that read it, forward and backward."""
    problem = Problem(batch=1, shape=(6, 5), queries=60, hidden=(9, 8))
    feat, coord, cell, weights, biases = problem.arguments
    clean = functional.liif_decode(*problem.arguments, backend="triton")
    bad = feat.clone()
    bad[0, 1, 1, 1] = float("nan")
    bad.requires_grad_()
    out = functional.liif_decode(bad, coord, cell, weights, biases, backend="triton")
    index, _, _ = functional.corner_plan(coord, (6, 5))
    read = ((index - 1).abs() <= 1).all(-1).any(-1)
    assert read.any()
    assert not read.all()
    assert out[read].isnan().all()
    torch.testing.assert_close(out[~read], clean[~read], rtol=1e-6, atol=1e-6)
    (grad,) = torch.autograd.grad(out[~read].sum(), bad)
    assert grad.isfinite().all()


def test_coord_and_cell():
    test_gradients.test_coord_and_cell_of_the_kernels("triton", Switches(), (3, 4), (9,), None)
