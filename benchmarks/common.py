"""Provide the suites' common parts: the problem, the check, and the race between variants."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
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
COMPILED_FORMS = (COMPILED, FACTORISED_COMPILED)
REFERENCE = "reference"  # the backend of that name, in float32; all variants are checked against it
ALWAYS = (OURS, REFERENCE)  # take part in every race

INF = float("inf")
TOLERANCE = 1e-5  # float32 against the plain form, relative to the largest output: promise 2 of docs/backends.md
# Gradients are compared loosely, by their norms, because for a few of millions of ReLUs rounding decides the side of
# zero. At Q = 2304 these change the norm by about 5e-4; a missing query changes it by 1.5e-2.
GRADIENT_TOLERANCE = 5e-3
# Under autocast both sides round operands to 11 bits (float16). With random networks, outputs differ by 0.3 % of the
# largest. The gradients' norms differ more, because more ReLUs change sides.
HALF_TOLERANCE, HALF_GRADIENT_TOLERANCE = 1e-2, 5e-2
LAP_SECONDS = 0.05
LEAST_ROUNDS = 3

Result = Tensor | Sequence[Tensor]
Call = Callable[[], Result]


class Raced(NamedTuple):
    """Hold the outcome of a race."""

    result: dict[str, Any]  # as in the records; `missing` gives the reason why a variant has no figure
    laps: dict[str, list[float]]  # seconds of each round, by variant


class Entrant(NamedTuple):
    """Hold a call that has been checked and takes part in a race."""

    call: Callable[[], object]
    repeats: int  # calls per lap
    seconds: float  # approximate duration of a lap
    figures: dict[str, Any]  # the figures that are known before the first lap


class Problem(NamedTuple):
    """Hold latents and a network, both random, in float32."""

    feat: Tensor  # [B, C, H, W]
    weights: list[Tensor]
    biases: list[Tensor]


def backends(run: Callable[..., Result], of_torch: str = FACTORISED) -> dict[str, Call]:
    """Return ours, the reference and the backend `torch` (under that name) as calls of run(backend=...)."""
    chosen = {OURS: "auto", REFERENCE: "reference", of_torch: "torch"}
    return {name: partial(run, backend=backend) for name, backend in chosen.items()}


def with_gradients(call: Callable[[], Tensor], leaves: Sequence[Tensor], grad: Tensor) -> Call:
    """Return a call of the forward and backward pass, which returns the output of `call` and then the gradients."""

    def run() -> Sequence[Tensor]:
        out = call()
        return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))

    return run


def make_problem(
    latents: tuple[int, int],
    *,
    batch: int = 1,
    channels: int = 64,
    hidden: Sequence[int] = (256,) * 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Problem:
    """Make random latents and a network with PyTorch's initial weights; every tensor requires a gradient."""
    torch.manual_seed(seed)
    feat = torch.randn(batch, channels, *latents)
    weights, biases = linear_chain(LIIFDecoder(channels, 3, hidden).layers)
    return Problem(feat.to(device), *([t.detach().to(device).requires_grad_() for t in ts] for ts in (weights, biases)))


