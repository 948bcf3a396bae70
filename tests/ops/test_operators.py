"""Run torch.library.opcheck on every operator of the package: schema, fake, autograd, tracing with free sizes."""

import pytest
import torch

from liif_fast import functional
from liif_fast.backends import attention
from liif_fast.backends.cpu import BFLOAT16
from liif_fast.ops import attend, conv3x3, fourier, modulated, resize, sm90
from liif_fast.ops import decode as decode_ops

from .support import Problem, make_layers, make_transformer

ops = torch.ops.liif_fast
# imported to define the operators
assert functional and attend and conv3x3 and decode_ops and fourier and modulated and resize and sm90


def samples():
    """Return tuples of arguments by the operator's name."""
    for ensemble, cell_decode in ((True, True), (False, False)):
        problem = Problem(channels=3, shape=(5, 6), queries=7, hidden=(9, 8))
        problem.switches = problem.switches._replace(local_ensemble=ensemble, cell_decode=cell_decode)
        feat, coord, cell, weights, biases = problem.arguments
        terms, cell, rows = 2, None, 2 * 7 * (4 if ensemble else 1)
        if cell_decode:
            terms, cell = 4, problem.cell
        weights[0] = weights[0][:, : 27 + terms].contiguous()
        p = torch.randn(2, 5, 6, 9)
        yield "corner_plan", (coord, 5, 6, ensemble)
        yield "corner_plan", (coord.clone().requires_grad_(), 5, 6, ensemble)
        yield "centres", (torch.arange(7), 7, torch.float32)
        yield "project", (feat, weights[0], biases[0], True, (1, 2, 3, 4), None)
        yield "project", (feat, weights[0], biases[0], False, (0, 0, 5, 6), None)
        for wanted in ((True, True, True), (False, True, False), (True, False, False)):
            grad = torch.randn(2, 3, 4, 9)
            yield "project_backward", (grad, feat, weights[0], True, 1, 2, wanted, None)
        for keep in (0, 5, 14):
            kept = (keep * rows // 14, 8)
            yield "decode", (p, coord, cell, weights, biases, ensemble, kept, None)
            grid = (5, 6, 0, 0, 9, 10, 2, 3, 4, 5)
            cells = None if cell is None else cell[:, 0]
            yield "render", (p, cells, weights, biases, ensemble, grid, (), kept, None)
            yield "render", (p, cells, weights, biases, ensemble, grid, (0.3, -0.9, 0.2, -0.8), kept, None)
        yield "decode_direct", (feat, coord, cell, weights, biases, True, ensemble)
        grad, saved = torch.randn(2, 7, 3), torch.randn(rows, 8)
        for kept in (saved, saved[: rows // 2], saved[:0]):
            for wanted in ([True] * 7, [False] * 6 + [True]):
                yield "decode_backward", (grad, p, coord, cell, weights, biases, kept, ensemble, wanted, None)
        grad = torch.randn(2, 3, 4, 5)
        saved = torch.randn(2 * 20 * rows // 14, 8)
        for kept in (saved, saved[:0]):
            yield "render_backward", (grad, p, cells, weights, biases, kept, ensemble, grid, [True] * 6, None)
        yield "gather_corners", (feat, coord, cell, True, ensemble, None)
        grad = torch.randn(2, 7, rows // 14, 27 + terms)
        yield "gather_corners_backward", (grad, coord, 3, 5, 6, True, ensemble, None)
    weights, biases = make_layers((4, 6, 5, 2))
    for keep in (0, 5, 11):
        yield "fused_mlp", (torch.randn(11, 4), weights, biases, (keep, 11), None)
    for keep in (0, 5, 11):
        saved, wanted = torch.randn(keep, 11), [True, False] * 3 + [keep > 0]
        yield "fused_mlp_backward", (torch.randn(11, 2), torch.randn(11, 4), weights, biases, saved, wanted, None)
    weights, biases = make_layers((4, 5))  # one layer has no hidden activations to save
    yield "fused_mlp", (torch.randn(11, 4), weights, biases, (4, 0), None)
    rows = torch.randn(11, 5), torch.randn(11, 4)
    yield "fused_mlp_backward", (*rows, weights, biases, torch.randn(0, 0), [True] * 3, None)
    feat, kernel = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3)
    yield "convolve", (feat, kernel, torch.randn(4))
    yield "convolve", (feat.clone().requires_grad_(), kernel, torch.randn(4))
    yield "convolve_backward", (torch.randn(2, 4, 5, 6), feat, kernel, [True, False, True])
    feat, out = (torch.randn(2, size, 5, 6).contiguous(memory_format=torch.channels_last) for size in (3, 4))
    yield "conv3x3", (feat, kernel, torch.randn(4), None, False, True)
    yield "conv3x3", (feat, kernel, None, out, True, False)
    for wanted in ([True, True, True], [False, False, True], [True, False, False]):
        yield "conv3x3_backward", (out, feat, kernel, None, True, wanted, True)
        yield "conv3x3_backward", (out, feat, kernel, feat, False, wanted, False)
    weights, biases = make_layers((7, 256, 256, 3))
    yield "pack_sm90", (weights, biases, 4, False)
    axes = (torch.tensor([0, 2]), torch.ones(2, 3).double(), torch.tensor([1, 0, 3]), torch.ones(3, 2).double())
    for depth, heads in ((0, 1), (1, 2), (2, 4)):
        yield from attend_samples(depth, heads)
    yield from fourier_samples(torch.float32)
    yield from modulated_samples(torch.float32)
    yield "bicubic_resize", (torch.randint(0, 256, (5, 4, 3), dtype=torch.uint8), *axes)
    yield "cpu_isa", ()
    yield "cpu_has_bfloat16", ()
    yield "cpu_missing_amx", ()
    yield "cpu_use_amx", (False,)
    if BFLOAT16:
        yield from low_samples()
        yield from fourier_samples(torch.bfloat16)
        yield from modulated_samples(torch.bfloat16)


def attend_samples(depth, heads):
    """Return a transformer over the corners as liif_fast.backends.attention prepares it; 4 channels, 2 values."""
    transformer = make_transformer(4, depth, heads, hidden=5)
    first = attention.split(torch.randn(2, 4, 3, 5), torch.randn(2, 2, 3, 5), transformer)
    table, by_rel, layers = first.table, first.by_rel, attention.folded(transformer)
    coord = torch.rand(2, 7, 2) * 2 - 1
    for queries, wrap in (([coord], False), ([coord], True), (list(attention.plan(coord[:1], 3, 5, True)[:2]), False)):
        rest = (table, by_rel, layers, queries, (2, 3, 5), wrap, heads, None)
        yield "attend_corners", rest
        wanted = [not wrap] + [True] * (1 + len(layers))
        yield "attend_corners_backward", (torch.randn(2, 7, 2), torch.randn(2, 7, 4), *rest[:-1], wanted, None)


def fourier_samples(dtype):
    """Return LTE's decoder with 6 amplitudes on a whole map and on a part; products in `dtype`, the rest in float32."""
    coord, cell, phase = torch.rand(2, 7, 2) * 0.5 - 1, torch.rand(2, 7, 2), torch.randn(3, 2)
    p, layers = torch.randn(2, 5, 6, 12), make_layers((6, 8, 5, 3), dtype=dtype)
    for rows in (0, 12):
        saved = torch.randn(rows, 13).to(dtype)
        for place in ((0, 0, 5, 6), (0, 0, 11, 13)):
            yield "fourier_decode", (p, coord, cell, phase, *layers, place, saved.shape, None)
        rest = p, coord, cell, phase, *layers, saved, [True] * 8 + [rows > 0]
        yield "fourier_decode_backward", (torch.randn(2, 7, 3), *rest, None)


def modulated_samples(dtype):
    """Return LM-LIIF's decoder with 2 layers of 5 neurons, 3 features; products in `dtype`, the rest in float32."""
    coord, p = torch.rand(2, 7, 2) * 0.5 - 1, torch.randn(2, 5, 6, 23)
    for cell, ensemble in ((torch.rand(2, 7, 2), True), (None, False)):
        layers = make_layers((5 if cell is None else 7, 5, 5, 3), dtype=dtype)
        yield "modulated_decode", (p, coord, cell, *layers, ensemble, (0, 0, 5, 6), None)
        yield "modulated_decode", (p, coord, cell, *layers, ensemble, (0, 0, 11, 13), None)
        for wanted in ([True] * 8, [False] * 7 + [True]):
            yield "modulated_decode_backward", (torch.randn(2, 7, 3), p, coord, cell, *layers, ensemble, wanted, None)


def low_samples():
    """Return samples in bfloat16, whose outputs and gradients, except those of x, are float32."""
    low = torch.bfloat16
    feat, coord, cell, weights, biases = Problem(
        channels=3, shape=(5, 6), queries=7, hidden=(9, 8), dtype=low
    ).arguments
    p, grid = torch.randn(2, 5, 6, 9).to(low), (5, 6, 0, 0, 9, 10, 2, 3, 4, 5)
    layers = (weights, biases)
    yield "project", (feat, weights[0], biases[0], True, (1, 2, 3, 4), None)
    yield "project_backward", (torch.randn(2, 3, 4, 9), feat, weights[0], True, 1, 2, (True, True, True), None)
    yield "decode", (p, coord, cell, *layers, True, (20, 8), None)
    yield "render", (p, cell[:, 0], *layers, True, grid, (), (0, 8), None)
    yield "decode_direct", (feat, coord, cell, *layers, True, True)
    yield (
        "decode_backward",
        (torch.randn(2, 7, 3), p, coord, cell, *layers, torch.randn(28, 8).to(low), True, [True] * 7, None),
    )
    kept = torch.randn(0, 8).to(low)
    yield "render_backward", (torch.randn(2, 3, 4, 5), p, cell[:, 0], *layers, kept, True, grid, [True] * 6, None)
    layers = make_layers((5, 6, 3, 2), dtype=low)
    x = torch.randn(11, 5).to(low)
    yield "fused_mlp", (x, *layers, (5, 9), None)
    yield "fused_mlp_backward", (torch.randn(11, 2), x, *layers, torch.randn(5, 9).to(low), [True] * 7, None)


SAMPLES = list(samples())


def test_every_operator_has_a_sample():
    defined = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("liif_fast::")}
    hopper = {
        "decode_sm90",
        "render_sm90",
    }  # they have no CPU implementation; tests/backends/test_cuda.py tests their fakes
    assert defined - hopper == {name for name, _ in SAMPLES}


QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")


def kind(argument):
    """Return what tracing sees of an argument; sizes are free."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.requires_grad
    return argument if isinstance(argument, bool) else type(argument)


def opcheck(operator, samples):
    """Check all samples, but trace only those that differ in more than sizes, because tracing is slow."""
    traced = set()
    for arguments in samples:
        kinds = tuple(map(kind, arguments))
        checks = {"test_utils": QUICK} if kinds in traced else {}
        if all(isinstance(each, bool) for each in arguments):  # without a tensor nothing can be traced
            checks = {"test_utils": "test_schema"}
        torch.library.opcheck(operator, arguments, **checks)
        traced.add(kinds)


@pytest.mark.parametrize("name", sorted({name for name, _ in SAMPLES}))
def test_opcheck(name):
    opcheck(getattr(ops, name).default, [arguments for each, arguments in SAMPLES if each == name])
