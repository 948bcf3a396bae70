"""A recording by torch.jit.trace is right at other sizes, or the call is refused."""

import pytest
import torch

from liif_fast import LIIFDecoder


def inputs(queries, height, width):
    return torch.randn(1, 8, height, width), torch.rand(1, queries, 2) * 2 - 1, torch.full((1, queries, 2), 0.1)


@torch.no_grad()
def test_a_trace_is_right_at_other_sizes():
    """Our operators are refused, because a recording would keep the first map's size and decode others wrongly."""
    decoder = LIIFDecoder(8, hidden_list=(16, 16))
    traced = torch.jit.trace(decoder, inputs(50, 9, 11))
    for sizes in ((50, 9, 11), (80, 9, 11), (50, 13, 7), (5, 40, 40)):
        case = inputs(*sizes)
        torch.testing.assert_close(traced(*case), decoder(*case), rtol=1e-5, atol=1e-6)


def test_a_fused_backend_by_name_says_so():
    with pytest.raises(RuntimeError, match=r"not recorded by torch\.jit\.trace"):
        torch.jit.trace(LIIFDecoder(8, hidden_list=(16, 16), backend="cpu"), inputs(50, 9, 11))
