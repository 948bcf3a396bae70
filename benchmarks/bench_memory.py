"""Measure the peak memory of rendering a large image and of a training step in which every pixel is a query.

The render uses a narrow network to save time.
"""

from typing import Any

import pytest
import torch

from benchmarks import eager, memory, rivals
from benchmarks.bench import Bench
from benchmarks.common import EAGER, FACTORISED, OURS, Call, check, make_problem, make_queries
from liif_fast.functional import liif_decode, liif_render

pytestmark = pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="needs Linux's /proc to measure a peak")
SCALE = 4
QUANTILES = ("q20", "median", "q80")
ROWS = 8  # rows that are checked at the top, in the middle and at the bottom
BATCH, SIDE, EVERY_PIXEL = 16, 48, 192 * 192  # a training step at x4 with 589,824 queries


@pytest.mark.parametrize("latents", [188, 375])
@torch.no_grad()
def test_memory(latents: int, bench: Bench) -> None:
    side = bench.pick(latents, latents if latents == 188 else None, latents // 20)
    size = side * SCALE
    feat, weights, biases = make_problem((side, side), channels=4, hidden=(16,) * 4, device=bench.device)
    queries = eager.grid((size, size), feat)
    p = side * side * weights[0].shape[0] * 4

    def render(**options: Any) -> torch.Tensor:
        return liif_render(feat, (size, size), weights, biases, **options).flatten(2).transpose(1, 2)

    def error(out: torch.Tensor) -> float:
        tops = [top for top in (0, size // 2, size - ROWS) if (top + ROWS) * size <= out.shape[1]]
        regions = [(out[:, top * size : (top + ROWS) * size], (top, 0, ROWS, size)) for top in tops]
        return max(check(got, render(region=place, backend="reference"))["error"] for got, place in regions)

    calls: dict[str, Call] = {
        OURS: render,
        FACTORISED: lambda: render(backend="torch"),
        # All chunks of the plain formula take the same memory, so two of them give a lower bound.
        EAGER: lambda: eager.decode_chunks(feat, queries, weights, biases, chunks=2),
    }
    figures: dict[str, Any] = {}
    for name, call in calls.items():
        out, figures[name] = _measure(call, bench)
        figures[name] |= {"p": 0.0 if name == EAGER else round(p / 2**20, 1), "error": error(out)}
    _report(bench, f"memory-{latents}", f"memory beyond the output, render x{SCALE} of {size}x{size}", figures)


def test_training_memory(bench: Bench) -> None:
    bench.long(bench.device.type == "cpu")
    batch, side, count = bench.pick(BATCH, None, 1), bench.pick(SIDE, None, 7), bench.pick(EVERY_PIXEL, None, 160)
    problem = make_problem((side, side), batch=batch, hidden=bench.hidden, device=bench.device)
    problem.feat.requires_grad_()
    queries = make_queries(batch, count, side, bench.device)
    grad = torch.randn(batch, count, 3, device=bench.device)
    # The plain formula keeps all activations of every query, so a sixteenth of the queries suffices; all might not fit.
    some = count // BATCH
    figures: dict[str, Any] = {}
    for name, decode, part, times in ((OURS, liif_decode, count, 1), (EAGER, eager.decode, some, BATCH)):
        places = (queries[0][:, :part], queries[1][:, :part])
        result, figures[name] = _measure(rivals.step(decode, problem, places, grad[:, :part]), bench, times)
        figures[name] |= check(result, rivals.expected_gradients(problem, places, grad[:, :part]))
        del result
    title = f"memory beyond the gradients, forward + backward, {batch} x {count:,} queries"
    note = f"plain, eager: {BATCH} times what {some:,} queries an image take"
    _report(bench, "memory-training", title, figures, notes=[note])


def _measure(call: Call, bench: Bench, times: int = 1) -> tuple[Any, dict[str, Any]]:
    """Return a call's result and its peak memory times `times`."""
    call()  # starts the threads and loads the libraries
    result, peak, _ = memory.peak(call, bench.device)
    assert peak is not None
    return result, {**dict.fromkeys(QUANTILES, round(times * peak / 2**20, 1)), "checked": True}


def _report(bench: Bench, name: str, title: str, figures: dict[str, Any], **more: Any) -> None:
    for rival in figures.keys() - {OURS}:
        ratio = float(f"{figures[rival]['median'] / max(figures[OURS]['median'], 0.1):.4g}")
        figures[rival]["ratio"] = dict.fromkeys(QUANTILES, ratio)
    common = {"unit": "MiB", "rounds": 1, "figures": figures, "missing": {}}
    bench.results.append({"name": name, "title": title, **common, **more})
