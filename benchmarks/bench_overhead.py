"""Measure the host time of a call that computes almost nothing, and calls of few queries with the paper's network."""

from functools import partial
from typing import Any

import pytest
import torch

from benchmarks import eager
from benchmarks.bench import Bench, rows
from benchmarks.common import EAGER, FACTORISED, OURS, REFERENCE, Raced, backends, make_problem, make_queries
from benchmarks.records import NOT_BUILT, isa
from liif_fast.functional import liif_decode
from liif_fast.ops.project import project

ROUNDS = 15
COMPARED = "liif_fast, weights compared first"


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


@rows(COMPARED, EAGER, FACTORISED, cases=[(1,), (4,), (24,), (64,), (256,), (1024,)], ids="{}")
@torch.no_grad()
def test_few_queries(bench: Bench, queries: int) -> Raced:
    """Also race calls that first compare the weights with a copy, as every cache of packed weights would have to."""
    side = bench.pick(48, 48, 7)
    feat, weights, biases = make_problem((side, side), hidden=bench.hidden)
    coord, cell = make_queries(1, queries, side)
    kept = [each.clone() for each in weights[1:]]
    run = partial(liif_decode, feat, coord, cell, weights, biases)

    def compared() -> torch.Tensor:
        assert all(map(torch.equal, kept, weights[1:]))
        return run(backend="auto")

    calls = backends(run) | {COMPARED: compared, EAGER: lambda: eager.decode(feat, coord, cell, weights, biases)}
    return bench.race(f"few-{queries}", f"liif_decode of {queries:,} queries, {side}x{side}", calls, rounds=ROUNDS)
