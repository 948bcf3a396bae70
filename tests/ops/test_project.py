"""`conv3x3` computes P's gradients, and within `fast_convolutions()` P itself, where it is faster."""

import itertools
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from liif_fast import functional
from liif_fast.backends import cpu
from liif_fast.convolution import fast_convolutions
from liif_fast.ops import project as operator_module
from liif_fast.ops.project import fast_project, fast_project_backward, project, project_backward

from . import oracle
from .support import DEFAULT, Problem, same_bits
from .test_conv3x3 import LARGEST, NORM, errors

pytestmark = pytest.mark.skipif(bool(cpu._missing), reason="the C++ kernels are not built")

LARGE = (2, 17, 33, 35)  # B, C, H, W; the smallest maps that take conv3x3 have about 1,000 pixels

FORMS = [(project, project_backward), (fast_project, fast_project_backward)]


def problem(shape=LARGE, hidden=37, unfold=True, dtype=torch.float32, seed=0):
    """Return feat, weight, bias and P's gradient."""
    generator, (batch, channels, height, width) = torch.Generator().manual_seed(seed), shape
    latent = channels * (9 if unfold else 1)
    sizes = shape, (hidden, latent + 4), (hidden,), (batch, height, width, hidden)
    feat, weight, bias, grad = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    return feat.to(dtype), (weight * latent**-0.5).to(dtype), bias.to(dtype), grad.float()


def exact(feat, weight, bias, grad, top=0, left=0):
    """Return P and the gradients of feat, weight and bias of the window of P at (top, left), in float64."""
    feat, weight, bias = leaves = [each.double().requires_grad_() for each in (feat, weight, bias)]
    kernel = weight[:, :-4].reshape(len(weight), feat.shape[1], 3, 3)
    p = F.conv2d(feat, kernel, bias, padding=1).permute(0, 2, 3, 1)
    part = p[:, top : top + grad.shape[1], left : left + grad.shape[2]]
    of_feat, of_weight, of_bias = torch.autograd.grad(part, leaves, grad.double())
    return p.detach(), of_feat, of_weight[:, :-4], of_bias


def operators(function):
    """Return the names of the package's operators that a function calls."""
    with torch.profiler.profile() as profile:
        function()
    return {each.key.removeprefix("liif_fast::") for each in profile.key_averages() if "liif_fast::" in each.key}


