"""Measure how time and memory grow with queries, latents, batch and threads, with a race at each size."""

from typing import Any

import pytest
import torch

from benchmarks import common, eager, rivals
from benchmarks.bench import Bench, rows
from benchmarks.common import EAGER, FACTORISED, REFERENCE, Raced, backends, make_problem, make_queries
from liif_fast.functional import liif_decode

NARROW = {"channels": 8, "hidden": (32,) * 4}  # so that a million queries do not take long
FEW = 1 << 16  # queries beyond which variants that keep everything are left out
MOST = torch.get_num_threads()
CHECKED = 4096  # queries that are compared; they suffice, because queries are independent
LEFT_OUT = "left out: it keeps everything of every query"

Calls = dict[str, common.Call]


def decoding(problem: common.Problem, queries: tuple[torch.Tensor, torch.Tensor]) -> Calls:
    """Return the calls of a race in decoding; each returns only the first queries, for the comparison."""
    feat, weights, biases = problem
    places = queries if queries[0].shape[1] <= FEW else [each[:, :CHECKED] for each in queries]

    @torch.no_grad()
    def run(backend: str) -> torch.Tensor:
        given = places if backend == "reference" else queries
        return liif_decode(feat, *given, weights, biases, backend=backend)[:, :CHECKED]

    return backends(run) | {EAGER: lambda: eager.decode_chunks(feat, queries, weights, biases)[:, :CHECKED]}


def training(problem: common.Problem, queries: tuple[torch.Tensor, torch.Tensor]) -> Calls:
    """Return the calls of a race in training."""
    problem.feat.requires_grad_()
    grad = torch.randn(*queries[0].shape[:2], 3, device=problem.feat.device)
    return rivals.training(problem, queries, grad, compiled=False)


def inputs(bench: Bench, batch: int, count: int, side: int, **network: Any) -> tuple[Any, Any]:
    """Return a problem and queries on its map."""
    problem = make_problem((side, side), batch=batch, device=bench.device, **network)
    return problem, make_queries(batch, count, side, bench.device)


def grow(bench: Bench, axis: str, size: int, title: str, calls: Calls, name: str = "", **options: Any) -> Raced:
    """Run the race at one size of a series."""
    raced = bench.race(f"growth-{name or axis}", title, calls, rounds=7, seconds=1.5, **options)
    raced.result.update(axis=axis, size=size)
    return raced


def powers(low: int, high: int, step: int) -> list[tuple[int]]:
    """Return low, low * step, ... up to high, each as a case."""
    return [(low,), *powers(low * step, high, step)] if low <= high else []


@rows(EAGER, FACTORISED, cases=powers(1 << 10, 1 << 20, 4), ids="{}")
def test_growth_queries(bench: Bench, queries: int) -> Raced:
    few = queries <= 1 << 16
    count = bench.pick(queries, queries if few else None, queries >> 6 if few else None)
    left_out = {REFERENCE: LEFT_OUT} if count > FEW else {}
    title = "decode against queries, 64x64, C = 8, hidden 32 x 4"
    calls = decoding(*inputs(bench, 1, count, 64, **NARROW))
    return grow(bench, "queries", count, title, calls, left_out=left_out)


@rows(EAGER, FACTORISED, cases=powers(1 << 10, 1 << 20, 4), ids="{}")
def test_growth_training(bench: Bench, queries: int) -> Raced:
    count = bench.pick(queries, None, queries >> 6 if queries <= 1 << 12 else None)
    left_out = dict.fromkeys((REFERENCE, EAGER), LEFT_OUT) if count > FEW else {}
    title = "forward + backward against queries, 64x64, C = 8, hidden 32 x 4"
    calls = training(*inputs(bench, 1, count, 64, **NARROW))
    return grow(bench, "queries", count, title, calls, name="training", left_out=left_out)


@rows(EAGER, FACTORISED, cases=powers(32, 512, 2), ids="{0}x{0}")
def test_growth_latents(bench: Bench, side: int) -> Raced:
    side = bench.pick(side, None, side >> 3 if side <= 64 else None)
    calls = decoding(*inputs(bench, 1, bench.pick(4096, None, 50), side, hidden=bench.hidden))
    return grow(bench, "latents", side * side, "decode of 4,096 queries against latents (H x W)", calls)


@rows(EAGER, FACTORISED, cases=powers(1, 16, 2), ids="{}")
def test_growth_batch(bench: Bench, batch: int) -> Raced:
    count = bench.pick(2304, None, 20 if batch <= 2 else None)
    title = f"forward + backward against batch, Q = {count:,}, 48x48, C = 8, hidden 32 x 4"
    return grow(bench, "batch", batch, title, training(*inputs(bench, batch, count, 48, **NARROW)))


@rows(EAGER, FACTORISED, cases=[*powers(1, MOST - 1, 2), (MOST,)], ids="{}")
def test_growth_threads(bench: Bench, threads: int) -> Raced:
    if bench.device.type != "cpu":
        pytest.skip("threads are the CPU's")
    calls = decoding(*inputs(bench, 1, bench.pick(8192, None, 50), 48, hidden=bench.hidden))
    torch.set_num_threads(threads)
    try:
        return grow(bench, "threads", threads, "decode of 8,192 queries of 48x48 against threads", calls)
    finally:
        torch.set_num_threads(MOST)
