"""torch.library.opcheck of every operator that the package defines: schema, fake, autograd, traced with sizes free."""

import pytest
import torch

from liif_fast import functional
from liif_fast.ops import attend, resize, sm90
from liif_fast.ops import decode as decode_ops

from .support import Problem, make_layers

ops = torch.ops.liif_fast
assert functional and attend and decode_ops and resize and sm90  # importing them defines the operators


def samples():
    """Operator name -> tuples of arguments."""
    for ensemble in (True, False):
        for cell_decode in (True, False):
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
            yield "project", (feat, weights[0], biases[0], True, 1, 2, 3, 4)
            yield "project", (feat, weights[0], biases[0], False, 0, 0, 5, 6)
            for keep in (0, 5, 14):
                yield "decode", (p, coord, cell, weights, biases, ensemble, keep)
                window = (5, 6, 0, 0, 9, 10, 2, 3, 4, 5)
                yield "render", (p, None if cell is None else cell[:, 0], weights, biases, ensemble, *window, keep)
            yield "decode_direct", (feat, coord, cell, weights, biases, True, ensemble)
            grad, saved = torch.randn(2, 7, 3), torch.randn(rows, 8)
            for kept in (saved, saved[: rows // 2], saved[:0]):
                yield "decode_backward", (grad, p, coord, cell, weights, biases, kept, ensemble)
            grad, cells = torch.randn(2, 3, 4, 5), None if cell is None else cell[:, 0]
            saved = torch.randn(2 * 20 * rows // 14, 8)
            for kept in (saved, saved[:0]):
                yield "render_backward", (grad, p, cells, weights, biases, kept, ensemble, *window)
            yield "gather_corners", (feat, coord, cell, True, ensemble)
            yield "gather_corners_backward", (torch.randn(2, 7, rows // 14, 27 + terms), coord, 3, 5, 6, True, ensemble)
    weights, biases = make_layers((4, 6, 5, 2))
    for keep in (0, 5, 11):
        yield "mlp", (torch.randn(11, 4), weights, biases, keep)
    for keep in (0, 5, 11):
        yield "mlp_backward", (torch.randn(11, 2), torch.randn(11, 4), weights, biases, torch.randn(keep, 11))
    weights, biases = make_layers((4, 5))  # one layer: nothing hidden to save
    yield "mlp", (torch.randn(11, 4), weights, biases, 4)
    yield "mlp_backward", (torch.randn(11, 5), torch.randn(11, 4), weights, biases, torch.randn(0, 0))
    feat, kernel = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3)
    yield "convolve", (feat, kernel, torch.randn(4))
    yield "convolve", (feat.clone().requires_grad_(), kernel, torch.randn(4))
    yield "convolve_backward", (torch.randn(2, 4, 5, 6), feat, kernel, [True, False, True])
    weights, biases = make_layers((7, 256, 256, 3))
    yield "pack_sm90", (weights, biases, 4, False)
    axes = (torch.tensor([0, 2]), torch.ones(2, 3).double(), torch.tensor([1, 0, 3]), torch.ones(3, 2).double())
    yield "bicubic_resize", (torch.randint(0, 256, (5, 4, 3), dtype=torch.uint8), *axes)
    yield from attend_samples()
    yield "cpu_isa", ()


def attend_samples():
    """No block, one, and two; the table's rows are the wider for a block."""
    for depth, width in ((0, 6), (1, 6), (2, 4)):
        linear = 3 * width if depth else 1
        table = torch.randn(20, linear + (width if depth else 0) + 3)
        corners = (torch.randint(0, 20, (9, 4)), torch.randn(9, 4, 2), torch.randn(20, 2))
        vector, square = torch.randn(width), torch.randn(width, width)
        block = [square, vector, vector, vector, square, vector, square, vector]
        later = [vector, vector, torch.randn(3 * width, width), *block]
        head = [vector, vector, torch.randn(1, width), torch.randn(1)]
        parameters = [*block, *(later if depth > 1 else ()), *head] if depth else []
        factors = (torch.randn(table.shape[1] - 3, 2), torch.randn(2, 2), torch.randn(linear))
        arguments = (table, *corners, *factors, parameters, width, 2)
        yield "attend", arguments
        yield "attend_backward", (torch.randn(9, 2), torch.randn(9, 4), torch.rand(9, 4), *arguments)


SAMPLES = list(samples())


def test_every_operator_has_a_sample():
    defined = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("liif_fast::")}
    triton = {name for name in defined if name.startswith("triton_")}  # tests/kernels/test_operators.py has theirs
    hopper = {"decode_sm90", "render_sm90"}  # without a CPU implementation; tests/backends/test_cuda.py has their fakes
    assert defined - triton - hopper == {name for name, _ in SAMPLES}


@pytest.mark.parametrize("name", sorted({name for name, _ in SAMPLES}))
def test_opcheck(name):
    for each, arguments in SAMPLES:
        if each == name:
            checks = {"test_utils": "test_schema"} if name == "cpu_isa" else {}  # a string cannot be traced
            torch.library.opcheck(getattr(ops, name).default, arguments, **checks)
