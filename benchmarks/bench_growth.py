"""Time and memory against queries, latents, batch and threads, with the exponent of each: a race at each size."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks import common, eager, rivals
from benchmarks.bench import BENCH, Bench, Row, variants
from benchmarks.common import EAGER, FACTORISED, OURS, REFERENCE, Raced, make_problem, make_queries
from liif_fast.functional import liif_decode

NARROW = {"channels": 8, "hidden": (32,) * 4}  # so that a million queries do not take long
FEW = 1 << 16  # queries beyond which what keeps everything does not take part
CHECKED = 4096  # queries of a decoding that are compared; one does not depend on another
LEFT_OUT = "left out: it keeps everything of every query"

Calls = dict[str, common.Call]


def decoding(problem: common.Problem, queries: tuple[torch.Tensor, torch.Tensor]) -> Calls:
    """Return what races in decoding; all give the first queries only, which are compared."""
    feat, weights, biases = problem
    places = queries if queries[0].shape[1] <= FEW else [each[:, :CHECKED] for each in queries]

    def first(decode: Callable[[], torch.Tensor]) -> common.Call:
        decode = torch.no_grad()(decode)
        return lambda: decode()[:, :CHECKED]

    return {
        OURS: first(lambda: liif_decode(feat, *queries, weights, biases)),
        REFERENCE: first(lambda: liif_decode(feat, *places, weights, biases, backend="reference")),
        EAGER: first(lambda: eager.decode_chunks(feat, queries, weights, biases)),
        FACTORISED: first(lambda: liif_decode(feat, *queries, weights, biases, backend="torch")),
    }


def training(problem: common.Problem, queries: tuple[torch.Tensor, torch.Tensor]) -> Calls:
    """Return what races in training."""
    problem.feat.requires_grad_()
    grad = torch.randn(*queries[0].shape[:2], 3, device=problem.feat.device)
    return rivals.training(problem, queries, grad, compiled=False)


def inputs(bench: Bench, batch: int, count: int, side: int, **network: Any) -> tuple[Any, Any]:
    """Return a problem and queries of it."""
    problem = make_problem((side, side), batch=batch, device=bench.device, **network)
    return problem, make_queries(batch, count, side, bench.device)


def of_threads(threads: int, bench: Bench) -> Calls:
    if bench.device.type != "cpu":
        pytest.skip("threads are the CPU's")
    torch.set_num_threads(threads)
    return decoding(*inputs(bench, 1, bench.pick(8192, 8192, 50), 48, hidden=bench.hidden))


def powers(low: int, high: int, step: int) -> list[int]:
    """Return low, low * step, ... up to high."""
    return [low, *powers(low * step, high, step)] if low <= high else []


class Series(NamedTuple):
    """What is measured at several sizes."""

    title: str
    axis: str
    calls: Callable[[int, Bench], Calls]
    sizes: tuple[Sequence[int], Sequence[int], Sequence[int]]  # full, --quick, --check


THREADS = [*powers(1, torch.get_num_threads() - 1, 2), torch.get_num_threads()]
SERIES = {
    "queries": Series(
        "decode against queries, 64x64, C = 8, hidden 32 x 4",
        "queries",
        lambda count, bench: decoding(*inputs(bench, 1, count, 64, **NARROW)),
        (powers(1 << 10, 1 << 20, 4), powers(1 << 12, 1 << 16, 4), (16, 32, 64)),
    ),
    "training": Series(
        "forward + backward against queries, 64x64, C = 8, hidden 32 x 4",
        "queries",
        lambda count, bench: training(*inputs(bench, 1, count, 64, **NARROW)),
        (powers(1 << 10, 1 << 20, 4), (), (16, 32, 64)),
    ),
    "latents": Series(
        "decode of 4,096 queries against latents (H x W)",
        "latents",
        lambda latents, bench: decoding(
            *inputs(bench, 1, bench.pick(4096, 4096, 50), round(latents**0.5), hidden=bench.hidden)
        ),
        (powers(1 << 10, 1 << 18, 4), (), (16, 64, 256)),
    ),
    "batch": Series(
        "forward + backward against batch, Q = 2,304, 48x48, C = 8, hidden 32 x 4",
        "batch",
        lambda batch, bench: training(*inputs(bench, batch, bench.pick(2304, 2304, 20), 48, **NARROW)),
        ((1, 2, 4, 8, 16), (), (1, 2, 3)),
    ),
    "threads": Series(
        "decode of 8,192 queries of 48x48 against threads", "threads", of_threads, (THREADS, (), THREADS)
    ),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    pick = metafunc.config.stash[BENCH].pick
    points = [(name, size) for name, each in SERIES.items() for size in pick(*each.sizes)]
    metafunc.parametrize("point", points, ids=lambda point: "{} {}".format(*point), indirect=True, scope="module")


@pytest.fixture(scope="module")
def point(request: pytest.FixtureRequest, bench: Bench) -> Iterator[Raced]:
    """One size of a series."""
    name, size = request.param
    series, most = SERIES[name], torch.get_num_threads()
    try:
        calls = series.calls(size, bench)
        left_out = {}
        if size > FEW:
            left_out = {"queries": {REFERENCE: LEFT_OUT}, "training": {REFERENCE: LEFT_OUT, EAGER: LEFT_OUT}}.get(name)
        raced = bench.race(f"growth-{name}", series.title, calls, rounds=7, seconds=1.5, left_out=left_out)
        raced.result.update(axis=series.axis, size=size)
        yield raced
    finally:
        torch.set_num_threads(most)


@variants(EAGER, FACTORISED)
def test_growth(point: Raced, row: Row) -> None:
    row(point)
