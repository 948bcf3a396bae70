"""Compare gradients with finite differences in float64; only the requested gradients are computed.

fast_mode compares random projections of the Jacobians. For each backend some are compared element by element.
"""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from liif_fast import functional

from .support import ALL_SWITCHES, BACKENDS, Problem, make_layers

PLAIN = ("reference", "torch")  # the backends that plan in float64


def small(switches, hidden=(6, 5), seed=3):
    return Problem(seed, batch=2, channels=2, shape=(3, 4), queries=5, hidden=hidden, out_dim=2, switches=switches,
                   dtype=torch.float64)  # fmt: skip


def decoder(problem, backend, recompute=None):
    """Return a function of feat, coord, cell, then alternating weights and biases."""

    def decode(feat, coord, cell, *parameters):
        options = {**problem.switches._asdict(), "backend": backend, "recompute": recompute}
        return functional.liif_decode(feat, coord, cell, parameters[0::2], parameters[1::2], **options)

    return decode


def parameters(problem):
    return [p for pair in zip(problem.weights, problem.biases, strict=True) for p in pair]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("switches", ALL_SWITCHES)
def test_decode(backend, switches, nan_empty):
    for hidden, recompute in (((), None), ((6,), True), ((6, 5), True), ((6, 5, 4), False)):
        problem = small(switches, hidden).requires_grad()
        inputs = (*problem.arguments[:3], *parameters(problem))
        assert gradcheck(decoder(problem, backend, recompute), inputs, fast_mode=hidden != (6, 5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("switches", ALL_SWITCHES[::3])
@pytest.mark.parametrize("region", [None, (1, 3, 4, 3), (5, 0, 1, 1)])
def test_render(backend, switches, region, nan_empty):
    problem = small(switches).requires_grad()

    def render(feat, *ps):
        options = {**problem.switches._asdict(), "backend": backend, "region": region, "recompute": region is None}
        return functional.liif_render(feat, (7, 6), ps[0::2], ps[1::2], **options)

    assert gradcheck(render, (problem.feat, *parameters(problem)), fast_mode=region != (1, 3, 4, 3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("switches", ALL_SWITCHES[::2])
def test_gather_corners(backend, switches, nan_empty):
    problem = small(switches).requires_grad()

    def gather(feat):
        return functional.gather_corners(feat, problem.coord, problem.cell, **switches._asdict(), backend=backend)[0]

    assert gradcheck(gather, (problem.feat,))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recompute", [True, False])
def test_fused_mlp(backend, recompute, nan_empty):
    for widths in ((3, 2), (3, 7, 2), (3, 7, 5, 2), (1, 1, 1)):
        generator = torch.Generator().manual_seed(1)
        weights, biases = make_layers(widths, generator, torch.float64)
        x = torch.randn(2, 4, widths[0], generator=generator, dtype=torch.float64, requires_grad=True)
        ps = [p.requires_grad_() for pair in zip(weights, biases, strict=True) for p in pair]

        def mlp(x, *ps):
            return functional.fused_mlp(x, ps[0::2], ps[1::2], backend=backend, recompute=recompute)

        assert gradcheck(mlp, (x, *ps))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in PLAIN])
@pytest.mark.parametrize("switches", ALL_SWITCHES[::3])
def test_coord_and_cell(backend, switches):
    """Check in float64 throughout, at coordinates away from the edges of cells, where the plan jumps."""
    problem = small(switches).requires_grad()
    coord = (problem.coord.double() * 0.8).requires_grad_()
    cell = problem.cell.double().requires_grad_(switches.cell_decode)
    for recompute in (True, False):
        assert gradcheck(
            decoder(problem, backend, recompute), (problem.feat, coord, cell, *parameters(problem)), fast_mode=True
        )
    assert gradcheck(lambda c: functional.corner_plan(c, (3, 4), local_ensemble=switches.local_ensemble)[1:], (coord,))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in PLAIN])
@pytest.mark.parametrize("switches", ALL_SWITCHES)
@pytest.mark.parametrize(("shape", "hidden"), [((3, 4), (40, 9)), ((3, 4), (9,)), ((60, 50), (9, 8))])
def test_coord_and_cell_of_the_kernels(backend, switches, shape, hidden, nan_empty):
    """Gradients equal those of the plain form in float64, also for few queries on a large map (`decode_direct`).

    The plain form in float32 is off by 1e-5 where gradients at a query's corners nearly cancel.
    """

    def gradients(name, recompute, dtype):
        problem = Problem(shape=shape, hidden=hidden, queries=7, channels=3, switches=switches)
        problem.coord[:, :2] = torch.tensor([[-0.999, 0.3], [0.98, 0.99]])
        problem.to(dtype).requires_grad()
        coord, cell = (each.to(dtype).requires_grad_() for each in (problem.coord, problem.cell))
        options = {**switches._asdict(), "backend": name}
        weights, biases = problem.weights, problem.biases
        out = functional.liif_decode(problem.feat, coord, cell, weights, biases, recompute=recompute, **options)
        options_of_render = {"cell": cell[:, 0].float(), "region": (1, 2, 4, 3), "recompute": recompute}
        image = functional.liif_render(problem.feat, (7, 6), weights, biases, **options_of_render, **options)
        x, weight = functional.gather_corners(problem.feat, coord, cell, **options)
        for loss in (out, image, x, weight):
            if loss.requires_grad:
                weighted = (loss * torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)).sum()
                leaves = [problem.feat, coord, cell]
                yield from torch.autograd.grad(weighted, leaves, allow_unused=True, retain_graph=True)

    for recompute in (True, False):
        exact = gradients("reference", recompute, torch.float64)
        for ours, plain in zip(gradients(backend, recompute, torch.float32), exact, strict=True):
            if plain is None:
                assert ours is None or not ours.any()
            else:
                assert (ours - plain).norm() <= 1e-5 * plain.norm()


@pytest.mark.parametrize("switches", ALL_SWITCHES[::3])
def test_second_derivatives_of_the_reference(switches):
    problem = small(switches).requires_grad()
    coord = (problem.coord.double() * 0.8).requires_grad_()
    cell = problem.cell.double().requires_grad_(switches.cell_decode)
    assert gradgradcheck(
        decoder(problem, "reference"), (problem.feat, coord, cell, *parameters(problem)), fast_mode=True
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recompute", [True, False])
def test_only_what_is_wanted(backend, recompute):
    """Each gradient alone equals the same gradient among all bit for bit; frozen tensors get none."""
    problem = Problem(batch=1).requires_grad()
    decode = decoder(problem, backend, recompute)
    leaves = [problem.feat, *parameters(problem)]
    decode(problem.feat, problem.coord, problem.cell, *parameters(problem)).square().sum().backward()
    together = [leaf.grad for leaf in leaves]
    for wanted in range(len(leaves)):
        for i, leaf in enumerate(leaves):
            leaf.grad = None
            leaf.requires_grad_(i == wanted)
        decode(problem.feat, problem.coord, problem.cell, *parameters(problem)).square().sum().backward()
        assert torch.equal(leaves[wanted].grad, together[wanted]), wanted
        assert all(leaf.grad is None for i, leaf in enumerate(leaves) if i != wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_weights_are_noticed(backend):
    """A weight changed in place changes the next output; a change between forward and backward is an error."""
    problem = Problem().requires_grad()
    decode = decoder(problem, backend)
    first = decode(*problem.arguments[:3], *parameters(problem))
    with torch.no_grad():
        problem.weights[1].mul_(2)
    assert not torch.equal(decode(*problem.arguments[:3], *parameters(problem)), first)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.sum().backward()
