"""FlopCounterMode counts the Triton operators as it counts the factorised form in plain PyTorch."""

import pytest
import torch

from liif_fast import functional

from ..ops.test_flops import counted, layers


@pytest.mark.parametrize("recompute", [False, True])
def test_decode_render_and_mlp(recompute):
    torch.manual_seed(0)
    feat, x = torch.randn(1, 4, 3, 3, requires_grad=True), torch.randn(16, 20, requires_grad=True)
    weights, biases = layers(40, 32, 32, 32, 3)
    rows_weights, rows_biases = layers(20, 32, 32, 3)
    coord, cell = torch.rand(2, 1, 20, 2)
    keys = {"recompute": recompute}
    calls = {
        "decode": (feat, lambda name: functional.liif_decode(feat, coord, cell, weights, biases, backend=name, **keys)),
        "render": (feat, lambda name: functional.liif_render(feat, (5, 4), weights, biases, backend=name, **keys)),
        "mlp": (x, lambda name: functional.fused_mlp(x, rows_weights, rows_biases, backend=name, **keys)),
    }
    for name, (leaf, call) in calls.items():
        ours, expected = (counted(lambda call=call, b=b: call(b), leaf) for b in ("triton", "torch"))
        assert ours == pytest.approx(expected, rel=0.01), name
