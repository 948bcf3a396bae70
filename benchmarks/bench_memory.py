"""Peak memory of rendering a large image, with a network so narrow that it does not take long."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import eager, memory
from benchmarks.common import EAGER, FACTORISED, OURS, check, make_problem
from liif_fast.functional import liif_render

SCALE = 4
ROWS = 8  # rows that are checked, at the top, in the middle and at the bottom


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