@pytest.mark.parametrize(("forward", "backward"), FORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_accuracy(forward, backward, layout, nan_empty):
    feat, weight, bias, grad = problem()
    feat = feat.contiguous(memory_format=layout)
    p = forward(feat, weight, bias, True, (0, 0, 33, 35), None)
    grads = backward(grad, feat, weight, True, 0, 0, (True, True, True), None)
    assert p.is_contiguous()
    for got, right in zip((p, *grads), exact(feat, weight, bias, grad), strict=True):
        norm, largest = errors(got, right)
        assert got.shape == right.shape and norm < NORM and largest < LARGEST


@pytest.mark.parametrize(("forward", "backward"), FORMS)
def test_window(forward, backward, nan_empty):
    """A window of P, such as a render's strip, has zeros around its gradient."""
    feat, weight, bias, grad = problem()
    grad = grad[:, :20, :31]
    for got, right in zip(
        backward(grad, feat, weight, True, 3, 2, (True, True, True), None),
        exact(feat, weight, bias, grad, 3, 2)[1:],
        strict=True,
    ):
        assert errors(got, right)[0] < NORM
    whole = project(feat, weight, bias, True, (0, 0, 33, 35), None)
    assert torch.equal(forward(feat, weight, bias, True, (3, 2, 20, 31), None), whole[:, 3:23, 2:33])


@pytest.mark.skipif(not cpu.BFLOAT16, reason="this processor has no AVX512-BF16")
@pytest.mark.parametrize("shape", [LARGE, (1, 17, 6, 7)])
def test_bfloat16_does_not_round_the_gradient_of_the_bias(shape):
    """On a large map where that is allowed, the other gradients are not rounded either; bfloat16 would err by 3e-3."""
    feat, weight, bias, grad = problem(shape, dtype=torch.bfloat16)
    grads = fast_project_backward(grad, feat, weight, True, 0, 0, (True, True, True), None)
    assert all(each.dtype == torch.float32 for each in grads)
    limits = (1e-2, NORM if shape == LARGE and not torch.cpu._is_amx_tile_supported() else 1e-2, NORM)
    for got, right, limit in zip(grads, exact(feat, weight, bias, grad)[1:], limits, strict=True):
        assert errors(got, right)[0] < limit


@pytest.mark.parametrize("backward", [project_backward, fast_project_backward])
@pytest.mark.parametrize("shape", [LARGE, (2, 3, 5, 6)])
def test_each_wanted_alone(backward, shape, nan_empty):
    feat, weight, _, grad = problem(shape)
    together = backward(grad, feat, weight, True, 0, 0, (True, True, True), None)
    for wanted in itertools.product((False, True), repeat=3):
        alone = backward(grad, feat, weight, True, 0, 0, wanted, None)
        for one, other, want in zip(alone, together, wanted, strict=True):
            assert torch.equal(one, other) if want else one.numel() == 0


@pytest.mark.parametrize("hidden_from_queries", [1.0, 1e4])
def test_rounds_no_more_than_pytorch_unless_allowed(hidden_from_queries):
    """Promise 2: gradients have at most three times the error of plain float32 sums, also beside large latents."""
    feat, weight, bias, grad = problem((1, 64, 40, 44), hidden=64)
    grad[:, :, 20:] = 0
    feat[..., 21:] *= hidden_from_queries  # the last latents that the gradient reads are in column 20
    right = exact(feat, weight, bias, grad)[1:]
    plain = torch.autograd.functional.vjp(
        lambda feat, kernel: F.linear(F.unfold(feat, 3, padding=1).mT, kernel, bias),
        (feat, weight[:, :-4].contiguous()),
        grad.flatten(1, 2),
    )[1]
    usual, fast = (
        backward(grad, feat, weight, True, 0, 0, (True, True, True), None)
        for backward in (project_backward, fast_project_backward)
    )
    of_feat, of_weight, _ = (errors(each, exact)[0] for each, exact in zip(usual, right, strict=True))
    assert of_feat < 2 * errors(plain[0], right[0])[0] < errors(fast[0], right[0])[0]
    assert of_weight < 3 * errors(plain[1], right[1])[0]
    of_bias = errors(grad.sum((0, 1, 2)), right[2])[0]
    assert errors(usual[2], right[2])[0] < 3 * of_bias


def test_only_the_backend_cpu_is_fast(monkeypatch):
    """Another backend computes P and its gradients itself."""
    monkeypatch.setattr(operator_module, "conv3x3", lambda *_: 1 / 0)
    monkeypatch.setattr(operator_module, "conv3x3_backward", lambda *_: 1 / 0)
    monkeypatch.setattr(operator_module, "project", lambda *_: "P")
    monkeypatch.setattr(operator_module, "project_backward", lambda *_: "gradients")
    feat, weight, bias, grad = problem()
    assert fast_project(feat, weight, bias, True, (0, 0, 33, 35), "triton") == "P"
    assert fast_project_backward(grad, feat, weight, True, 0, 0, (True, True, True), "triton") == "gradients"
    with pytest.raises(ZeroDivisionError):
        fast_project(feat, weight, bias, True, (0, 0, 33, 35), None)


def steps(context, unfold=True, **sizes):
    """Return a function that gives the output of a decoder called within a context, and gradients."""
    sizes = {"channels": 17, "shape": (33, 35), "queries": 600, "hidden": (37, 8)} | sizes
    made = Problem(**sizes, switches=DEFAULT._replace(feat_unfold=unfold)).requires_grad()

    def run():
        with context():
            out = functional.liif_decode(*made.arguments, **made.switches._asdict(), backend="cpu")
        return [out.detach(), *torch.autograd.grad(out.square().sum(), made.leaves)]

    return run


def test_the_context_of_the_forward_pass_decides():
    usual, fast = operators(steps(nullcontext)), operators(steps(fast_convolutions))
    assert {"project", "project_backward"} <= usual and not {"conv3x3", "conv3x3_backward"} & usual
    assert {"conv3x3", "conv3x3_backward"} <= fast and not {"project", "project_backward"} & fast


@pytest.mark.parametrize(
    "changes", [{"shape": (9, 9)}, {"channels": 5}, {"hidden": (9, 8)}, {"unfold": False}], ids=str
)
def test_leaves_what_would_be_slower(changes):
    names = operators(steps(fast_convolutions, **changes))
    assert {"project", "project_backward"} <= names and not {"conv3x3", "conv3x3_backward"} & names


def test_promises_3_and_5_hold_up_to_rounding_and_for_tiles():
    """An image alone takes the other algorithm; a NaN reaches only queries in the tiles of 4x4 latents around it."""
    made, shape = Problem(batch=2, channels=17, shape=(33, 35), queries=600, hidden=(37, 8)), (33, 35)
    feat, coord, cell, *layers = made.arguments

    def run(images):
        with fast_convolutions():
            return functional.liif_decode(images, coord[: len(images)], cell[: len(images)], *layers, backend="cpu")

    clean, alone = run(feat), run(feat[:1])
    assert not torch.equal(alone, clean[:1])
    torch.testing.assert_close(alone, clean[:1], rtol=0, atol=1e-5 * clean.abs().max().item())
    bad, index = feat.clone(), torch.from_numpy(oracle.plan(coord.numpy(), shape, True)[0])
    bad[1, 2, 15, 21] = float("nan")  # at the edge of its tile in height, inside in width
    out = run(bad)
    near, tiles = (
        ((index >= torch.tensor(first)) & (index <= torch.tensor(last))).all(-1).any(-1)
        for first, last in (((14, 20), (16, 22)), ((12, 20), (19, 23)))
    )
    near[0] = tiles[0] = False
    assert near.any() and out[near].isnan().all()
    assert same_bits(out[~tiles], clean[~tiles])


def test_repeats(threads):
    """The output's bits are the same for any number of threads, the gradients' for one number."""
    run = steps(fast_convolutions)
    threads(2)
    first = run()
    assert all(map(torch.equal, first, run()))
    threads(1)
    assert torch.equal(run()[0], first[0])
