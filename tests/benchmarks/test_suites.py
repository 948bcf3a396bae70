"""Every suite runs, gives correct results and reports, at tiny sizes and without meaningful timings."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITES = sorted(path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py"))


def run(*options):
    command = [sys.executable, "-m", "liif_fast", "bench", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("suites", [SUITES[::2], SUITES[1::2]], ids=" ".join)
def test_suites_run(suites):
    """Run several suites per process, because its start takes as long as a suite; two processes for two workers."""
    done = run(*suites, "--check", "--threads=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"bench_{suite}.py" in done.stdout for suite in suites)
    assert done.stdout.count("rounds: 1") > len(suites)
    assert "no figure" not in done.stdout


def test_one_suite_is_only_that_suite():
    done = run("benchmarks/bench_overhead.py", "--check", "--threads", "1", "-k", "operator")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rounds: 1") == 1
    assert "one call of torch.ops.liif_fast.decode" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--quick", "--record"), "--record and --long are for full runs"),
        (("nothing",), "there is no suite 'nothing'; there are"),
    ],
)
def test_wrong_options(options, message):
    done = run(*options)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
