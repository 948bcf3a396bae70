"""One run of the suites, as its problems see it: sizes, device, races."""

from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any

import pytest
import torch

from benchmarks import common, limits
from benchmarks.common import ALWAYS, COMPILED_FORMS, REFERENCE, Raced
from benchmarks.limits import Work

SECONDS = (8.0, 1.5, 0.0)  # of the rounds of one problem, unless it says otherwise: full, --quick, --check
Row = Callable[[Raced], None]  # the fixture `row`


def variants(*names: str) -> pytest.MarkDecorator:
    """Make a row, a test, of liif_fast, of the reference and of each of these."""
    return pytest.mark.parametrize("variant", [*ALWAYS, *names])


class Bench:
    """The fixture `bench`."""

    def __init__(self, options: Callable[[str], Any], device: torch.device) -> None:
        self.device = device
        self.check, self.quick, self.all = (options(each) for each in ("check", "quick", "long"))
        self.hidden = (16, 16) if self.check else (256,) * 4  # of the network
        self.results: list[dict[str, Any]] = []  # for our table and the record
        self.selected: Collection[str] = ()  # the rows of the problem that is about to be raced

    @cached_property
    def yardsticks(self) -> list[limits.Yardstick]:
        """What measures the machine's rates: it takes turns with what is compared with it."""
        return limits.yardsticks(self.device, tiny=self.check)

    def pick(self, full: Any, quick: Any, check: Any) -> Any:
        """Return the one for this run; None means that the problem is not part of it, and skips."""
        choice = check if self.check else quick if self.quick else full
        if choice is None:
            pytest.skip("not part of --quick")
        return choice

    def long(self, needed: bool) -> None:
        """Skip what takes minutes unless asked for."""
        if needed and not self.all and not self.check:
            pytest.skip("only with --long")

    def race(
        self,
        name: str,
        title: str,
        calls: dict[str, common.Call],
        *,
        rounds: int,
        seconds: float = SECONDS[0],
        work: Work | None = None,
        half: bool = False,
        **options: Any,
    ) -> Raced:
        """Run `common.race` with this run's rounds and rows, and without what takes long to set up in a short run."""
        torch.compiler.reset()
        yardsticks = [] if work is None else limits.yardsticks(self.device, half=True) if half else self.yardsticks
        if half:
            name, title = f"{name}-half", f"{title}, float16 autocast"
            options["tolerances"] = (common.HALF_TOLERANCE, common.HALF_GRADIENT_TOLERANCE)
            calls = {each: call if each == REFERENCE else _autocast(call) for each, call in calls.items()}
        if self.quick or self.check:
            calls = {each: call for each, call in calls.items() if each not in COMPILED_FORMS}
        raced = common.race(
            name,
            title,
            calls,
            rounds=self.pick(rounds, 3, 1),
            seconds=self.pick(seconds, *SECONDS[1:]),
            selected=self.selected,
            work=work,
            yardsticks=yardsticks,
            **options,
        )
        self.results.append(raced.result)
        return raced


def _autocast(call: common.Call) -> common.Call:
    def run() -> common.Result:
        with torch.autocast("cuda", torch.float16):
            return call()

    return run


BENCH = pytest.StashKey[Bench]()
