"""Host work around the kernels: how many launches of PyTorch's own a call makes, counted while no kernel of ours runs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from liif_fast import functional
from liif_fast.backends import triton as backend

from ..ops.support import Problem
from .test_memory import idle  # noqa: F401

NOTHING = ("empty", "new_empty", "empty_like", "_unsafe_view", "lift_fresh", "_local_scalar_dense")


class Launches(TorchDispatchMode):
    """Counts operations of PyTorch that run something on a device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "aten" and not function.is_view and function._schema.name[6:] not in NOTHING:
            self.names.append(function._schema.name[6:])
        return function(*args, **(kwargs or {}))


def problem(dtype):
    return Problem(batch=1, shape=(4, 5), queries=9, hidden=(200,) * 4).to(dtype)


def count(run):
    run()
    with Launches() as launches:
        run()
    return launches.names


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_frozen_inference_call(idle, dtype):  # noqa: F811
    made = problem(dtype)
    with torch.no_grad(), functional.frozen_weights():
        names = count(lambda: functional.liif_decode(*made.arguments, backend=backend.NAME))
    print(names)
    assert len(names) <= 3, names
    with torch.no_grad():
        assert len(count(lambda: functional.liif_decode(*made.arguments, backend=backend.NAME))) > 3


def test_a_training_step(idle):  # noqa: F811
    made = problem(torch.float32).requires_grad()

    def step():
        with torch.autocast("cpu", torch.float16):
            functional.liif_decode(*made.arguments, backend=backend.NAME).sum().backward()

    names = count(step)
    import collections

    print(len(names), collections.Counter(names))
    assert len(names) <= 79
