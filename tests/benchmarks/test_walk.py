"""A call goes through few files."""

import subprocess
import sys
from pathlib import Path

import pytest

from liif_fast.backends import cpu

ROOT = Path(__file__).parents[2]


def files(backend):
    """Return how many files a call goes through, in its own process, because other tests replace the CPU kernels."""
    script = f"from benchmarks.walk import walk; print(len(walk({backend!r})))"
    command = [sys.executable, "-c", f"import os; os.environ['TRITON_INTERPRET'] = '1'; {script}"]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(bool(cpu._missing), reason="the C++ kernels are not built")
def test_a_call_on_the_cpu_goes_through_seven_files():
    assert files("cpu") <= 7


def test_a_call_to_triton_goes_through_eleven_files():
    pytest.importorskip("triton", reason="Triton is not installed")
    assert files("triton") <= 11
