"""Options of the suites, the fixture that races variants, the table at the end and the record."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # for `benchmarks` itself, wherever pytest was started

from benchmarks import common, limits, records, table
from benchmarks.limits import Work, Yardstick

_results = pytest.StashKey[list[dict[str, Any]]]()
_device = pytest.StashKey[torch.device]()
SECONDS = (8.0, 1.5, 0.0)  # of the rounds of one benchmark, unless it says otherwise: full, --quick, --check


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("liif_fast benchmarks")
    group.addoption("--quick", action="store_true", help="few cases, few rounds, no torch.compile: about a minute")
    group.addoption("--check", action="store_true", help="tiny sizes, one round: only that every suite runs")
    group.addoption("--long", action="store_true", help="also what takes minutes each on a CPU")
    group.addoption("--threads", type=int, help="PyTorch's threads (default: as PyTorch chooses)")
    group.addoption("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    group.addoption("--record", action="store_true", help="append the figures to benchmarks/results/")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    short = config.getoption("quick") or config.getoption("check")
    if short and (config.getoption("record") or config.getoption("long")):
        raise pytest.UsageError("--record and --long are for full runs: without --quick and --check")
    threads = config.getoption("threads")
    if threads is not None and threads < 1:
        raise pytest.UsageError(f"--threads must be at least 1, got {threads}")
    if threads:
        torch.set_num_threads(threads)
    try:
        config.stash[_device] = torch.empty(0, device=config.getoption("device")).device
    except (RuntimeError, AssertionError) as error:
        raise pytest.UsageError(f"--device {config.getoption('device')}: {str(error).splitlines()[0]}") from None
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32 in convolutions too, as PyTorch has it in products
    config.option.benchmark_quiet = True  # one table, ours; pytest-benchmark's knows nothing of rivals
    config.stash[_results] = []


@pytest.fixture
def pick(request: pytest.FixtureRequest) -> Callable[[Any, Any, Any], Any]:
    """pick(full, quick, check): the one for this run; None where a case is not part of it, and the test is skipped."""
    config = request.config
    place = 2 if config.getoption("check") else 1 if config.getoption("quick") else 0

    def choose(*choices: Any) -> Any:
        if choices[place] is None:
            pytest.skip("not part of --quick")
        return choices[place]

    return choose


@pytest.fixture
def long(request: pytest.FixtureRequest) -> Callable[[bool], None]:
    """long(True): what follows takes minutes, skip it unless asked for."""

    def run(needed: bool) -> None:
        if needed and not request.config.getoption("long") and not request.config.getoption("check"):
            pytest.skip("only with --long")

    return run


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that the run measures."""
    return request.config.stash[_device]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `half` to a benchmark that asks for it: once without, on a GPU also once with autocast to float16."""
    if "half" in metafunc.fixturenames:
        on_gpu = metafunc.config.stash[_device].type == "cuda"
        metafunc.parametrize("half", [False, True] if on_gpu else [False], ids=lambda on: "half" if on else "float32")


@pytest.fixture(scope="session")
def yardsticks(request: pytest.FixtureRequest) -> list[Yardstick]:
    """What measures the machine's rates: it takes turns with what is compared with it."""
    return limits.yardsticks(request.config.stash[_device], tiny=request.config.getoption("check"))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """report(result): show it in the table and keep it for the record."""
    return request.config.stash[_results].append


def _autocast(call: common.Call) -> common.Call:
    def run() -> common.Result:
        with torch.autocast("cuda", torch.float16):
            return call()

    return run


@pytest.fixture
def race(
    benchmark: Any,
    pick: Callable[..., Any],
    report: Callable[[dict[str, Any]], None],
    request: pytest.FixtureRequest,
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
        seconds: float | None = None,
        work: Work | None = None,
        half: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        torch.compiler.reset()
        if half:
            name, title = f"{name}-half", f"{title}, float16 autocast"
            options["tolerances"] = (common.HALF_TOLERANCE, common.HALF_GRADIENT_TOLERANCE)
            ours = _autocast(ours)
            full = {common.EAGER_FLOAT32: rivals[common.EAGER]} if common.EAGER in rivals else {}
            rivals = {**{each: _autocast(call) for each, call in rivals.items()}, **full}
        compiled = (common.COMPILED, common.FACTORISED_COMPILED)
        rivals = {each: rivals[each] for each in rivals if each not in compiled or pick(True, False, False)}
        if work:
            options["yardsticks"] = (
                limits.yardsticks(request.getfixturevalue("device"), half=True)
                if half
                else request.getfixturevalue("yardsticks")
            )
        seconds = pick(SECONDS[0] if seconds is None else seconds, *SECONDS[1:])
        result = common.race(
            benchmark,
            name,
            title,
            ours,
            rivals,
            expected,
            rounds=pick(rounds, 3, 1),
            seconds=seconds,
            work=work,
            **options,
        )
        report(result)
        return result

    return run


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    results = config.stash[_results]
    if not results:
        return
    record = records.environment(str(config.stash[_device]))
    terminalreporter.section("benchmarks")
    terminalreporter.write_line(table.full({**record, "results": results}))
    if config.getoption("record") and exitstatus == 0:
        terminalreporter.write_line(f"recorded in {records.append(record, results)}")
    elif config.getoption("record"):
        terminalreporter.write_line("not recorded: something failed")
