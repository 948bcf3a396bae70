"""Every suite runs, gives correct results and reports, at tiny sizes and without meaningful timings."""

import subprocess
import sys
from pathlib import Path

from liif_fast.cli import main

ROOT = Path(__file__).parents[2]
SUITES = sorted(path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py"))


def test_suites_run():
    """Run all in one process, because its start takes as long as most suites."""
    command = [sys.executable, "-m", "liif_fast", "bench", "--check", "--threads=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"bench_{suite}.py" in done.stdout for suite in SUITES)
    assert done.stdout.count("rounds: 1") > len(SUITES)
    assert "no figure" not in done.stdout


def test_one_suite_is_only_that_suite(monkeypatch, capfd):
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **more: run([*command, "--collect-only", "-q"], **more))
    assert main(["bench", "benchmarks/bench_overhead.py", "--check", "--threads", "1", "-k", "operator"]) == 0
    tests = [line for line in capfd.readouterr().out.splitlines() if "::" in line]
    assert tests and all(line.startswith("benchmarks/bench_overhead.py::test_operator") for line in tests)


def test_an_unknown_suite(capsys):
    assert main(["bench", "nothing"]) == 1
    assert "there is no suite 'nothing'; there are" in capsys.readouterr().err
