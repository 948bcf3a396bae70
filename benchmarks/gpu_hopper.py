"""Compare the two variants of the Hopper kernel, as a section of gpu_check.py."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_sections
from benchmarks.limits import decode_work
from liif_fast import functional
from liif_fast.backends import cuda

CLUSTERS = (1, 2)  # cuda.CLUSTER: blocks that share the copying of the weights


def hopper(check: bool) -> dict[str, Any]:
    """Return the bits and times of the unicast and the multicast variant, by which cuda.CLUSTER should be chosen.

    On a CPU the backend `torch` replaces both, to show that the code runs.
    """
    backend = "torch" if check else "cuda"
    feat, weights, biases = gpu_sections._problem(check, 48, 1, torch.float16)
    coord, cell = gpu_sections._queries(check, 1, 1000)
    answers = functional.explain(feat, coord, cell, weights, biases).answers
    refused = [reason for name, can, reason in answers if name == backend and not can]
    if refused:
        return {"missing": refused[0], "ok": False}
    chosen = cuda.CLUSTER
    try:
        with torch.no_grad():
            bits = _bits(check, backend)
            gpu_sections.keep({"bits": bits})
            tune = _tune(check, backend)
    finally:
        cuda.CLUSTER = chosen
    flat = {f"{case}, cluster {c}": found for case, times in tune.items() for c, found in times.items()}
    timed = {case: {c: f["ms"]["median"] for c, f in times.items() if "ms" in f} for case, times in tune.items()}
    best = {case: min(medians, key=medians.__getitem__) for case, medians in timed.items() if medians}
    ok = not any(bits.values()) and all("ms" in found for found in flat.values())
    return {"bits": bits, "tune": flat, "best": best, "ok": ok}


def _with(cluster: int, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        cuda.CLUSTER = cluster
        return call()

    return run


def _bits(check: bool, backend: str) -> dict[str, int]:
    """Return how many of 250 runs of each case and variant differ in any bit from the first unicast run."""
    differ = {}
    for dtype in (torch.float16, torch.bfloat16):
        for ensemble in (True, False):
            feat, weights, biases = gpu_sections._problem(check, 48, 2, dtype)
            options: dict[str, Any] = {"local_ensemble": ensemble, "backend": backend}
            for queries in (1, 63, 1000, 30_001):  # a tile with few rows, an odd number of tiles, several rounds
                coord, cell = gpu_sections._queries(check, 2, queries)
                decode = partial(functional.liif_decode, feat, coord, cell, weights, biases, **options)
                first = _with(1, decode)()
                runs = [_with(cluster, decode) for cluster in CLUSTERS for _ in range(2 if check else 250)]
                name = f"{str(dtype).removeprefix('torch.')}, ensemble {ensemble}, {queries} queries"
                differ[name] = sum(not torch.equal(run(), first) for run in runs)
    return differ


def _tune(check: bool, backend: str) -> dict[str, dict[str, Any]]:
    """Measure both variants, from a call with one round of tiles to a 4K frame."""
    feat, weights, biases = gpu_sections._problem(check, 48, 1, torch.float16)
    large = torch.randn(1, 64, *((7, 9) if check else (540, 960)), device=feat.device, dtype=feat.dtype)
    frame = (large.shape[2] * 4, large.shape[3] * 4)
    table: dict[str, dict[str, Any]] = {}
    for queries in (2_000, 4_224, 30_000, 1 << 20):
        coord, cell = gpu_sections._queries(check, 1, queries)
        table[f"{queries} queries"] = _race(
            lambda coord=coord, cell=cell: functional.liif_decode(feat, coord, cell, weights, biases, backend=backend),
            coord.shape[1],
            weights,
            check,
        )
    table["4K frame"] = _race(
        lambda: functional.liif_render(large, frame, weights, biases, backend=backend),
        frame[0] * frame[1],
        weights,
        check,
    )
    return table


def _race(call: Callable[[], Tensor], queries: int, weights: list[Tensor], check: bool) -> dict[str, Any]:
    times = gpu_sections._race({str(cluster): _with(cluster, call) for cluster in CLUSTERS}, check)
    for found in times.values():
        if "ms" in found:
            found["tflops"] = round(decode_work(queries, 0, weights).flop / found["ms"]["median"] / 1e9, 1)
    return times
