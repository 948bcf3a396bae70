"""The decoder's forward and backward pass: gradients of the latents and of every parameter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import eager
from benchmarks.common import COMPILED, EAGER, FACTORISED, make_problem
from liif_fast.functional import liif_decode


@pytest.mark.parametrize(("queries", "rounds"), [(2304, 21), (16_384, 9)], ids=lambda value: f"{value}")
def test_train(queries: int, rounds: int, race: Callable[..., Any], pick: Callable[..., Any]) -> None:
    batch, side, count = 2, pick(48, 48, 7), pick(queries, queries, 60)
    feat, weights, biases = make_problem((side, side), batch=batch, hidden=pick((256,) * 4, (256,) * 4, (16, 16)))
    feat.requires_grad_()
    coord = torch.rand(batch, count, 2) * 2 - 1
    cell = (2 / side / torch.empty(batch, 1, 1).uniform_(1, 4)).expand(batch, count, 2).contiguous()
    grad = torch.randn(batch, count, 3)
    compiled = torch.compile(eager.decode)

    def step(decode: Callable[..., torch.Tensor], **options: Any) -> tuple[torch.Tensor, ...]:
        out = decode(feat, coord, cell, weights, biases, **options)
        return out.detach(), *torch.autograd.grad(out, (feat, *weights, *biases), grad)

    race(
        f"train-{queries}",
        f"forward + backward, B = {batch}, Q = {count:,}, {side}x{side}",
        lambda: step(liif_decode),
        {
            EAGER: lambda: step(eager.decode),
            COMPILED: lambda: step(compiled),
            FACTORISED: lambda: step(liif_decode, backend="torch"),
        },
        step(liif_decode, backend="reference"),
        rounds=rounds,
    )
