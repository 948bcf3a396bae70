"""A race becomes rows of pytest-benchmark's table: its laps, skipped rows with their reasons, and the selection."""

import gc
import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest
import torch

from benchmarks import common

SUITE = """
import torch

from benchmarks.bench import rows
from benchmarks.common import OURS, REFERENCE

def missing():
    raise ImportError("no such compiler")

@rows("other", "wrong", "broken", "absent", cases=[(1,), (2,)], ids="of {}", half=True)
def test_tiny(bench, size):
    calls = {OURS: torch.ones, REFERENCE: torch.ones, "other": torch.ones, "wrong": torch.zeros}
    calls = {name: lambda make=make: make(size) for name, make in calls.items()}
    return bench.race(f"tiny-{size}", "tiny", calls | {"broken": missing}, rounds=9)

@rows("other")
def test_bad(bench):
    calls = {OURS: lambda: torch.zeros(1), REFERENCE: lambda: torch.ones(1), "other": lambda: torch.ones(1)}
    return bench.race("bad", "bad", calls, rounds=9)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return run(*options), which returns the outcome of the suite and its rows."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # if it is set, pytest-benchmark measures nothing
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    suite, report = tmp_path / "bench_few.py", tmp_path / "report.json"
    suite.write_text(SUITE)

    def call(*options):
        report.unlink(missing_ok=True)
        plugins = ("-p", "benchmarks.conftest", "-p", "no:cacheprovider", "-p", "no:faulthandler", "--capture=no")
        # In this process, which has PyTorch: pytester would take out of sys.modules what is imported first here.
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            options = (str(suite), "-ra", "--import-mode=importlib", f"--benchmark-json={report}", *options)
            code = pytest.main([*plugins, *options])
        done = pytest.RunResult(code, out.getvalue().splitlines(), err.getvalue().splitlines(), 0.0)
        return done, json.loads(report.read_text())["benchmarks"] if report.exists() and report.stat().st_size else []

    yield call
    torch.set_num_threads(threads)
    gc.unfreeze()


def test_rows_are_the_laps(run):
    done, rows = run("--quick", "--threads=1")
    done.assert_outcomes(passed=6, skipped=6, errors=3, deselected=12)
    assert [(row["group"], row["params"]["variant"]) for row in rows] == [
        (f"tiny of {size}", variant) for size in (1, 2) for variant in ("liif_fast", "reference", "other")
    ]
    for row in rows:
        assert len(row["stats"]["data"]) == row["extra_info"]["rounds"] == 3
        figure = row["extra_info"]["figures"][row["params"]["variant"]]
        assert figure.items() >= common.quantiles(row["stats"]["data"]).items()
    for size in (1, 2):
        done.stdout.fnmatch_lines(f"*benchmark 'tiny of {size}': 3 tests*")
    for reason in ("AssertionError: result 0 is wrong by*", "ImportError: no such compiler", "not part of this race*"):
        done.stdout.fnmatch_lines(f"SKIPPED [[]2] *{reason}")
    assert not torch.backends.cudnn.allow_tf32  # float32 rivals compute in float32, in convolutions too
    for variant in ("liif_fast", "reference", "other"):  # of which ours is wrong
        done.stdout.fnmatch_lines(f"ERROR *test_bad[[]{variant}] - AssertionError: result 0 is wrong*")


def test_a_selection_races_with_ours_and_the_reference(run):
    done, rows = run("--check", "--threads=1", "-k", "other and tiny and 2")
    done.assert_outcomes(passed=3, deselected=26)
    assert {row["group"] for row in rows} == {"tiny of 2"}
    assert [row["params"]["variant"] for row in rows] == ["liif_fast", "reference", "other"]
    assert not any(row["extra_info"]["missing"] for row in rows)


def test_only_whole_races_are_recorded(run):
    done, rows = run("--record", "-k", "other and tiny")
    done.stderr.fnmatch_lines("*--record needs all variants of a race, but some of test_tiny are not selected")
    assert not rows


def test_a_short_run_is_not_recorded(run):
    done, rows = run("--quick", "--record")
    done.stderr.fnmatch_lines("*--record and --long are for full runs*")
    assert not rows
