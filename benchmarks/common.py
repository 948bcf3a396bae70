"""What the suites share: the problem, the check, and the race between variants."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import limits, memory
from benchmarks.limits import Work, Yardstick
from liif_fast import LIIFDecoder
from liif_fast.layers import linear_chain

OURS = "liif_fast"  # backend "auto", as a user gets it
EAGER = "plain, eager"  # benchmarks/eager.py
COMPILED = "plain, torch.compile"
FACTORISED = "factorised, eager"  # backend "torch"
FACTORISED_COMPILED = "factorised, torch.compile"
REFERENCE = "reference"  # the backend of that name, plain and eager too, for what is checked rather than for speed
EAGER_FLOAT32 = "plain, eager float32"  # beside variants under autocast

INF = float("inf")
TOLERANCE = 1e-5  # float32 against the plain form, relative to the largest output: promise 2 of docs/backends.md
# Gradients are compared by their norms, and loosely: rounding decides on which side of zero a few of the millions of
# ReLUs fall, and each that differs moves the norm, by some 5e-4 at Q = 2304. Leaving out one query moves it by 1.5e-2.
GRADIENT_TOLERANCE = 5e-3
# Under autocast both sides round operands to 11 bits (float16). Measured on random networks it is 0.3 % of the largest
# output; the gradients' norms differ more, since more ReLUs change sides.
HALF_TOLERANCE, HALF_GRADIENT_TOLERANCE = 1e-2, 5e-2
LAP_SECONDS = 0.05  # a call shorter than this is repeated until a lap takes that long
LEAST_ROUNDS = 3

Result = Tensor | Sequence[Tensor]
Call = Callable[[], Result]


class Problem(NamedTuple):
    """Latents and a network; float32, random."""

    feat: Tensor  # [B, C, H, W]
    weights: list[Tensor]
    biases: list[Tensor]


def make_problem(
    latents: tuple[int, int],
    *,
    batch: int = 1,
    channels: int = 64,
    hidden: Sequence[int] = (256,) * 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Problem:
    """Make random latents and a network as PyTorch initialises it, every parameter wanting a gradient."""
    torch.manual_seed(seed)
    feat = torch.randn(batch, channels, *latents)
    weights, biases = linear_chain(LIIFDecoder(channels, 3, hidden).layers)
    return Problem(feat.to(device), *([t.detach().to(device).requires_grad_() for t in ts] for ts in (weights, biases)))


def make_queries(batch: int, queries: int, side: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Make random coord and cell [B, Q, 2], as a batch of training has them: anywhere, one scale of 1 to 4 an image."""
    coord = torch.rand(batch, queries, 2) * 2 - 1
    cell = (2 / side / torch.empty(batch, 1, 1).uniform_(1, 4)).expand(batch, queries, 2).contiguous()
    return coord.to(device), cell.to(device)


