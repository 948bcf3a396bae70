"""Count PyTorch's launches in a call, beside our kernels, which do nothing here."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from liif_fast import functional
from liif_fast.backends import triton as backend
from liif_fast.kernels import attend_corners, backward, host, project
from liif_fast.ops import attend as attend_operators

from ..ops.support import Problem
from ..ops.test_attend import Attention
from .conftest import Idle

NOTHING = ("empty", "new_empty", "empty_like", "_unsafe_view", "lift_fresh", "_local_scalar_dense")


class Launches(TorchDispatchMode):
    """Count PyTorch's operations that run something on a device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "aten" and not function.is_view and function._schema.name[6:] not in NOTHING:
            self.names.append(function._schema.name[6:])
        return function(*args, **(kwargs or {}))


def problem(dtype):
    return Problem(batch=1, shape=(4, 5), queries=9, hidden=(256,) * 4).to(dtype)


def count(run):
    run()
    with Launches() as launches:
        run()
    return launches.names


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 2), (torch.float32, 1)])
def test_a_frozen_inference_call(idle, dtype, most):
    """Launch only the conversion of the map's layout and, for float16, that of the output's dtype."""
    made = problem(dtype)
    with torch.no_grad(), functional.frozen_weights():
        names = count(lambda: functional.liif_decode(*made.arguments, backend=backend.NAME))
    assert len(names) <= most, names


def test_a_frozen_call_under_autocast(idle):
    made = problem(torch.float32)
    with torch.no_grad(), functional.frozen_weights(), torch.autocast("cpu", torch.float16):
        names = count(lambda: functional.liif_decode(*made.arguments, backend=backend.NAME))
    assert len(names) <= 3, names


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 14), (torch.float32, 10)])
def test_a_frozen_call_of_attention(monkeypatch, dtype, most, mode):
    """The rest is done once per latent: norms, a product, the table; from float16 also casts."""
    monkeypatch.setattr(attend_corners, "attend_kernel", Idle())
    monkeypatch.setattr(attend_operators, "_attend", lambda *args: attend_corners.attend_corners(*args[:-1]))
    packed, packings = attend_corners.packed, []
    monkeypatch.setattr(attend_corners, "packed", lambda *args: (packings.append(1), packed(*args))[1])
    made = Attention(16, 2, 2, 16, queries=9, dtype=dtype)
    with mode():
        before = count(lambda: made.run(backend.NAME))
        packings.clear()
        with functional.frozen_weights():
            names = [count(lambda: made.run(backend.NAME)) for _ in range(3)][-1]
    assert len(names) <= most < len(before) / 3, names
    assert len(packings) == 1


def test_a_training_step(idle, monkeypatch):
    made = problem(torch.float32).requires_grad()
    product, products = host.product, []
    monkeypatch.setattr(host, "product", lambda a, b: (products.append(a.shape), product(a, b))[1])

    def step():
        products.clear()
        with torch.autocast("cpu", torch.float16):
            out = functional.liif_decode(*made.arguments, backend=backend.NAME)
        torch.autograd.grad(out.sum(), made.leaves)

    names = count(step)
    assert len(products) == 9 + 5
    assert len(names) + len(products) <= 79, Counter(names)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_costs_no_gradient_of_the_map(idle, monkeypatch, frozen):
    made = problem(torch.float16).requires_grad()
    made.feat.requires_grad_(not frozen)
    launch, launches = project._launch, []
    monkeypatch.setattr(project, "_launch", lambda *args: (launches.append(1), launch(*args))[1])
    out = functional.liif_decode(*made.arguments, backend=backend.NAME)
    torch.autograd.grad(out.sum(), [each for each in made.leaves if each.requires_grad])
    assert len(launches) == (1 if frozen else 2)


def test_images_of_a_render_go_back_together(idle, monkeypatch):
    launches = []

    class Chain:
        def __getitem__(self, grid):
            return lambda *args, **named: launches.append(grid)

    monkeypatch.setattr(backward, "chain_kernel", Chain())
    made = Problem(batch=5, shape=(4, 5), hidden=(256,) * 4).to(torch.float16).requires_grad()
    out = functional.liif_render(made.feat, (7, 9), made.weights, made.biases, backend=backend.NAME)
    torch.autograd.grad(out.sum(), made.leaves)
    assert len(launches) == 1
