"""Peak memory of rendering a large image, with a network so narrow that it does not take long, and of a training step
in which every pixel is a query."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import eager, memory, rivals
from benchmarks.common import EAGER, FACTORISED, OURS, check, make_problem, make_queries
from liif_fast.functional import liif_decode, liif_render

SCALE = 4
ROWS = 8  # rows that are checked, at the top, in the middle and at the bottom
BATCH, SIDE, EVERY_PIXEL = 16, 48, 192 * 192  # of a training step at x4; 589,824 queries


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="needs Linux's /proc to measure a peak")
@pytest.mark.parametrize("latents", [188, 375])
@torch.no_grad()
def test_memory(
    latents: int, device: torch.device, pick: Callable[..., Any], report: Callable[[dict[str, Any]], None]
) -> None:
    side = pick(latents, latents if latents == 188 else None, latents // 20)
    size = side * SCALE
    feat, weights, biases = make_problem((side, side), channels=4, hidden=(16,) * 4, device=device)
    queries = eager.grid((size, size), feat)
    p = side * side * weights[0].shape[0] * 4
    variants: dict[str, Callable[[], torch.Tensor]] = {
        OURS: lambda: liif_render(feat, (size, size), weights, biases),
        FACTORISED: lambda: liif_render(feat, (size, size), weights, biases, backend="torch"),
        # All chunks of the plain formula are alike, so that two of them tell, as a lower bound.
        EAGER: lambda: eager.decode_chunks(feat, queries, weights, biases, chunks=2),
    }
    figures: dict[str, Any] = {}
    for name, call in variants.items():
        call()  # starts the threads and loads the libraries
        out, peak, _ = memory.peak(call, device)
        assert peak is not None
        once = dict.fromkeys(("q20", "median", "q80"), round(peak / 2**20, 1))
        figures[name] = {**once, "p": 0.0 if name == EAGER else round(p / 2**20, 1), "checked": True}
        flat = out if name == EAGER else out.flatten(2).transpose(1, 2)
        figures[name]["error"] = max(
            check(flat[:, top * size : (top + ROWS) * size], wanted)["error"]
            for top in (0, size // 2, size - ROWS)
            if (top + ROWS) * size <= flat.shape[1]
            for wanted in [
                liif_render(feat, (size, size), weights, biases, region=(top, 0, ROWS, size), backend="reference")
                .flatten(2)
                .transpose(1, 2)
            ]
        )
    for name in (FACTORISED, EAGER):
        ratio = float(f"{figures[name]['median'] / max(figures[OURS]['median'], 0.1):.4g}")
        figures[name]["ratio"] = dict.fromkeys(("q20", "median", "q80"), ratio)
    title = f"memory beyond the output, render x{SCALE} of {size}x{size}"
    report({"name": f"memory-{latents}", "title": title, "unit": "MiB", "rounds": 1, "figures": figures, "missing": {}})


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="needs Linux's /proc to measure a peak")
def test_training_memory(
    device: torch.device,
    pick: Callable[..., Any],
    long: Callable[[bool], None],
    report: Callable[[dict[str, Any]], None],
) -> None:
    long(device.type == "cpu")
    batch, side, count = pick(BATCH, None, 1), pick(SIDE, None, 7), pick(EVERY_PIXEL, None, 160)
    problem = make_problem((side, side), batch=batch, hidden=pick((256,) * 4, None, (16, 16)), device=device)
    problem.feat.requires_grad_()
    queries, grad = make_queries(batch, count, side, device), torch.randn(batch, count, 3, device=device)
    # The plain formula keeps everything of every query: a sixteenth of them tells, where all might not fit.
    some = tuple(each[:, : count // BATCH] for each in queries)
    part = grad[:, : count // BATCH]
    figures: dict[str, Any] = {}
    for name, decode, places, at_output, times in (
        (OURS, liif_decode, queries, grad, 1),
        (EAGER, eager.decode, some, part, BATCH),
    ):
        call = rivals.step(decode, problem, places, at_output)
        call()
        result, peak, _ = memory.peak(call, device)
        assert peak is not None
        errors = check(result, rivals.expected_gradients(problem, places, at_output))
        figures[name] = {**dict.fromkeys(("q20", "median", "q80"), round(times * peak / 2**20, 1)), "checked": True}
        figures[name] |= errors
        del result
    ratio = float(f"{figures[EAGER]['median'] / max(figures[OURS]['median'], 0.1):.4g}")
    figures[EAGER]["ratio"] = dict.fromkeys(("q20", "median", "q80"), ratio)
    title = f"memory beyond the gradients, forward + backward, {batch} x {count:,} queries"
    notes = [f"plain, eager: {BATCH} times what {count // BATCH:,} queries an image take"]
    common = {"title": title, "unit": "MiB", "rounds": 1, "figures": figures, "missing": {}, "notes": notes}
    report({"name": "memory-training", **common})
