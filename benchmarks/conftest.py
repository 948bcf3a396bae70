"""Add the suites' options to pytest, select their rows, and print the results; benchmarks/bench.py runs them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # so that `benchmarks` is found wherever pytest is started

from benchmarks import growth, records, table
from benchmarks.bench import BENCH, Bench, Heat
from benchmarks.common import ALWAYS, Raced


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("liif_fast benchmarks")
    group.addoption("--quick", action="store_true", help="few cases, few rounds, no torch.compile: about a minute")
    group.addoption("--check", action="store_true", help="tiny sizes, one round: shows only that every suite runs")
    group.addoption("--long", action="store_true", help="also races that take minutes each on a CPU")
    group.addoption("--threads", type=int, help="PyTorch's threads (default: as PyTorch chooses)")
    group.addoption("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    group.addoption("--table", action="store_true", help="show ratios within a round, memory, errors and shares")
    group.addoption("--record", action="store_true", help="append the figures to benchmarks/results/")


def pytest_configure(config: pytest.Config) -> None:
    option = config.getoption
    if (option("quick") or option("check")) and (option("record") or option("long")):
        raise pytest.UsageError("--record and --long are for full runs; leave --quick and --check out")
    threads = option("threads")
    if threads is not None and threads < 1:
        raise pytest.UsageError(f"--threads must be at least 1, got {threads}")
    if threads:
        torch.set_num_threads(threads)
    try:
        device = torch.empty(0, device=option("device")).device
    except (RuntimeError, AssertionError) as error:
        raise pytest.UsageError(f"--device {option('device')}: {str(error).splitlines()[0]}") from None
    torch.backends.cudnn.allow_tf32 = False  # so that convolutions keep float32, as PyTorch's products do by default
    config.stash[BENCH] = Bench(option, device)


def _row(item: pytest.Item) -> tuple[Heat, str] | None:
    """Return the race and the variant of a test; None if the test is not a row."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return (params["raced"], params["variant"]) if "raced" in params else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Leave out half precision on a CPU; add the rows of liif_fast and the reference to every selected race."""
    bench = config.stash[BENCH]
    rows = {item: row for item in items if (row := _row(item))}
    on_gpu = [item for item, (heat, _) in rows.items() if heat.half and bench.device.type != "cuda"]
    config.hook.pytest_deselected(items=on_gpu)
    found = [item for item in items if item not in on_gpu]
    items[:] = found
    yield
    for heat, variant in (rows[item] for item in items if item in rows):
        bench.selected.setdefault(heat, set(ALWAYS)).add(variant)
    shown = {*items, *(item for item, (heat, variant) in rows.items() if variant in bench.selected.get(heat, ()))}
    torn = [heat.race.__name__ for item, (heat, _) in rows.items() if heat in bench.selected and item not in shown]
    if torn and config.getoption("record"):
        raise pytest.UsageError(f"--record needs all variants of a race, but some of {torn[0]} are not selected")
    items[:] = [item for item in found if item in shown]


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Bench:
    """Return the run."""
    return request.config.stash[BENCH]


@pytest.fixture(scope="module")
def raced(request: pytest.FixtureRequest, bench: Bench) -> Raced:
    """Check and time a race once for all of its rows."""
    return bench.run(request.param)


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Show our table, or otherwise the results without laps, and append the record."""
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
        terminalreporter.write_line("not recorded, because a test failed or nothing was measured")
