"""Time and memory against queries, latents, batch and threads, with the exponent of each: a race at each size."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks import common, eager, rivals
from benchmarks.common import EAGER, FACTORISED, OURS, REFERENCE, Raced, make_problem, make_queries
from liif_fast.functional import liif_decode

NARROW = {"channels": 8, "hidden": (32,) * 4}  # so that a million queries do not take long
FEW = 1 << 16  # queries beyond which what keeps everything does not take part
CHECKED = 4096  # queries of a decoding that are compared; one does not depend on another
LEFT_OUT = "left out: it keeps everything of every query"

Pick = Callable[..., Any]
Calls = dict[str, common.Call]


def decoding(problem: common.Problem, queries: tuple[torch.Tensor, torch.Tensor]) -> Calls:
    """Return what races in decoding; all give the first queries only, which are compared."""

    def first(decode: Callable[..., torch.Tensor], **options: Any) -> common.Call:
        @torch.no_grad()
        def run() -> torch.Tensor:
            return decode(problem.feat, *queries, problem.weights, problem.biases, **options)[:, :CHECKED]

        return run

    @torch.no_grad()
    def plain() -> torch.Tensor:
        return eager.decode_chunks(problem.feat, queries, problem.weights, problem.biases)[:, :CHECKED]

    @torch.no_grad()
    def reference() -> torch.Tensor:
        places = queries if queries[0].shape[1] <= FEW else [each[:, :CHECKED] for each in queries]
        return liif_decode(problem.feat, *places, problem.weights, problem.biases, backend="reference")[:, :CHECKED]

    return {
        OURS: first(liif_decode),
        REFERENCE: reference,
        EAGER: plain,
        FACTORISED: first(liif_decode, backend="torch"),
    }


def training(problem: common.Problem, queries: tuple[torch.Tensor, torch.Tensor]) -> Calls:
    """Return what races in training."""
    problem.feat.requires_grad_()
    grad = torch.randn(*queries[0].shape[:2], 3, device=problem.feat.device)
    return rivals.training(problem, queries, grad, compiled=False)


def of_queries(count: int, pick: Pick, device: torch.device) -> Calls:
    return decoding(make_problem((64, 64), device=device, **NARROW), make_queries(1, count, 64, device))


def of_training(count: int, pick: Pick, device: torch.device) -> Calls:
    return training(make_problem((64, 64), device=device, **NARROW), make_queries(1, count, 64, device))


def of_latents(latents: int, pick: Pick, device: torch.device) -> Calls:
    side, hidden = round(latents**0.5), pick((256,) * 4, (256,) * 4, (16, 16))
    queries = make_queries(1, pick(4096, 4096, 50), side, device)
    return decoding(make_problem((side, side), hidden=hidden, device=device), queries)


def of_batch(batch: int, pick: Pick, device: torch.device) -> Calls:
    queries = make_queries(batch, pick(2304, 2304, 20), 48, device)
    return training(make_problem((48, 48), batch=batch, device=device, **NARROW), queries)


def of_threads(threads: int, pick: Pick, device: torch.device) -> Calls:
    if device.type != "cpu":
        pytest.skip("threads are the CPU's")
    torch.set_num_threads(threads)
    hidden = pick((256,) * 4, (256,) * 4, (16, 16))
    return decoding(make_problem((48, 48), hidden=hidden), make_queries(1, pick(8192, 8192, 50), 48))


def powers(low: int, high: int, step: int) -> list[int]:
    """Return low, low * step, ... up to high."""
    return [low, *powers(low * step, high, step)] if low <= high else []


class Series(NamedTuple):
    """What is measured at several sizes."""

    title: str
    axis: str
    point: Callable[[int, Pick, torch.device], Calls]
    sizes: tuple[Sequence[int], Sequence[int], Sequence[int]]  # full, --quick, --check


def series() -> dict[str, Series]:
    """Return all series, by name."""
    threads = torch.get_num_threads()
    counts = [*powers(1, threads - 1, 2), threads]
    return {
        "queries": Series(
            "decode against queries, 64x64, C = 8, hidden 32 x 4",
            "queries",
            of_queries,
            (powers(1 << 10, 1 << 20, 4), powers(1 << 12, 1 << 16, 4), (16, 32, 64)),
        ),
        "training": Series(
            "forward + backward against queries, 64x64, C = 8, hidden 32 x 4",
            "queries",
            of_training,
            (powers(1 << 10, 1 << 20, 4), (), (16, 32, 64)),
        ),
        "latents": Series(
            "decode of 4,096 queries against latents (H x W)",
            "latents",
            of_latents,
            (powers(1 << 10, 1 << 18, 4), (), (16, 64, 256)),
        ),
        "batch": Series(
            "forward + backward against batch, Q = 2,304, 48x48, C = 8, hidden 32 x 4",
            "batch",
            of_batch,
            ((1, 2, 4, 8, 16), (), (1, 2, 3)),
        ),
        "threads": Series(
            "decode of 8,192 queries of 48x48 against threads",
            "threads",
            of_threads,
            (counts, (), counts),
        ),
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    points = [(name, size) for name, each in series().items() for size in common.pick(metafunc.config, *each.sizes)]
    metafunc.parametrize("point", points, ids=lambda point: "{} {}".format(*point), indirect=True, scope="module")


@pytest.fixture(scope="module")
def point(
    request: pytest.FixtureRequest, device: torch.device, race: Callable[..., Raced], pick: Pick
) -> Iterator[Raced]:
    """One size of a series."""
    name, size = request.param
    most = torch.get_num_threads()
    title, axis, make, _ = series()[name]
    try:
        calls = make(size, pick, device)
        left_out = dict.fromkeys((REFERENCE, EAGER), LEFT_OUT) if name == "training" and size > FEW else {}
        if name == "queries" and size > FEW:
            left_out = {REFERENCE: LEFT_OUT}
        raced = race(f"growth-{name}", title, calls, rounds=7, seconds=1.5, left_out=left_out)
        raced.result.update(axis=axis, size=size)
        yield raced
    finally:
        torch.set_num_threads(most)


@pytest.mark.variants(EAGER, FACTORISED)
def test_growth(point: Raced, row: Callable[[Raced], None]) -> None:
    row(point)
