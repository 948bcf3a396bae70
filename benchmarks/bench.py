"""Run the suites: `rows` makes the tests of a race, `Bench` chooses its sizes and runs it.

A race checks its variants and times them in turn, once. Each variant is a test that replays its laps with our clock, so
that pytest-benchmark shows, stores and compares the interleaved times as if it had measured them.
"""

import gc
import sys
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks import common, limits
from benchmarks.common import ALWAYS, COMPILED_FORMS, REFERENCE, Raced
from benchmarks.limits import Work

SECONDS = (8.0, 1.5, 0.0)  # rounds of a race unless it sets them: full, --quick, --check


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def set(self, now: float) -> None:
        self.now = now

    def read(self) -> float:
        return self.now


class Heat(NamedTuple):
    """Describe one race, a case of a test."""

    race: Callable[..., Raced]
    case: tuple[Any, ...]
    half: bool  # under autocast to float16, on a GPU


def rows(
    *variants: str, cases: Sequence[tuple[Any, ...]] = ((),), ids: str = "", half: bool = False
) -> Callable[[Callable[..., Raced]], Callable[..., None]]:
    """Make a test for each variant of a race, ours and the reference's first.

    Args:
        variants: the other variants; a variant that a case has no call for is skipped.
        cases: arguments of the race after the Bench; each is a race of its own.
        ids: format of a case's name.
        half: whether on a GPU each case races once more, under autocast to float16.
    """

    def decorate(race: Callable[..., Raced]) -> Callable[..., None]:
        heats = []
        for heat in [Heat(race, case, halved) for halved in range(1 + half) for case in cases]:
            name = f"{ids.format(*heat.case)} {'half' * heat.half}".strip()
            group = f"{race.__name__.removeprefix('test_')} {name}".strip()
            mark = pytest.mark.benchmark(group=group, timer=clock.read)
            heats.append(pytest.param(heat, id=name or pytest.HIDDEN_PARAM, marks=mark))

        @pytest.mark.parametrize("variant", [*ALWAYS, *variants])
        @pytest.mark.parametrize("raced", heats, indirect=True, scope="module")
        def test(raced: Raced, variant: str, benchmark: Any) -> None:
            if variant not in raced.laps:
                pytest.skip(raced.result["missing"].get(variant, "not part of this race, or only in a full run"))
            benchmark.extra_info.update(raced.result, figures={variant: raced.result["figures"][variant]})
            laps = iter(raced.laps[variant])
            benchmark.pedantic(
                lambda: clock.set(next(laps)), setup=lambda: clock.set(0.0), rounds=raced.result["rounds"]
            )

        return test

    return decorate


class Bench:
    """Hold the options, the device and the results of a run."""

    def __init__(self, options: Callable[[str], Any], device: torch.device) -> None:
        self.check, self.quick, self.all = (options(each) for each in ("check", "quick", "long"))
        self.device = device
        self.hidden = (16, 16) if self.check else (256,) * 4  # of the network
        self.results: list[dict[str, Any]] = []  # for our table and the record
        self.selected: dict[Heat, set[str]] = {}  # the variants to race
        self.heat: Heat  # the race that runs now

    @cached_property
    def yardsticks(self) -> list[limits.Yardstick]:
        """Return the calls that measure the machine's rates, interleaved with a race's variants."""
        return limits.yardsticks(self.device, tiny=self.check)

    def pick(self, full: Any, quick: Any, check: Any) -> Any:
        """Return the value for this kind of run; None skips the race."""
        choice = check if self.check else quick if self.quick else full
        if choice is None:
            pytest.skip("only in a full run")
        return choice

    def long(self, needed: bool) -> None:
        """Skip a race that takes minutes unless --long is given."""
        if needed and not self.all and not self.check:
            pytest.skip("only with --long")

    def run(self, heat: Heat) -> Raced:
        """Run one race and keep its result."""
        if "torch._dynamo" in sys.modules:  # its import takes seconds
            torch.compiler.reset()
        gc.collect()
        gc.freeze()  # so that garbage collections during the race are short
        self.heat = heat
        raced = heat.race(self, *heat.case)
        self.results.append(raced.result)
        return raced

    def race(
        self,
        name: str,
        title: str,
        calls: dict[str, common.Call],
        *,
        rounds: int,
        seconds: float = SECONDS[0],
        work: Work | None = None,
        **options: Any,
    ) -> Raced:
        """Call `common.race` with this run's rounds and variants; a short run omits those that are slow to set up."""
        half = self.heat.half and "tolerances" not in options  # a race with tolerances sets its own dtypes
        if half:
            name, title = f"{name}-half", f"{title}, float16 autocast"
            options["tolerances"] = (common.HALF_TOLERANCE, common.HALF_GRADIENT_TOLERANCE)
            low = partial(autocast, device="cuda", dtype=torch.float16)
            calls = {each: call if each == REFERENCE else low(call) for each, call in calls.items()}
        if work:
            options["yardsticks"] = limits.yardsticks(self.device, half=True) if half else self.yardsticks
        if self.quick or self.check:
            calls = {each: call for each, call in calls.items() if each not in COMPILED_FORMS}
        return common.race(
            name,
            title,
            calls,
            rounds=self.pick(rounds, 3, 1),
            seconds=self.pick(seconds, *SECONDS[1:]),
            lap=0.0 if self.check else common.LAP_SECONDS,
            selected=self.selected[self.heat],
            work=work,
            **options,
        )


def autocast(call: common.Call, device: str, dtype: torch.dtype) -> common.Call:
    """Return the call under autocast."""

    def run() -> common.Result:
        with torch.autocast(device, dtype):
            return call()

    return run


clock = Clock()
BENCH = pytest.StashKey[Bench]()
