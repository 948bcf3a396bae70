"""`torch.set_default_dtype` changes no result, because the package's own tensors have explicit dtypes."""

import copy
from functools import cache

import pytest
import torch

import liif_fast
from liif_fast import evaluation, functional
from liif_fast.train.objective import Objective

from .ops.support import Problem, same_bits

NORM = {part: {"sub": [0.4488, 0.4371, 0.404], "div": [0.3]} for part in ("inp", "gt")}  # not exact in half precision


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64], ids=str)
def under(request):
    """Run a function under another default dtype."""

    def run(function):
        torch.set_default_dtype(request.param)
        try:
            return function()
        finally:
            torch.set_default_dtype(torch.float32)

    return run


def operators(backend):
    problem = Problem(queries=9, shape=(3, 4), hidden=(20, 16)).requires_grad()
    feat, _, _, weights, biases = problem.arguments
    x = torch.randn(9, weights[0].shape[1], dtype=torch.float32, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()

    def run():
        results = []
        for out, leaves in (
            (functional.liif_decode(*problem.arguments, backend=backend), problem.leaves),
            (functional.liif_render(feat, (5, 7), weights, biases, backend=backend), problem.leaves),
            (functional.fused_mlp(x, weights, biases, backend=backend), [x, *problem.leaves[1:]]),
            (functional.gather_corners(*problem.arguments[:3], backend=backend)[0], [feat]),
        ):
            results += [out, *torch.autograd.grad(out.square().sum(), leaves)]
        return results

    return run


@cache
def results(backend):
    """Return what the operators give under PyTorch's own default dtype."""
    return operators(backend)()


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu", "triton"])
def test_operators(backend, under, monkeypatch):
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert all(map(same_bits, under(operators(backend)), results(backend)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"no_upsampling": True, "n_resblocks": 1, "n_feats": 8}}
    made = liif_fast.LIIF(encoder, {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [16]}}).eval()
    made.data_norm = copy.deepcopy(NORM)
    return made


def test_upscaling(model, under):
    image = torch.rand(9, 11, 3, dtype=torch.float32).numpy()

    def run():
        return torch.as_tensor(liif_fast.upscale(image, model, scale=2))

    assert same_bits(under(run), run())


def test_evaluation(model, under):
    inp = torch.rand(1, 3, 9, 11, dtype=torch.float32)

    def run():
        return evaluation.of_model(model, NORM)(inp, (15, 20))

    assert same_bits(under(run), run())


def test_the_objective_of_training(model, under):
    made = under(lambda: dict(Objective(model, NORM).named_buffers()))
    assert all(map(same_bits, made.values(), dict(Objective(model, NORM).named_buffers()).values()))
