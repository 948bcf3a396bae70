"""No 32-bit integer overflows in the kernels; calls that would overflow are refused."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from liif_fast import functional
from liif_fast.backends import triton as backend

from ..ops.support import Problem, make_layers, same_bits
from ..ops.test_attend import Attention
from .test_wanted import CALLS


@pytest.fixture
def checked(monkeypatch):
    """Run Triton's debug mode, whose assertions its interpreter does not evaluate by itself."""

    def create_assert(self, condition, message):
        assert np.all(condition.data), message

    monkeypatch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(debug=True))
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_assert", create_assert)


def test_the_check_finds_an_overflow(checked):
    @triton.jit
    def kernel(x, out):
        tl.store(out, tl.load(x) - 2)

    out = torch.empty(1, dtype=torch.int32)
    kernel[(1,)](torch.tensor([2 - 2**31], dtype=torch.int32), out)
    with pytest.raises(Exception, match="int32 overflow detected for operation sub"):
        kernel[(1,)](torch.tensor([1 - 2**31], dtype=torch.int32), out)


def gather_call():
    made = Problem(channels=2, shape=(3, 4), queries=5)
    return lambda backend: functional.gather_corners(*made.arguments[:3], backend=backend)[0], [made.feat]


@pytest.mark.parametrize("make", [*CALLS.values(), gather_call], ids=[*CALLS, "gather_corners"])
def test_no_operation_overflows(make, checked):
    """Forward and backward, in tiles that are not full."""
    run, leaves = make()
    for leaf in leaves:
        leaf.requires_grad_()
    torch.autograd.grad(run(backend="triton").sum(), leaves)


def test_coordinates_far_apart():
    """Queries, images and axes whose distances in memory pass 2^31 elements; only the pages in use exist."""
    problem = Problem(queries=5, shape=(3, 4), hidden=(9,))
    feat, coord, cell, weights, biases = problem.arguments
    expected = functional.liif_decode(*problem.arguments, backend="triton")
    for strides in ((2**31 + 8, 2, 1), (2, 2**29 + 8, 1), (2, 4, 2**31 + 8)):
        last = sum((n - 1) * stride for n, stride in zip(coord.shape, strides, strict=True))
        try:
            memory = torch.empty(last + 1)
        except RuntimeError:
            pytest.skip(f"the system cannot reserve {4 * last / 1e9:.0f} GB; the test touches a few pages of it")
        far = memory.as_strided(coord.shape, strides).copy_(coord)
        assert same_bits(functional.liif_decode(feat, far, cell, weights, biases, backend="triton"), expected)


def refused(reason, run):
    with pytest.raises(RuntimeError, match=reason):
        run(backend="triton")


def test_a_grid_whose_pixels_pass_32_bits_is_refused():
    problem = Problem(queries=1, shape=(3, 4), hidden=(9,))
    feat, _, _, weights, biases = problem.arguments
    for size, region in (((2**31 + 60, 7), (2**31 - 10, 0, 30, 2)), ((7, 1 << 30), (0, 0, 2, 2))):
        refused(
            f"grids of less than {1 << 30} a side, got {size[0]}x{size[1]}",
            lambda size=size, region=region, **options: functional.liif_render(
                feat, size, weights, biases, region=region, **options
            ),
        )


def test_a_part_of_a_map_that_is_too_long_is_refused():
    """The limit applies to the side of the whole map, not of the part."""
    problem = Problem(queries=1, shape=(3, 64), hidden=(9,))
    feat, _, _, weights, biases = problem.arguments

    def render(side, **options):
        place, region = (0, side - 64, 3, side), (0, side - 2, 3, 2)
        return functional.liif_render(feat, (3, side), weights, biases, region=region, place=place, **options)

    longest = backend.LONGEST_AXIS - 1
    torch.testing.assert_close(render(longest, backend="triton"), render(longest, backend="reference"))
    refused(f"maps of less than {longest + 1} a side, got 3x{longest + 1}", lambda **o: render(longest + 1, **o))


def test_the_longest_map_that_wraps():
    problem = Attention(1, 0, 1, 1, shape=(1, backend.LONGEST_AXIS - 1), batch=1, queries=4)
    problem.coord[..., 1] = torch.tensor([1.0, 1 - 2**-23, -1.0, 0.3])
    for ours, expected in zip(*(problem.run(name, wrap=True) for name in ("triton", "reference")), strict=True):
        torch.testing.assert_close(ours, expected)


def test_more_inputs_than_the_weights_offsets_reach_are_refused():
    channels = backend.MOST_INPUTS // 9 + 1
    feat, coord = torch.zeros(1, 1, 1, 1).expand(1, channels, 1, 1), torch.zeros(1, 1, 2)
    weights, biases = make_layers((4, 8, 3))
    weights[0] = torch.zeros(1, 1).expand(8, 9 * channels + 4)
    reason = f"fewer than {backend.MOST_INPUTS} inputs per row, got "
    refused(f"{reason}{9 * channels}", lambda **o: functional.liif_decode(feat, coord, coord, weights, biases, **o))
    x, weights[0] = torch.zeros(1, 1).expand(2, 1 << 21), torch.zeros(1, 1).expand(8, 1 << 21)
    refused(f"{reason}{1 << 21}", lambda **o: functional.fused_mlp(x, weights, biases, **o))


def test_more_values_than_a_tiles_offsets_reach_are_refused():
    problem = Attention(1, 0, 1, 1, shape=(1, 1), batch=1, queries=1)
    problem.values = torch.zeros(1, 1, 1, 1).expand(1, backend.MOST_VALUES + 1, 1, 1)
    refused(f"up to {1 << 24} values, got {(1 << 24) + 1}", problem.run)


def test_of_very_many_queries_none_are_kept():
    """Keep none, because the kernels number the queries that are not kept in 32 bits."""
    weights, _ = make_layers((4, 256, 256, 3))

    def kept(count, recompute=None):
        return backend.KERNELS.saves(weights, 1, count, 4, torch.float16, True, recompute)[1]

    assert 0 < kept(backend.MOST_KEPT - 1) < 4 * backend.MOST_KEPT
    assert kept(backend.MOST_KEPT) == 0
    assert kept(backend.MOST_KEPT, False) == 4 * backend.MOST_KEPT
