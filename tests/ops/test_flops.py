"""FlopCounterMode counts our operators as it counts the factorised form in plain PyTorch; the profiler names them."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from liif_fast import functional
from liif_fast.ops import flops

from .support import ALL_SWITCHES, run_python
from .test_fourier import Call

FUSED = "cpu"


def counted(call, *leaves):
    """Return the operations of the forward pass and of both passes."""
    with FlopCounterMode(display=False) as counter:
        out = call()
        forward = counter.get_total_flops()
        if leaves:
            out.sum().backward()
    return forward, counter.get_total_flops()


def leaf(tensors):
    return [t.detach().requires_grad_() for t in tensors]


def layers(*widths):
    weights = [torch.randn(o, i) / 8 for i, o in itertools.pairwise(widths)]
    return leaf(weights), leaf([torch.zeros(len(w)) for w in weights])


@pytest.mark.parametrize("recompute", [False, True])
def test_fourier_decode(recompute):
    call = Call(64, (64, 64, 64, 3), (5, 7), 1, 300).requires_grad()
    ours, expected = (counted(lambda b=b: call.run(b, recompute=recompute), call.feat) for b in (FUSED, "torch"))
    assert ours == pytest.approx(expected, rel=0.02)  # the operator counts the angles, too


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("switches", ALL_SWITCHES, ids=str)
@pytest.mark.parametrize("hidden", [[64] * 4, [48]], ids=str)
def test_decode_and_render(switches, hidden, recompute):
    unfold, ensemble, with_cell = switches
    torch.manual_seed(0)
    feat = torch.randn(2, 16, 9, 11, requires_grad=True)
    weights, biases = layers(16 * (9 if unfold else 1) + 2 + 2 * with_cell, *hidden, 3)
    coord = torch.rand(2, 700, 2) * 2 - 1
    cell = torch.full((2, 700, 2), 0.1) if with_cell else None
    named = {"feat_unfold": unfold, "local_ensemble": ensemble, "cell_decode": with_cell}
    calls = {
        "decode": lambda backend: functional.liif_decode(
            feat, coord, cell, weights, biases, backend=backend, recompute=recompute, **named
        ),
        "render": lambda backend: functional.liif_render(
            feat, (27, 33), weights, biases, backend=backend, recompute=recompute, **named
        ),
    }
    for name, call in calls.items():
        for ours, expected in zip(
            counted(lambda call=call: call(FUSED), feat), counted(lambda call=call: call("torch"), feat), strict=True
        ):
            assert ours == pytest.approx(expected, rel=0.01), name


def test_few_queries_of_a_large_map():
    """The first layer applies to gathered rows; our backward pass recomputes them, as with `recompute`."""
    feat = torch.randn(1, 16, 90, 110, requires_grad=True)
    weights, biases = layers(148, *[64] * 4, 3)
    coord, cell = torch.rand(1, 7, 2), torch.full((1, 7, 2), 0.1)

    def call(backend):
        return functional.liif_decode(feat, coord, cell, weights, biases, backend=backend, recompute=True)

    assert counted(lambda: call(FUSED)) == pytest.approx(counted(lambda: call("torch")), rel=0.01)
    ours, expected = counted(lambda: call(FUSED), feat), counted(lambda: call("torch"), feat)
    assert ours == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("recompute", [False, True])
def test_mlp_and_gather(recompute):
    x = torch.randn(500, 70, requires_grad=True)
    weights, biases = layers(70, 64, 64, 64, 3)

    def mlp(backend):
        return functional.fused_mlp(x, weights, biases, backend=backend, recompute=recompute)

    assert counted(lambda: mlp(FUSED), x) == pytest.approx(counted(lambda: mlp("torch"), x), rel=0.01)
    feat, coord = torch.randn(1, 4, 9, 11, requires_grad=True), torch.rand(1, 50, 2)
    for backend in (FUSED, "torch"):
        made = counted(
            lambda backend=backend: functional.gather_corners(feat, coord, None, cell_decode=False, backend=backend)[0],
            feat,
        )
        assert made == (0, 0)


def test_the_counter_may_be_imported_first():
    """The counter may be imported first; tests/ops/conftest.py imports the package first in other tests."""
    script = (
        "import torch.utils.flop_counter as counter\n"
        "import torch, liif_fast\n"
        "with counter.FlopCounterMode(display=False) as mode:\n"
        "    liif_fast.LIIFDecoder(4, hidden_list=(8,))(torch.rand(1, 4, 5, 5), *torch.rand(2, 1, 9, 2))\n"
        "print(mode.get_total_flops() > 0, counter.__spec__.loader.get_source(counter.__name__)[:1])\n"
    )
    assert run_python(script) == "True #"


def test_the_profiler_names_the_operators():
    feat, (weights, biases) = torch.randn(1, 4, 9, 11), layers(40, 8, 3)
    with torch.profiler.profile() as profile:
        functional.liif_decode(feat, *torch.rand(2, 1, 300, 2), weights, biases, backend=FUSED)
    names = {event.key for event in profile.key_averages()}
    assert {"liif_fast::project", "liif_fast::decode"} <= names


def test_angles_of_the_waves_are_counted_where_they_are_computed():
    """The C++ kernels count every row; Triton's count recomputed rows and the first layer's gradients."""
    rows, layer, angles = 400, 400 * 2 * 16 * 16, 4 * 400 * 8

    def count(kept, wanted, backend):
        shapes = (1, 100, 3), (1, 5, 7, 32), (1, 100, 2), (1, 100, 2), (8, 2), [(16, 16), (3, 16)], [(16,), (3,)]
        return flops.FORMULAS["fourier_decode_backward"](*shapes, (1, kept, 16), wanted, backend)

    last, first = (False, False, False, False, True, False, False), (False, False, True, False, False, False, False)
    assert count(rows, last, None) - count(rows, last, "triton") == angles
    assert count(0, last, "triton") - count(rows, last, "triton") == angles + layer
    assert count(rows, first, None) == count(rows, first, "triton")
