"""Time and memory against queries, latents, batch and threads, with the exponent of each."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from benchmarks import common, eager, growth, rivals
from benchmarks.common import EAGER, FACTORISED, make_problem, make_queries
from liif_fast.functional import liif_decode

NARROW = {"channels": 8, "hidden": (32,) * 4}  # so that a million queries do not take long
EAGER_KEEPS = 1 << 16  # queries in training, beyond which the plain formula, which keeps everything, does not take part
CHECKED = 4096  # queries that are compared with the reference; one does not depend on another

Point = tuple[common.Call, dict[str, common.Call], common.Result]


@pytest.fixture
def grow(
    pick: Callable[..., Any], report: Callable[[dict[str, Any]], None]
) -> Callable[[str, str, str, Sequence[int], Callable[[int], Point]], None]:
    """grow(name, title, axis, sizes, point): race at each size, and report the series."""

    def run(name: str, title: str, axis: str, sizes: Sequence[int], point: Callable[[int], Point]) -> None:
        results = []
        for size in sizes:
            ours, others, expected = point(size)
            seconds, rounds = pick(1.5, 0.5, 0.0), pick(7, 3, 1)
            results.append(common.race(None, name, title, ours, others, expected, rounds=rounds, seconds=seconds))
        series: dict[str, Any] = {}
        for variant in dict.fromkeys(each for result in results for each in result["figures"]):
            figures = [result["figures"].get(variant, {}) for result in results]
            series[variant] = {
                key: [f.get(key) for f in figures] for key in ("q20", "median", "q80", "memory", "error")
            }
            series[variant]["exponent"] = growth.exponent(sizes, series[variant]["median"])
            series[variant]["memory_exponent"] = growth.exponent(sizes, series[variant]["memory"])
        missing = {each: why for result in results for each, why in result["missing"].items()}
        rounds = min(result["rounds"] for result in results)
        report(
            {
                "name": f"growth-{name}",
                "title": title,
                "unit": "s",
                "rounds": rounds,
                "axis": axis,
                "sizes": list(sizes),
                "series": series,
                "figures": {},
                "missing": missing,
            }
        )

    return run


def decoding(problem: common.Problem, queries: tuple[torch.Tensor, torch.Tensor]) -> Point:
    """Return what races in decoding; all give the first queries only, which are compared."""

    def first(decode: Callable[..., torch.Tensor], **options: Any) -> common.Call:
        @torch.no_grad()
        def run() -> torch.Tensor:
            return decode(problem.feat, *queries, problem.weights, problem.biases, **options)[:, :CHECKED]

        return run

    @torch.no_grad()
    def plain() -> torch.Tensor:
        return eager.decode_chunks(problem.feat, queries, problem.weights, problem.biases)[:, :CHECKED]

    few = [each[:, :CHECKED] for each in queries]
    with torch.no_grad():
        expected = liif_decode(problem.feat, *few, problem.weights, problem.biases, backend="reference")
    return first(liif_decode), {EAGER: plain, FACTORISED: first(liif_decode, backend="torch")}, expected


def training(problem: common.Problem, queries: tuple[torch.Tensor, torch.Tensor]) -> Point:
    """Return what races in training."""
    problem.feat.requires_grad_()
    grad = torch.randn(*queries[0].shape[:2], 3, device=problem.feat.device)
    others = rivals.training(problem, queries, grad, compiled=False)
    if queries[0].numel() > 2 * EAGER_KEEPS:
        del others[EAGER]
    return rivals.step(liif_decode, problem, queries, grad), others, rivals.expected_gradients(problem, queries, grad)


def powers(low: int, high: int, step: int) -> list[int]:
    """Return low, low * step, ... up to high."""
    return [low, *powers(low * step, high, step)] if low <= high else []


def test_queries(device: torch.device, grow: Callable[..., None], pick: Callable[..., Any]) -> None:
    problem = make_problem((64, 64), device=device, **NARROW)
    sizes = powers(*pick((1 << 10, 1 << 20, 4), (1 << 12, 1 << 16, 4), (16, 64, 2)))
    grow(
        "queries",
        "decode against queries, 64x64, C = 8, hidden 32 x 4",
        "queries",
        sizes,
        lambda count: decoding(problem, make_queries(1, count, 64, device)),
    )


def test_training_queries(device: torch.device, grow: Callable[..., None], pick: Callable[..., Any]) -> None:
    sizes = powers(*pick((1 << 10, 1 << 20, 4), None, (16, 64, 2)))
    grow(
        "training",
        "forward + backward against queries, 64x64, C = 8, hidden 32 x 4",
        "queries",
        sizes,
        lambda count: training(make_problem((64, 64), device=device, **NARROW), make_queries(1, count, 64, device)),
    )


def test_latents(device: torch.device, grow: Callable[..., None], pick: Callable[..., Any]) -> None:
    def point(latents: int) -> Point:
        side = round(latents**0.5)
        queries = make_queries(1, pick(4096, 4096, 50), side, device)
        return decoding(
            make_problem((side, side), hidden=pick((256,) * 4, (256,) * 4, (16, 16)), device=device), queries
        )

    sides = pick((32, 64, 128, 256, 512), None, (4, 8, 16))
    grow("latents", "decode of 4,096 queries against latents (H x W)", "latents", [side**2 for side in sides], point)


def test_batch(device: torch.device, grow: Callable[..., None], pick: Callable[..., Any]) -> None:
    count = pick(2304, None, 20)
    grow(
        "batch",
        f"forward + backward against batch, Q = {count:,}, 48x48, C = 8, hidden 32 x 4",
        "batch",
        pick((1, 2, 4, 8, 16), None, (1, 2, 3)),
        lambda batch: training(
            make_problem((48, 48), batch=batch, device=device, **NARROW), make_queries(batch, count, 48, device)
        ),
    )


def test_threads(device: torch.device, grow: Callable[..., None], pick: Callable[..., Any]) -> None:
    if device.type != "cpu":
        pytest.skip("threads are the CPU's")
    most = torch.get_num_threads()
    problem = make_problem((48, 48), hidden=pick((256,) * 4, (256,) * 4, (16, 16)))
    queries = make_queries(1, pick(8192, None, 50), 48)

    def point(threads: int) -> Point:
        torch.set_num_threads(threads)
        return decoding(problem, queries)

    try:
        counts = [*powers(1, most - 1, 2), most]
        grow("threads", "decode of 8,192 queries of 48x48 against threads", "threads", counts, point)
    finally:
        torch.set_num_threads(most)
