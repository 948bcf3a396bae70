"""Saved layers 2^31 or more elements apart, as for 700,000 queries, are addressed in 64 bits."""

import pytest
import torch

from liif_fast import functional

from ..ops.support import Problem, same_bits

LAYERS = 4
APART = 2**31 // (LAYERS - 1) // 64 * 64 + 64  # elements between two layers; three layers exceed 32 bits


def spread(like, *shape, **options):
    """Return an empty tensor whose layers lie apart, in memory of which only touched pages exist.

    As much memory lies before it, so that an address that wraps round gives a wrong value, not a crash.
    """
    if len(shape) != 3 or shape[0] != LAYERS:
        return torch.empty(shape, **{**options, "dtype": options.get("dtype") or like.dtype})
    rows, width = shape[1:]
    apart = APART // width * width
    memory = torch.empty(2**31 + (LAYERS - 1) * apart + rows * width, dtype=like.dtype)
    return memory.as_strided(shape, (apart, width, 1), 2**31)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("operator", ["decode", "render", "mlp"])
def test_layers_far_apart(operator, recompute, monkeypatch):
    problem = Problem(queries=9, shape=(4, 5), hidden=(24,) * LAYERS).to(torch.float16).requires_grad()
    feat, _, _, weights, biases = problem.arguments
    options = {"backend": "triton", "recompute": recompute}
    x = torch.randn(9, weights[0].shape[1], dtype=torch.float16, requires_grad=True)

    def run():
        if operator == "decode":
            out, leaves = functional.liif_decode(*problem.arguments, **options), problem.leaves
        elif operator == "render":
            out, leaves = functional.liif_render(feat, (3, 4), weights, biases, **options), problem.leaves
        else:
            out, leaves = functional.fused_mlp(x, weights, biases, **options), [x, *problem.leaves[1:]]
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    near = run()
    monkeypatch.setattr(torch.Tensor, "new_empty", spread)
    assert all(map(same_bits, run(), near))
