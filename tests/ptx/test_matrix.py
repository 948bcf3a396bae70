"""The interpreter's tensor core is exact on integers, and cuts towards zero if told to truncate."""

import numpy as np
import pytest

from .matrix import multiply

LANE = np.arange(32)
ROW, PAIR = LANE // 4, LANE % 4  # of a fragment of 8 rows, four lanes a row


def product(a, b, truncate):
    """Compute a [16, 8] b [8, 8] in TF32 through the fragments of one warp."""
    left = np.stack([a[ROW + 8 * (i & 1), PAIR + 4 * (i >> 1)].view(np.uint32) for i in range(4)])
    right = np.stack([b[PAIR + 4 * i, ROW].view(np.uint32) for i in range(2)])
    registers = multiply(left, right, np.zeros((4, 32), np.float32), "tf32", truncate)
    found = np.empty((16, 8), np.float32)
    for i, register in enumerate(registers):
        found[ROW + 8 * (i >> 1), 2 * PAIR + (i & 1)] = register[LANE]
    return found


@pytest.mark.parametrize("truncate", [0, 4, 8])
def test_integers_are_exact(truncate):
    random = np.random.default_rng(1)
    a, b = (random.integers(-9, 9, shape).astype(np.float32) for shape in ((16, 8), (8, 8)))
    assert (product(a, b, truncate) == a @ b).all()


@pytest.mark.parametrize("truncate", [4, 8])
def test_truncation_cuts_towards_zero(truncate):
    random = np.random.default_rng(2)
    a, b = (random.random(shape, np.float32) + 1 for shape in ((16, 8), (8, 8)))
    a, b = ((each.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for each in (a, b))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    cut = product(a, b, truncate)
    assert (cut <= exact).all() and (cut < exact).any()
    assert abs((product(a, b, 0) - exact).mean()) < abs((cut - exact).mean())