def make_queries(batch: int, queries: int, side: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Make random coord and cell [B, Q, 2] like a training batch: anywhere, with one scale of 1 to 4 per image."""
    coord = torch.rand(batch, queries, 2) * 2 - 1
    cell = (2 / side / torch.empty(batch, 1, 1).uniform_(1, 4)).expand(batch, queries, 2).contiguous()
    return coord.to(device), cell.to(device)


def check(
    got: Result, expected: Result, tolerance: float = TOLERANCE, gradient_tolerance: float = GRADIENT_TOLERANCE
) -> dict[str, float]:
    """Compare an output, or an output followed by gradients, with the expected one, and return the relative errors.

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
    name: str,
    title: str,
    calls: dict[str, Call],
    *,
    rounds: int,
    seconds: float = INF,
    selected: Collection[str] | None = None,
    work: Work | None = None,
    yardsticks: Sequence[Yardstick] = (),
    tolerances: tuple[float, float] = (TOLERANCE, GRADIENT_TOLERANCE),
    keepers: Collection[str] = (),
    left_out: Mapping[str, str] | None = None,
    lap: float = LAP_SECONDS,
) -> Raced:
    """Check every variant, then time them in turn, and return the figures and the laps.

    Args:
        name: key of the result in the records.
        title: description of the measurement for readers.
        calls: variants that compute the same, including liif_fast and reference. A rival that fails or is wrong has a
            reason instead of a figure.
        rounds: largest number of rounds.
        seconds: time limit of the rounds; at least three are run.
        selected: the variants to race besides liif_fast and reference; None means all.
        work: the work of a call (limits.py), used to compute each variant's share of the machine's limit.
        yardsticks: calls that measure the machine's rates: "sgemm", "matrix", "copy".
        tolerances: of the output and of the gradients.
        keepers: rivals that keep memory between calls, so that their peak cannot be measured here.
        left_out: variants that do not take part, with their reasons.
        lap: smallest duration of a lap in seconds; a shorter call is repeated.

    Raises:
        AssertionError: our result is wrong.
    """
    missing = dict(left_out or {})
    expected = calls[REFERENCE]()
    device = (expected if isinstance(expected, Tensor) else expected[0]).device
    entrants: dict[str, Entrant] = {}
    for each, call in calls.items():
        if each in missing or not (selected is None or each in selected or each in ALWAYS):
            continue
        try:
            entrants[each] = _enter(call, expected, tolerances, device, lap)
        except Exception as reason:
            if each in ALWAYS:
                raise
            missing[each] = f"{type(reason).__name__}: {str(reason).strip().splitlines()[0] if str(reason) else ''}"
    rivals = [each for each in entrants if each != OURS]
    for each in yardsticks:
        took = min(_seconds(each.call, 1, device) for _ in range(2))
        entrants[each.name] = _entrant(each.call, took, lap, {})
    round_seconds = sum(each.seconds for each in entrants.values())
    rounds = max(min(rounds, LEAST_ROUNDS), int(min(rounds, seconds / round_seconds)))
    laps = _take_turns(entrants, rounds, device)

    rates = {each.name: [each.amount / took for took in laps[each.name]] for each in yardsticks}
    figures: dict[str, Any] = {}
    for each, entrant in entrants.items():
        figures[each] = {**quantiles(laps[each]), **entrant.figures}
        if each in keepers:
            figures[each].pop("memory", None)
        if each in rivals:
            figures[each]["ratio"] = quantiles([their / our for their, our in zip(laps[each], laps[OURS], strict=True)])
        if entrant.figures and work and {"matrix", "copy"} <= rates.keys():
            figures[each]["share"] = quantiles(_shares(work, laps[each], rates["matrix"], rates["copy"]))
    result = {"name": name, "title": title, "unit": "s", "rounds": rounds, "figures": figures, "missing": missing}
    if work:
        result["work"] = work._asdict()
    result |= {f"{each}_rate": quantiles(found) for each, found in rates.items()}
    if work and work.flop and "sgemm" in rates:
        result["share_of_sgemm"] = quantiles(
            [work.flop / t / rate for t, rate in zip(laps[OURS], rates["sgemm"], strict=True)]
        )
    return Raced(result, laps)


def _enter(call: Call, expected: Result, tolerances: tuple[float, float], device: torch.device, lap: float) -> Entrant:
    """Check a call, and measure its memory and its approximate time."""
    call()  # lets a compiled variant compile
    got, peak, took = memory.peak(call, device)
    figures: dict[str, Any] = {"checked": True, **check(got, expected, *tolerances)}
    del got
    if peak is not None:
        figures["memory"] = peak
    if took < lap:  # measured again, because the first call after memory has been returned is slow
        took = _seconds(call, 3, device)
    return _entrant(call, took, lap, figures)


def _entrant(call: Callable[[], object], seconds: float, lap: float, figures: dict[str, Any]) -> Entrant:
    repeats = max(1, round(lap / max(seconds, 1e-9)))
    return Entrant(call, repeats, seconds * repeats, figures)


def _take_turns(entrants: Mapping[str, Entrant], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the laps of each variant; the others take turns in starting a round, and ours ends it."""
    laps: dict[str, list[float]] = {each: [] for each in entrants}
    others = [each for each in entrants if each != OURS]
    if OURS in entrants:
        entrants[OURS].call()  # the rivals' measurements have freed the memory that it keeps
    for turn in range(rounds):
        first = turn % len(others) if others else 0
        for each in (*others[first:], *others[:first], OURS):
            laps[each].append(_seconds(entrants[each].call, entrants[each].repeats, device))
    return laps


def _shares(work: Work, times: list[float], matrix: list[float], copy: list[float]) -> list[float]:
    """Return each lap's share of the limit: the least time that all terms need, divided by the lap's time."""
    rounds = zip(times, matrix, copy, strict=True)
    return [max(work.flop / flops, work.nbytes / bandwidth) / took for took, flops, bandwidth in rounds]


def _seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    limits.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    limits.synchronize(device)
    return (time.perf_counter() - start) / repeats
