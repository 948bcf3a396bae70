"""Measure the speed of a kind of call against the backend that `auto` would take instead, in pairs of runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from liif_fast.backends import AUTO, RefusedError, verdict
from liif_fast.qualification.problems import Network, Problem, Unit, extent

PAIRS = 7
WINS = 6  # pairs to win at the small size, where a call's fixed costs show
FASTER = 1.15  # ratio to reach in most pairs at the large size
# (H, W), queries and images: the small size, the large one in inference, the large one in training (the paper's).
SIZES = {
    "large": (((48, 48), 2304, 1), ((128, 128), 65_536, 1), ((48, 48), 2304, 16)),
    "small": (((2, 3), 2, 1), ((3, 4), 4, 1), ((3, 4), 4, 1)),
}


def race(unit: Unit, device: torch.device, network: Network, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure a kind of call on a network that the backend takes.

    Returns:
        `than`: the other backend. `ratio`, `small`: median of its time relative to ours, at the large and the small
        size; a race ends as soon as it is lost. `taken`: whether `auto` should take ours.
    """
    small, infer, train = SIZES[extent(device)]
    found: dict[str, Any] = {"taken": True}
    for name, (shape, queries, batch) in (("small", small), ("ratio", train if unit.training else infer)):
        tell(f"speed, {batch * queries} queries")
        problem = Problem(network, unit, device, seed, shape, queries, batch).to(device)
        found["than"], rival = _rival(problem)
        bound, losses = (1.0, PAIRS - WINS) if name == "small" else (FASTER, PAIRS // 2)
        ours, ratios = _call(problem, unit.backend), list[float]()
        for call in (ours, rival):  # compile, warm up
            call()
        while len(ratios) < PAIRS and sum(ratio < bound for ratio in ratios) <= losses:
            ratios.append(_seconds(rival, device) / _seconds(ours, device))
        found[name] = round(statistics.median(ratios), 3)
        found["taken"] &= sum(ratio < bound for ratio in ratios) <= losses
    return found


def _rival(problem: Problem) -> tuple[str, Callable[[], Any]]:
    if problem.unit.backend == verdict.AMX:
        return "avx512bf16", _without_amx(_call(problem, verdict.AMX))
    for name in AUTO:
        call = _call(problem, name)
        try:
            call()
        except RefusedError:
            continue
        return name, call
    raise RuntimeError("no backend of auto can run this call")


def _call(problem: Problem, backend: str) -> Callable[[], Any]:
    def call() -> Any:
        out = problem.run(backend)
        return torch.autograd.grad(out.sum(), problem.leaves) if problem.unit.training else out

    return call


def _without_amx(call: Callable[[], Any]) -> Callable[[], Any]:
    def other() -> Any:
        torch.ops.liif_fast.cpu_use_amx(False)
        try:
            return call()
        finally:
            torch.ops.liif_fast.cpu_use_amx(True)

    return other


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)
