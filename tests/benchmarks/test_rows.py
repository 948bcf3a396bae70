"""A race becomes rows of pytest-benchmark's table: its laps, skipped rows with their reasons, and the selection."""

import json
from pathlib import Path

import pytest

from benchmarks import common

pytest_plugins = "pytester"

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
def run(pytester, monkeypatch):
    """run(*options): the outcome of the suite and its rows."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # if it is set, pytest-benchmark measures nothing
    suite, report = pytester.makepyfile(bench_few=SUITE), pytester.path / "report.json"

    def call(*options):
        report.unlink(missing_ok=True)
        options = ("-p", "benchmarks.conftest", "-p", "no:cacheprovider", f"--benchmark-json={report}", *options)
        done = pytester.runpytest_subprocess(suite, "-ra", *options)
        return done, json.loads(report.read_text())["benchmarks"] if report.exists() and report.stat().st_size else []

    return call


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
    done.stderr.fnmatch_lines("*--record is for all variants of a race; not all are selected of test_tiny")
    assert not rows
