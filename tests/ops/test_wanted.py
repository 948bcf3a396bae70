"""Unwanted gradients are not computed, and the others have the same bits as when all are wanted."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from liif_fast import functional
from liif_fast.ops.conv3x3 import convolve3x3, plain, plain_residual, residual3x3

from .support import Problem, make_layers, same_bits
from .test_attend import Attention
from .test_fourier import Call as Fourier
from .test_modulated import Call as Modulated

BACKENDS = ["torch", "cpu"]


def decode_call(shape=(5, 6), queries=31):
    made = Problem(channels=3, shape=shape, queries=queries, hidden=(9, 8))
    return lambda **options: functional.liif_decode(*made.arguments, **options), [made.coord, made.cell, *made.leaves]


def render_call(size=(9, 7)):
    made = Problem(channels=3, shape=(5, 6), hidden=(9, 8))
    cell = made.cell[:, 0].clone()

    def run(**options):
        return functional.liif_render(made.feat, size, made.weights, made.biases, cell=cell, **options)

    return run, [cell, *made.leaves]


def mlp_call():
    x, (weights, biases) = torch.randn(70, 6), make_layers((6, 9, 8, 3))
    return lambda **options: functional.fused_mlp(x, weights, biases, **options), [x, *weights, *biases]


def fourier_call(queries=31):
    made = Fourier(width=6, widths=(9, 8, 3), queries=queries)
    return lambda backend, **options: made.run(backend, **options), [made.coord, made.cell, *made.leaves]


def modulated_call():
    made = Modulated(queries=31)
    leaves = [made.coord, made.cell, made.feat, *made.weights, *made.biases]
    return lambda backend, **options: made.run(backend, **options), leaves


def attend_call(width=4, queries=31):
    """Return a call without the biases that have no gradient, because they shift all logits alike."""
    made = Attention(width, 1, 2, width, queries=queries)
    leaves = {"feat": made.feat, "values": made.values, **dict(made.net.tensors())}
    for leaf in leaves.values():
        leaf.requires_grad_()
    out, weight = made.run("torch")
    grads = torch.autograd.grad(out.sum() + weight.square().sum(), list(leaves.values()), allow_unused=True)
    used = [leaf for leaf, grad in zip(leaves.values(), grads, strict=True) if grad is not None]
    for leaf in leaves.values():
        leaf.requires_grad_(False)

    def run(backend, **options):
        out, weight = made.run(backend, **options)
        return torch.cat((out, weight), 2)

    return run, used


def pairwise(count):
    """Return subsets of `count` inputs, so that of any two of them some hold both, one, the other and none."""
    rows = next(rows for rows in itertools.count(5) if rows * (rows - 1) // 2 >= count)
    chosen = list(itertools.islice(itertools.combinations(range(rows), 2), count))
    return [subset for row in range(rows) if any(subset := [row in pair for pair in chosen])]


def grads_of(run, leaves, wanted, **options):
    for leaf, want in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(want)
    out = run(**options)
    weigh = torch.linspace(-1, 1, out.numel()).view(out.shape)
    found = iter(torch.autograd.grad((out * weigh).sum(), [each for each in leaves if each.requires_grad]))
    return [next(found) if want else None for want in wanted]


def check(run, leaves, subsets, **options):
    """Compare the gradients of subsets of the leaves with those of all."""
    every = grads_of(run, leaves, [True] * len(leaves), **options)
    for subset in subsets:
        found = grads_of(run, leaves, subset, **options)
        for position, (one, other) in enumerate(zip(found, every, strict=True)):
            assert one is None or same_bits(one, other), (subset, position)


def conv3x3_call():
    """Return a call whose backends are PyTorch's convolution and ours."""
    leaves = [torch.randn(size) for size in ((2, 70, 5, 6), (9, 70, 3, 3), (9,), (2, 9, 5, 6))]

    def run(backend, **options):
        return {"torch": plain, "cpu": convolve3x3}[backend](*leaves, True, True)

    return run, leaves


def residual3x3_call():
    leaves = [torch.randn(size) for size in ((2, 9, 5, 6), (70, 9, 3, 3), (70,), (9, 70, 3, 3), (9,))]

    def run(backend, **options):
        return {"torch": plain_residual, "cpu": residual3x3}[backend](*leaves, True)

    return run, leaves


CALLS = {
    "decode": decode_call, "few queries": lambda: decode_call((24, 25), 5), "render": render_call,
    "fused_mlp": mlp_call, "fourier_decode": fourier_call, "modulated_decode": modulated_call,
    "attend_corners": attend_call, "conv3x3": conv3x3_call,
    "residual3x3": residual3x3_call,
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wanted_gradients_have_the_bits_of_all(name, backend, nan_empty):
    run, leaves = CALLS[name]()
    alone = [[place == each for place in range(len(leaves))] for each in range(len(leaves))]
    for recompute in (False, True):
        check(run, leaves, [*pairwise(len(leaves)), *alone], backend=backend, recompute=recompute)


PLACES = {"decode": 2, "render": 1, "fused_mlp": 0}  # leaves that are coord or cell


@pytest.mark.parametrize("name", PLACES)
def test_the_counter_counts_what_is_wanted(name):
    """It counts as in plain PyTorch, where autograd omits unwanted gradients."""
    run, leaves = CALLS[name]()
    for some in pairwise(len(leaves) - PLACES[name]):
        subset, found = [False] * PLACES[name] + some, []
        for backend in BACKENDS:
            with FlopCounterMode(display=False) as counter:
                grads_of(run, leaves, subset, backend=backend, recompute=False)
            found.append(counter.get_total_flops())
        assert found[1] == pytest.approx(found[0], rel=0.1), subset


def test_pairwise():
    for count in (2, 7, 12):
        for one, other in itertools.combinations(range(count), 2):
            found = {(subset[one], subset[other]) for subset in pairwise(count)}
            assert found >= {(True, False), (False, True)} and (count < 7 or (False, False) in found)
