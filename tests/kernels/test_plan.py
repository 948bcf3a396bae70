"""Check promise 1, the corner plan bit for bit, of the interpreted Triton kernels by tests/ops/test_plan.py.

The interpreter takes about a millisecond for four queries, so here are few maps (SIDES instead of 1 to 40) and scales.
"""

import pytest
import torch

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


@pytest.mark.parametrize("size", [1, 7, 50, 2**31 - 1, 2**33 + 5])
def test_division_of_a_tile(size):
    """Numbers of more than 32 bits are divided exactly, whether the size has 32 bits or 64."""
    import triton
    import triton.language as tl
    from liif_fast.kernels.plan import divided

    @triton.jit
    def kernel(start, out, size, divided: tl.constexpr):
        offset = tl.arange(0, 128)
        whole, more, rest = divided(tl.load(start), offset, size)
        tl.store(out + offset, whole + more)
        tl.store(out + 128 + offset, rest.to(tl.int64))

    for start in (0, size - 3, 2**31 - 5, 2**40 + 11, 3 * size - 64):
        start = max(start, 0)
        out = torch.empty(2, 128, dtype=torch.int64)
        kernel[(1,)](torch.tensor([start]), out, size, divided)
        expected = [divmod(start + i, size) for i in range(128)]
        assert out.t().tolist() == [list(pair) for pair in expected]
