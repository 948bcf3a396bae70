"""The measurement of calls of few rows runs, and it crosses the number of rows from which weights are packed."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks import few_rows


@pytest.mark.skipif(sys.platform == "win32", reason="ctypes finds no memcmp there without a library's name")
def test_it_runs():
    found = few_rows.measure(few_rows.calls(width=32, layers=2), rounds=1)
    assert len(found["figures"]) == len(few_rows.ROWS) + 1
    assert all(figure["median"] > 0 for figure in found["figures"].values())
    assert {"name", "title", "unit", "rounds", "figures", "missing"} == set(found)


def test_the_table_and_what_it_says():
    heads = [*map(few_rows._head, few_rows.ROWS), few_rows.COMPARED]
    times = dict(zip(heads, [70, 80, 100, 150, 250, 310, 361, 400, 424, 29], strict=True))
    *table, empty, said = few_rows.lines({"figures": {name: {"median": 1e-6 * time} for name, time in times.items()}})
    assert table[0].startswith("| rows | 1 |") and "| 61, packed |" in table[0] and table[2].endswith("| 29 µs |")
    assert not empty and "60 to 61 rows, 51 µs, is" in said and said.endswith("takes 29 µs.")


def test_the_threshold_is_the_kernels():
    source = Path(__file__).parents[2] / "csrc" / "cpu" / "kernel_avx512.cpp"
    assert few_rows.PACKED == 1 + max(map(int, re.findall(r"turned_rows = (\d+)", source.read_text())))
