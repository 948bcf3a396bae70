"""Promise 1, the corner plan bit for bit, of the Triton kernels in the interpreter: tests/ops/test_plan.py on few maps.

The interpreter takes about a millisecond for four queries: maps of sides 1 to 40 there, of SIDES here, fewer scales.
"""

import pytest
import torch

from ..ops import test_plan

SIDES = (1, 7)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(test_plan, "SIDES", SIDES)
    monkeypatch.setattr(test_plan, "SCALES", (2, 0.5, 1.5))


@pytest.mark.parametrize("ensemble", [True, False])
def test_gather_corners(ensemble):
    test_plan.test_gather_corners("triton", ensemble)


def test_decode_and_render_of_the_nearest(monkeypatch):
    """Through a hidden layer, which the kernels need: relu(x) - relu(-x) is x, exactly."""
    both = torch.cat((torch.eye(6), -torch.eye(6)))
    network = [both, both.T.contiguous()], [torch.zeros(12), torch.zeros(6)]
    monkeypatch.setattr(test_plan, "nearest_network", lambda: network)
    test_plan.test_decode_and_render_of_the_nearest("triton")


def test_decode_and_render_of_the_blend():
    test_plan.test_decode_and_render_of_the_blend("triton")
