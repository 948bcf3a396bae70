"""Measure the host time of a call with almost nothing to compute: one query, a network of width 16."""

from functools import partial
from typing import Any

import pytest
import torch

from benchmarks import eager
from benchmarks.bench import Bench, rows
from benchmarks.common import EAGER, FACTORISED, OURS, REFERENCE, Raced, backends, make_problem
from benchmarks.records import NOT_BUILT, isa
from liif_fast.functional import liif_decode
from liif_fast.ops.project import project

ROUNDS = 15


def _query() -> tuple[Any, ...]:
    feat, weights, biases = make_problem((2, 2), channels=4, hidden=(16,) * 4)
    return feat, torch.rand(1, 1, 2), torch.full((1, 1, 2), 0.5), weights, biases


@rows()
@torch.no_grad()
def test_operator(bench: Bench) -> Raced:
    if isa() == NOT_BUILT:
        pytest.skip(NOT_BUILT)
    feat, coord, cell, weights, biases = _query()
    p = project(feat, weights[0], biases[0], True, (0, 0, 2, 2), None)
    decode = torch.ops.liif_fast.decode.default

    return bench.race(
        "operator",
        "one call of torch.ops.liif_fast.decode, one query",
        {
            OURS: lambda: decode(p, coord, cell, weights, biases, True, (0, 0), None)[0],
            REFERENCE: lambda: liif_decode(feat, coord, cell, weights, biases, backend="reference"),
        },
        rounds=ROUNDS,
    )


@rows(EAGER, FACTORISED)
@torch.no_grad()
def test_function(bench: Bench) -> Raced:
    query = _query()
    return bench.race(
        "function",
        "one call of liif_decode, one query",
        backends(partial(liif_decode, *query)) | {EAGER: lambda: eager.decode(*query)},
        rounds=ROUNDS,
    )
