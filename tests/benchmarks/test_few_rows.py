"""The measurement of calls of few rows runs, and it crosses the number of rows from which weights are packed."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks import few_rows


@pytest.mark.skipif(sys.platform == "win32", reason="ctypes finds no memcmp there without a library's name")
def test_it_runs():
    found = few_rows.seconds(few_rows.calls(width=32, layers=2), rounds=1)
    assert len(found) == len(few_rows.ROWS) + 1
    assert all(time > 0 for time in found.values())


def test_the_threshold_is_the_kernels():
    source = Path(__file__).parents[2] / "csrc" / "cpu" / "kernel_avx512.cpp"
    assert few_rows.PACKED == 1 + max(map(int, re.findall(r"turned_rows = (\d+)", source.read_text())))
