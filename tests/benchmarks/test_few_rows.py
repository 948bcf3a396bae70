"""The measurement of calls of few rows runs, on either side of the number of rows from which weights are packed."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks import few_rows
from liif_fast.backends import cpu


@pytest.mark.skipif(sys.platform == "win32", reason="ctypes finds no memcmp there without a library's name")
def test_it_runs():
    found = few_rows.measure(few_rows.calls(6, width=32, layers=2), rounds=1)
    heads = ["1", "4", "6", *(f"{rows}, packed" for rows in (7, 12, 24, 48, 72, 96)), few_rows.COMPARED]
    assert [*found["figures"]] == heads
    assert all(figure["median"] > 0 for figure in found["figures"].values())
    assert {"name", "title", "unit", "rounds", "figures", "missing"} == set(found)


@pytest.mark.parametrize(
    ("first", "packing", "cache"),
    [
        (361, "packing costs 46 µs", "save 17 µs a call, 5 % of this one."),
        (320, "packing costs 5 µs", "save nothing."),
        (312, "packing costs nothing beyond", "save nothing."),
    ],
)
def test_the_table_and_what_it_says(first, packing, cache):
    """The row's own 5 µs do not count as packing, and the sentences follow from the figures."""
    times = {"1": 70, "48": 250, "60": 310, "61, packed": first, "96, packed": 424, few_rows.COMPARED: 29}
    *table, empty, said = few_rows.lines({"figures": {name: {"median": 1e-6 * time} for name, time in times.items()}})
    assert table[0].startswith("| rows | 1 |") and "| 61, packed |" in table[0] and table[2].endswith("| 29 µs |")
    assert not empty and f"A call of 61 rows takes {first - 310} µs more than one of 60. A row takes 5 µs" in said
    assert packing in said and "comparing them costs 29 µs" in said and said.endswith(cache)


def test_the_thresholds_are_the_kernels():
    for name, rows in few_rows.UNPACKED.items():
        source = Path(__file__).parents[2] / "csrc" / "cpu" / f"kernel_{name}.cpp"
        assert rows == max(map(int, re.findall(r"turned_rows = (\d+)", source.read_text())))


def test_kernels_that_always_pack_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["few_rows"])
    monkeypatch.setattr(cpu, "ISA", "portable")
    with pytest.raises(SystemExit, match="expected kernels for avx512 or avx2, got portable"):
        few_rows.main()
