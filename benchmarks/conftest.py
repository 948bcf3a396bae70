"""Options of the suites, the fixture that races the variants of a problem, and the one that shows a variant as a row.

A problem is a fixture of module scope, which checks all variants and runs the race once. Each of its variants is a test
(the mark `variants` names them), which replays the laps of that race: pytest-benchmark shows and stores what was timed
in turn as if it had timed it itself.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # for `benchmarks` itself, wherever pytest was started

from benchmarks import common, growth, limits, records, rivals, table
from benchmarks.common import ALWAYS, Raced
from benchmarks.limits import Work

_results = pytest.StashKey[list[dict[str, Any]]]()
_device = pytest.StashKey[torch.device]()
_running = pytest.StashKey[pytest.Item]()
SECONDS = (8.0, 1.5, 0.0)  # of the rounds of one problem, unless it says otherwise: full, --quick, --check


class Clock:
    """A clock that says what it is set to."""

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


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "variants(*names): what races beside liif_fast and reference, a row each")
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
    config.stash[_results] = []


@pytest.hookimpl(trylast=True)  # so that a problem's own parameters come first in the names
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each variant; on a GPU, once more with autocast to float16 where a problem knows `half`."""
    if "half" in metafunc.fixturenames and metafunc.config.stash[_device].type == "cuda":
        metafunc.parametrize("half", [False, True], ids=["float32", "half"], scope="module")
    for mark in metafunc.definition.iter_markers("variants"):
        metafunc.parametrize("variant", [*ALWAYS, *mark.args])


def _problem(item: pytest.Item) -> str | None:
    """Return the name of the problem that a test shows a variant of: the test's own without the variant."""
    call = getattr(item, "callspec", None)
    if call is None or "variant" not in call.params:
        return None
    test, case = item.name.removesuffix("]").split("[", 1)
    return f"{test.removeprefix('test_')} {case.removesuffix(call.params['variant']).rstrip('-')}".rstrip()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Name the groups; where some rows of a problem are selected, ours and the reference's are, too."""
    found = list(items)
    problems = {item: problem for item in found if (problem := _problem(item))}
    for item, problem in problems.items():
        item.add_marker(pytest.mark.benchmark(group=problem, timer=_clock.read))
    yield
    chosen, selected = set(items), {problems.get(item) for item in items} - {None}
    items[:] = [
        item
        for item in found
        if item in chosen or (problems.get(item) in selected and item.callspec.params["variant"] in ALWAYS)
    ]
    torn = {problems[item] for item in set(found) - set(items) if problems.get(item) in selected}
    if torn and config.getoption("record"):
        raise pytest.UsageError(f"--record is for all variants of a problem; not all are selected of {sorted(torn)[0]}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[_running] = item


@pytest.fixture(scope="session")
def pick(request: pytest.FixtureRequest) -> Callable[[Any, Any, Any], Any]:
    """pick(full, quick, check): the one for this run; None where a case is not part of it, and the test is skipped."""

    def choose(*choices: Any) -> Any:
        choice = common.pick(request.config, *choices)
        if choice is None:
            pytest.skip("not part of --quick")
        return choice

    return choose


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> Callable[[bool], None]:
    """long(True): what follows takes minutes, skip it unless asked for."""

    def run(needed: bool) -> None:
        if needed and not request.config.getoption("long") and not request.config.getoption("check"):
            pytest.skip("only with --long")

    return run


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that the run measures."""
    return request.config.stash[_device]


@pytest.fixture(scope="module")
def half() -> bool:
    """Whether the variants run under autocast to float16."""
    return False


@pytest.fixture(scope="session")
def yardsticks(request: pytest.FixtureRequest) -> list[limits.Yardstick]:
    """What measures the machine's rates: it takes turns with what is compared with it."""
    return limits.yardsticks(request.config.stash[_device], tiny=request.config.getoption("check"))


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """report(result): show it in the table and keep it for the record."""
    return request.config.stash[_results].append


def _autocast(call: common.Call) -> common.Call:
    def run() -> common.Result:
        with torch.autocast("cuda", torch.float16):
            return call()

    return run


@pytest.fixture(scope="session")
def race(
    pick: Callable[..., Any],
    report: Callable[[dict[str, Any]], None],
    device: torch.device,
    request: pytest.FixtureRequest,
) -> Callable[..., Raced]:
    """`common.race` of this run: its rounds, what is selected, and without what takes long to set up in a short one."""

    def run(
        name: str,
        title: str,
        calls: dict[str, common.Call],
        *,
        rounds: int,
        seconds: float | None = None,
        work: Work | None = None,
        half: bool = False,
        **options: Any,
    ) -> Raced:
        torch.compiler.reset()
        if half:
            name, title = f"{name}-half", f"{title}, float16 autocast"
            options["tolerances"] = (common.HALF_TOLERANCE, common.HALF_GRADIENT_TOLERANCE)
            reference = {common.REFERENCE: calls[common.REFERENCE]}
            calls = {each: _autocast(call) for each, call in calls.items()} | reference
        if not pick(True, False, False):
            calls = {each: call for each, call in calls.items() if each not in rivals.COMPILED_FORMS}
        if work:
            options["yardsticks"] = (
                limits.yardsticks(device, half=True) if half else request.getfixturevalue("yardsticks")
            )
        running = request.config.stash[_running]
        rows = [each for each in request.session.items if _problem(each) == _problem(running)]
        raced = common.race(
            name,
            title,
            calls,
            rounds=pick(rounds, 3, 1),
            seconds=pick(SECONDS[0] if seconds is None else seconds, *SECONDS[1:]),
            selected={each.callspec.params["variant"] for each in rows},
            work=work,
            **options,
        )
        report(raced.result)
        return raced

    return run


@pytest.fixture
def row(benchmark: Any, variant: str) -> Callable[[Raced], None]:
    """row(raced): replay the laps of this test's variant, or skip it and say why it has none."""

    def replay(raced: Raced) -> None:
        if variant not in raced.laps:
            pytest.skip(raced.result["missing"].get(variant, "not part of this problem or run"))
        laps = iter(raced.laps[variant])
        figures = raced.result["figures"]
        benchmark.extra_info.update({**raced.result, "figures": {variant: figures[variant]}})
        benchmark.pedantic(
            lambda: _clock.set(next(laps)), setup=lambda: _clock.set(0.0), rounds=len(raced.laps[variant])
        )

    return replay


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Show our table, or without it what has no laps to replay, and record."""
    results = growth.merged(config.stash[_results])
    shown = [each for each in results if config.getoption("table") or each["unit"] != "s"]
    record = records.environment(str(config.stash[_device]))
    if shown:
        terminalreporter.section("benchmarks")
        terminalreporter.write_line(table.full({**record, "results": shown}))
    if config.getoption("record") and results and exitstatus == 0:
        terminalreporter.write_line(f"recorded in {records.append(record, results)}")
    elif config.getoption("record"):
        terminalreporter.write_line("not recorded: something failed")
