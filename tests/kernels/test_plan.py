"""Check promise 1, the corner plan bit for bit, of the interpreted Triton kernels by tests/ops/test_plan.py.

The interpreter takes about a millisecond for four queries, so here are few maps (SIDES instead of 1 to 40) and scales.
"""

import pytest

from ..ops import test_plan

SIDES = (1, 7)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(test_plan, "SIDES", SIDES)
    monkeypatch.setattr(test_plan, "SCALES", (2, 1.5))


@pytest.mark.parametrize("ensemble", [True, False])
def test_gather_corners(ensemble):
    test_plan.test_gather_corners("triton", ensemble)


def test_decode_and_render_of_the_nearest():
    test_plan.test_decode_and_render_of_the_nearest("triton")


def test_decode_and_render_of_the_blend():
    test_plan.test_decode_and_render_of_the_blend("triton")
