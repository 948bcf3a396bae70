"""Every suite runs, is right, and reports; at tiny sizes, and without timing anything that counts."""

import subprocess
import sys
from pathlib import Path

from benchmarks.table import NEEDED

ROOT = Path(__file__).parents[2]


def run(*options):
    command = [sys.executable, "-m", "pytest", "benchmarks", "-o", "python_files=bench_*.py", "-p", "no:cacheprovider"]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)


def test_suites_run():
    done = run("--check", "--threads", "1", "-k", "not 375")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rounds: 1") == len(NEEDED) - 1


def test_only_full_runs_are_recorded():
    done = run("--quick", "--record", "--collect-only")
    assert done.returncode != 0
    assert "--record is for full runs" in done.stderr + done.stdout
