"""Options of the suites, the fixture that races variants, the table at the end and the record."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # for `benchmarks` itself, wherever pytest was started

from benchmarks import common, table

_results = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("liif_fast benchmarks")
    group.addoption("--quick", action="store_true", help="few rounds and no torch.compile: about a minute")
    group.addoption("--check", action="store_true", help="tiny sizes, one round: only that every suite runs")
    group.addoption("--threads", type=int, help="PyTorch's threads (default: as PyTorch chooses)")
    group.addoption("--record", action="store_true", help="append the figures to benchmarks/results/")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("record") and (config.getoption("quick") or config.getoption("check")):
        raise pytest.UsageError("--record is for full runs: without --quick and --check")
    if config.getoption("threads"):
        torch.set_num_threads(config.getoption("threads"))
    config.option.benchmark_quiet = True  # one table, ours; pytest-benchmark's knows nothing of rivals
    config.stash[_results] = []


@pytest.fixture
def pick(request: pytest.FixtureRequest) -> Callable[[Any, Any, Any], Any]:
    """pick(full, quick, check): the one for this run."""
    config = request.config
    place = 2 if config.getoption("check") else 1 if config.getoption("quick") else 0
    return lambda *choices: choices[place]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """report(result): show it in the table and keep it for the record."""
    return request.config.stash[_results].append


@pytest.fixture
def race(
    benchmark: Any, pick: Callable[..., Any], report: Callable[[dict[str, Any]], None]
) -> Callable[..., dict[str, Any]]:
    """`common.race` of this run: its rounds, and without what takes long to set up in a short one."""

    def run(
        name: str,
        title: str,
        ours: common.Call,
        rivals: dict[str, common.Call],
        expected: common.Result,
        *,
        rounds: int,
        flop: int = 0,
    ) -> dict[str, Any]:
        torch.compiler.reset()
        rivals = {each: rivals[each] for each in rivals if each != common.COMPILED or pick(True, False, False)}
        rounds = pick(rounds, 3, 1)
        result = common.race(benchmark, name, title, ours, rivals, expected, rounds=rounds, flop=flop)
        report(result)
        return result

    return run


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    results = config.stash[_results]
    if not results:
        return
    environment = common.environment()
    terminalreporter.section("benchmarks")
    terminalreporter.write_line(table.full({**environment, "results": results}))
    if config.getoption("record") and exitstatus == 0:
        terminalreporter.write_line(f"recorded in {common.append_record(environment, results)}")
    elif config.getoption("record"):
        terminalreporter.write_line("not recorded: something failed")
