"""What the suites share: the problem, the check, the race between variants, and the records."""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import liif_fast
from liif_fast import LIIFDecoder, info
from liif_fast.backends import cpu
from liif_fast.layers import linear_chain

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

OURS = "liif_fast"  # backend "auto", as a user gets it
EAGER = "plain, eager"  # benchmarks/eager.py
COMPILED = "plain, torch.compile"  # the same through torch.compile with its default settings
FACTORISED = "factorised, eager"  # backend "torch"
REFERENCE = "reference"  # the backend of that name, plain and eager too, for what is checked rather than for speed

INF = float("inf")
TOLERANCE = 1e-5  # float32 against the plain form, relative to the largest output: promise 2 of docs/backends.md
# Gradients are compared by their norms, and loosely: rounding decides on which side of zero a few of the millions of
# ReLUs fall, and each that differs moves the norm, by some 5e-4 at Q = 2304. Leaving out one query moves it by 1.5e-2.
GRADIENT_TOLERANCE = 5e-3
SGEMM = (8192, 256, 256)  # rows, inner, columns: a hidden layer over 8192 rows
NOT_BUILT = "kernels not built"
LAP_SECONDS = 0.05  # a call shorter than this is repeated until a lap takes that long

Result = Tensor | Sequence[Tensor]
Call = Callable[[], Result]


class Problem(NamedTuple):
    """Latents and a network; float32, random."""

    feat: Tensor  # [B, C, H, W]
    weights: list[Tensor]
    biases: list[Tensor]


def make_problem(
    latents: tuple[int, int], *, batch: int = 1, channels: int = 64, hidden: Sequence[int] = (256,) * 4, seed: int = 0
) -> Problem:
    """Make random latents and a network as PyTorch initialises it, every parameter wanting a gradient."""
    torch.manual_seed(seed)
    feat = torch.randn(batch, channels, *latents)
    return Problem(feat, *linear_chain(LIIFDecoder(channels, 3, hidden).layers))


def useful_flop(queries: int, weights: Sequence[Tensor]) -> int:
    """Return the operations that no exact method known here avoids, 1.58 M a query for 256 x 4.

    Four corners go through the part of the first layer that rel and cell enter and through the hidden layers; the last
    layer is linear, so that once a query is enough for it. The projection of the latents is not counted.
    """
    corner = 4 * weights[0].shape[0] + sum(weight.numel() for weight in weights[1:-1])
    return 2 * queries * (4 * corner + weights[-1].numel())