def check(
    got: Result, expected: Result, tolerance: float = TOLERANCE, gradient_tolerance: float = GRADIENT_TOLERANCE
) -> dict[str, float]:
    """Compare an output, or an output followed by gradients, with what it should be, and return the relative errors.

    Raises:
        AssertionError: a shape differs, or an error exceeds its tolerance.
    """
    outputs, wanted = ((each,) if isinstance(each, Tensor) else tuple(each) for each in (got, expected))
    errors: dict[str, float] = {}
    for position, (tensor, target) in enumerate(zip(outputs, wanted, strict=True)):
        if tensor.shape != target.shape:
            raise AssertionError(f"result {position} has shape {list(tensor.shape)}, expected {list(target.shape)}")
        name, order, allowed = ("gradient_error", 2, gradient_tolerance) if position else ("error", INF, tolerance)
        difference, size = (torch.linalg.vector_norm(t.detach(), order).item() for t in (tensor - target, target))
        if not difference <= allowed * size:  # so that NaN fails
            raise AssertionError(f"result {position} is wrong by {difference / size:.1e}, allowed is {allowed:.0e}")
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
    seconds: float = INF,
    work: Work | None = None,
    yardsticks: Sequence[Yardstick] = (),
    tolerances: tuple[float, float] = (TOLERANCE, GRADIENT_TOLERANCE),
    keepers: Sequence[str] = (),
    left_out: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Check every variant, then time them in turn, and return the figures.

    Args:
        benchmark: pytest-benchmark's fixture, which serves one race; its own statistics are those of our laps. None for
            none.
        name: key of the result in the records.
        title: what is measured, for a reader.
        ours: our call.
        rivals: calls that compute the same. One that fails or is wrong gets no figure but the reason.
        expected: what the backend `reference` computes.
        rounds: how often each is timed, at most.
        seconds: rounds end when this is used up, but never before the third.
        work: what the call cannot avoid; each variant's share of the machine's limit is taken from it.
        yardsticks: calls that take part for the machine's rates: "sgemm", "matrix", "copy".
        tolerances: of the output and of the gradients.
        keepers: rivals that keep memory between calls, so that their peak cannot be told here.
        left_out: rivals that do not take part, and why.

    Raises:
        AssertionError: our result is wrong.
    """
    calls, errors, missing = {OURS: ours, **rivals}, {}, dict(left_out or {})
    repeats: dict[str, int] = {}
    peaks: dict[str, int | None] = {}
    round_seconds = 0.0
    device = (expected if isinstance(expected, Tensor) else expected[0]).device
    for each in list(calls):
        try:
            calls[each]()  # compiles, if it is one that does
            got, peaks[each], took = memory.peak(calls[each], device)
            errors[each] = check(got, expected, *tolerances)
            del got
            if took < LAP_SECONDS:  # the first call after giving memory back is a slow one
                took = _seconds(calls[each], 3, device)
            repeats[each] = _repeats(took)
            round_seconds += took * repeats[each]
        except Exception as reason:
            if each == OURS:
                raise
            missing[each] = f"{type(reason).__name__}: {str(reason).strip().splitlines()[0] if str(reason) else ''}"
            del calls[each]
    amounts = {each.name: each.amount for each in yardsticks}
    for each in yardsticks:
        calls[each.name] = each.call
        took = min(_seconds(each.call, 1, device) for _ in range(2))
        repeats[each.name] = _repeats(took)
        round_seconds += took * repeats[each.name]
    rounds = max(min(rounds, LEAST_ROUNDS), int(min(rounds, seconds / round_seconds)))

    times: dict[str, list[float]] = {each: [] for each in calls}
    others = [each for each in calls if each != OURS]

    def lap(each: str) -> None:
        times[each].append(_seconds(calls[each], repeats[each], device))

    def others_first() -> None:
        first = len(times[OURS]) % len(others) if others else 0
        for each in others[first:] + others[:first]:
            lap(each)

    if benchmark is None:
        for _ in range(rounds):
            others_first()
            lap(OURS)
    else:
        benchmark.pedantic(lap, args=(OURS,), setup=others_first, rounds=rounds)

    own = times[OURS]
    rates = {each: [amount / took for took in times[each]] for each, amount in amounts.items()}
    figures: dict[str, Any] = {}
    for each in calls:
        figures[each] = quantiles(times[each])
        if each in errors:
            figures[each] |= {"checked": True, **errors[each]}
            if peaks[each] is not None and each not in keepers:
                figures[each]["memory"] = peaks[each]
            if work and {"matrix", "copy"} <= rates.keys():
                figures[each]["share"] = quantiles(_shares(work, times[each], rates["matrix"], rates["copy"]))
        if each in rivals:
            figures[each]["ratio"] = quantiles([their / our for their, our in zip(times[each], own, strict=True)])
    result = {"name": name, "title": title, "unit": "s", "rounds": len(own), "figures": figures, "missing": missing}
    if work:
        result["work"] = work._asdict()
    result |= {f"{each}_rate": quantiles(found) for each, found in rates.items()}
    if work and work.flop and "sgemm" in rates:
        result["share_of_sgemm"] = quantiles(
            [work.flop / t / rate for t, rate in zip(own, rates["sgemm"], strict=True)]
        )
    if benchmark is not None:
        benchmark.extra_info.update(result, repeats=repeats[OURS])
    return result


def _shares(work: Work, times: list[float], matrix: list[float], copy: list[float]) -> list[float]:
    """Return by how much each lap falls short of the limit: the time that the machine needs at least, over the time."""
    rounds = zip(times, matrix, copy, strict=True)
    return [max(work.flop / flops, work.nbytes / bandwidth) / took for took, flops, bandwidth in rounds]


def _repeats(seconds: float) -> int:
    return max(1, round(LAP_SECONDS / max(seconds, 1e-9)))


def _seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    limits.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    limits.synchronize(device)
    return (time.perf_counter() - start) / repeats
