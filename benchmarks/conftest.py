"""Options of the suites, and how a race becomes rows of pytest-benchmark's table.

A problem is a fixture of module scope, which checks its variants and races them once. Each variant is a test, which
replays its laps with a clock of ours: pytest-benchmark shows, stores and compares what was timed in turn as if it had
timed it itself.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # for `benchmarks` itself, wherever pytest was started

from benchmarks import growth, records, table
from benchmarks.bench import BENCH, Bench, Row
from benchmarks.common import ALWAYS, Raced

_selected = pytest.StashKey[set[str]]()  # by row: the variants of its problem that are selected


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def set(self, now: float) -> None:
        self.now = now

    def read(self) -> float:
        return self.now


_clock = Clock()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("liif_fast benchmarks")
    group.addoption("--quick", action="store_true", help="few cases, few rounds, no torch.compile: about a minute")
    group.addoption("--check", action="store_true", help="tiny sizes, one round: only that every suite runs")
    group.addoption("--long", action="store_true", help="also what takes minutes each on a CPU")
    group.addoption("--threads", type=int, help="PyTorch's threads (default: as PyTorch chooses)")
    group.addoption("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    group.addoption("--table", action="store_true", help="show ratios within a round, memory, errors and shares")
    group.addoption("--record", action="store_true", help="append the figures to benchmarks/results/")


def pytest_configure(config: pytest.Config) -> None:
    option = config.getoption
    if (option("quick") or option("check")) and (option("record") or option("long")):
        raise pytest.UsageError("--record and --long are for full runs: without --quick and --check")
    threads = option("threads")
    if threads is not None and threads < 1:
        raise pytest.UsageError(f"--threads must be at least 1, got {threads}")
    if threads:
        torch.set_num_threads(threads)
    try:
        device = torch.empty(0, device=option("device")).device
    except (RuntimeError, AssertionError) as error:
        raise pytest.UsageError(f"--device {option('device')}: {str(error).splitlines()[0]}") from None
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32 in convolutions too, as PyTorch has it in products
    config.stash[BENCH] = Bench(option, device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """On a GPU, race once more with autocast to float16 where a problem knows `half`."""
    if "half" in metafunc.fixturenames and metafunc.config.stash[BENCH].device.type == "cuda":
        metafunc.parametrize("half", [False, True], ids=["float32", "half"], scope="module")


def _variant(item: pytest.Item) -> str | None:
    """Return the variant that a test shows; None for a test that is no row."""
    return item.callspec.params["variant"] if "row" in getattr(item, "fixturenames", ()) else None


def _problem(item: pytest.Item) -> str:
    """Return the problem of a row, for a reader: the test's name without the variant."""
    return item.name.removeprefix("test_").removesuffix(f"{_variant(item)}]").rstrip("-[").replace("[", " ")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Name the groups; where some rows of a problem are selected, ours and the reference's are too."""
    found = list(items)
    problems = {item: _problem(item) for item in found if _variant(item)}
    for item, problem in problems.items():
        item.add_marker(pytest.mark.benchmark(group=problem, timer=_clock.read))
    yield
    kept = set(items)
    rows: dict[str, set[str]] = {problems[item]: set(ALWAYS) for item in items if item in problems}
    for item in kept & problems.keys():
        rows[problems[item]].add(_variant(item))
    items[:] = [item for item in found if item in kept or _variant(item) in rows.get(problems.get(item), ())]
    for item in problems.keys() & items:
        item.stash[_selected] = rows[problems[item]]
    torn = {problems[item] for item in problems.keys() - items} & rows.keys()
    if torn and config.getoption("record"):
        raise pytest.UsageError(f"--record is for all variants of a problem; not all are selected of {min(torn)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[BENCH].selected = item.stash.get(_selected, ())


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Bench:
    """The run."""
    return request.config.stash[BENCH]


@pytest.fixture(scope="module")
def half() -> bool:
    """Whether the variants run under autocast to float16."""
    return False


@pytest.fixture
def row(benchmark: Any, variant: str) -> Row:
    """row(raced): replay the laps of this test's variant, or skip it and say why it has none."""

    def replay(raced: Raced) -> None:
        if variant not in raced.laps:
            pytest.skip(raced.result["missing"].get(variant, "not part of this problem, or only of a full run"))
        laps = iter(raced.laps[variant])
        benchmark.extra_info.update(raced.result, figures={variant: raced.result["figures"][variant]})
        benchmark.pedantic(
            lambda: _clock.set(next(laps)), setup=lambda: _clock.set(0.0), rounds=len(raced.laps[variant])
        )

    return replay


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Show our table, or without it what has no laps to replay, and record."""
    bench = config.stash[BENCH]
    results = growth.merged(bench.results)
    shown = [each for each in results if config.getoption("table") or each["unit"] != "s"]
    record = records.environment(str(bench.device))
    if shown:
        terminalreporter.section("benchmarks")
        terminalreporter.write_line(table.full({**record, "results": shown}))
    if config.getoption("record") and results and exitstatus == 0:
        terminalreporter.write_line(f"recorded in {records.append(record, results)}")
    elif config.getoption("record"):
        terminalreporter.write_line("not recorded: something failed")