def check(got: Result, expected: Result) -> dict[str, float]:
    """Compare an output, or an output followed by gradients, with what it should be, and return the relative errors.

    Raises:
        AssertionError: a shape differs, or an error exceeds its tolerance.
    """
    outputs, wanted = ((each,) if isinstance(each, Tensor) else tuple(each) for each in (got, expected))
    errors: dict[str, float] = {}
    for position, (tensor, target) in enumerate(zip(outputs, wanted, strict=True)):
        if tensor.shape != target.shape:
            raise AssertionError(f"result {position} has shape {list(tensor.shape)}, expected {list(target.shape)}")
        name, order, tolerance = ("gradient_error", 2, GRADIENT_TOLERANCE) if position else ("error", INF, TOLERANCE)
        difference, size = (torch.linalg.vector_norm(t.detach(), order).item() for t in (tensor - target, target))
        if not difference <= tolerance * size:  # so that NaN fails
            raise AssertionError(f"result {position} is wrong by {difference / size:.1e}, allowed is {tolerance:.0e}")
        errors[name] = max(errors.get(name, 0.0), float(f"{difference / size:.1e}"))
    return errors


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return q20, median and q80, to four digits."""
    found = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return {name: float(f"{q:.4g}") for name, q in zip(("q20", "median", "q80"), found.tolist(), strict=True)}


def race(
    benchmark: Any,
    name: str,
    title: str,
    ours: Call,
    rivals: dict[str, Call],
    expected: Result,
    *,
    rounds: int,
    flop: int = 0,
) -> dict[str, Any]:
    """Check every variant, then time them in turn, and return the figures.

    Args:
        benchmark: pytest-benchmark's fixture; its own statistics are those of our laps.
        name: key of the result in the records.
        title: what is measured, for a reader.
        ours: our call.
        rivals: calls that compute the same. One that fails or is wrong gets no figure but the reason.
        expected: what the backend `reference` computes.
        rounds: how often each is timed.
        flop: useful operations of a call; if given, the machine's own sgemm takes part as a yardstick.

    Raises:
        AssertionError: our result is wrong.
    """
    calls, errors, missing = {OURS: ours, **rivals}, {}, {}
    repeats: dict[str, int] = {}
    for each in list(calls):
        try:
            calls[each]()  # compiles, if it is one that does
            start = time.perf_counter()
            got = calls[each]()
            repeats[each] = _repeats(time.perf_counter() - start)
            errors[each] = check(got, expected)
        except Exception as reason:
            if each == OURS:
                raise
            missing[each] = f"{type(reason).__name__}: {str(reason).strip().splitlines()[0] if str(reason) else ''}"
            del calls[each]
    if flop:
        calls["sgemm"] = _sgemm()
        calls["sgemm"]()
        repeats["sgemm"] = _repeats(_seconds(calls["sgemm"], 1))
    times: dict[str, list[float]] = {each: [] for each in calls}
    others = [each for each in calls if each != OURS]

    def lap(each: str) -> None:
        times[each].append(_seconds(calls[each], repeats[each]))

    def others_first() -> None:
        first = len(times[OURS]) % len(others) if others else 0
        for each in others[first:] + others[:first]:
            lap(each)

    benchmark.pedantic(lap, args=(OURS,), setup=others_first, rounds=rounds)

    own = times[OURS]
    figures: dict[str, Any] = {}
    for each in calls:
        figures[each] = quantiles(times[each])
        if each in errors:
            figures[each] |= errors[each]
        if each in rivals:
            figures[each]["ratio"] = quantiles([their / our for their, our in zip(times[each], own, strict=True)])
    result = {"name": name, "title": title, "unit": "s", "rounds": len(own), "figures": figures, "missing": missing}
    if flop:
        work = 2 * SGEMM[0] * SGEMM[1] * SGEMM[2]
        result["sgemm_gflops"] = quantiles([work / seconds / 1e9 for seconds in times["sgemm"]])
        result["share_of_sgemm"] = quantiles(
            [flop / our / (work / sgemm) for our, sgemm in zip(own, times["sgemm"], strict=True)]
        )
    benchmark.extra_info.update(result, repeats=repeats[OURS])
    return result


def _sgemm() -> Call:
    rows, inner, columns = SGEMM
    x, weight, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    return lambda: torch.mm(x, weight, out=out)


def _repeats(seconds: float) -> int:
    return max(1, round(LAP_SECONDS / seconds))


def _seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def environment() -> dict[str, Any]:
    """Return what a figure depends on."""
    return {
        "version": liif_fast.__version__,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cpu": dict(info.describe())["cpu"],
        "isa": isa(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def isa() -> str:
    """Return the instruction set of our kernels."""
    try:
        return cpu.ISA
    except RuntimeError:  # the operator has a schema, but nothing was built that implements it
        return NOT_BUILT


def _commit() -> str:
    """Return HEAD, with + if the code that is measured differs from it; "" outside a checkout."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "liif_fast", "csrc", "kernels", "setup.py")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def append_record(environment: dict[str, Any], results: list[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Append one run to the file of this kind of machine, one JSON object a line."""
    cpu_name = environment["cpu"].rsplit(",", 1)[0]
    kind = re.sub(r"[^a-z0-9]+", "-", f"{cpu_name} {environment['isa']}".lower()).strip("-")
    path = folder / f"{kind}.jsonl"
    folder.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**environment, "results": results}) + "\n")
    return path


def read_records(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the records of every machine, oldest first."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines), key=lambda record: record["date"])
