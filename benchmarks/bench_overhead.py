"""Host time of a call that has next to nothing to compute: one query, a network of width 16."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import eager
from benchmarks.common import EAGER, FACTORISED, make_problem
from benchmarks.records import NOT_BUILT, isa
from liif_fast.functional import liif_decode
from liif_fast.ops.project import project

ROUNDS = 15


def _query() -> tuple[Any, ...]:
    feat, weights, biases = make_problem((2, 2), channels=4, hidden=(16,) * 4)
    return feat, torch.rand(1, 1, 2), torch.full((1, 1, 2), 0.5), weights, biases


@pytest.mark.skipif(isa() == NOT_BUILT, reason=NOT_BUILT)
@torch.no_grad()
def test_operator(race: Callable[..., Any]) -> None:
    feat, coord, cell, weights, biases = _query()
    p = project(feat, weights[0], biases[0], True, (0, 0, 2, 2), None)
    decode = torch.ops.liif_fast.decode.default

    race(
        "operator",
        "one call of torch.ops.liif_fast.decode, one query",
        lambda: decode(p, coord, cell, weights, biases, True, (0, 0), None)[0],
        {},
        liif_decode(feat, coord, cell, weights, biases, backend="reference"),
        rounds=ROUNDS,
    )


@torch.no_grad()
def test_function(race: Callable[..., Any]) -> None:
    query = _query()
    race(
        "function",
        "one call of liif_decode, one query",
        lambda: liif_decode(*query),
        {EAGER: lambda: eager.decode(*query), FACTORISED: lambda: liif_decode(*query, backend="torch")},
        liif_decode(*query, backend="reference"),
        rounds=ROUNDS,
    )
