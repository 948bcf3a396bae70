import copy

import pytest

from benchmarks import compare
from benchmarks.common import EAGER, OURS


def figure(median, spread=0.0, **more):
    return {"q20": median * (1 - spread), "median": median, "q80": median * (1 + spread), **more}


def record(commit, ratio, *, spread=0.01, seconds=1.0, threads=2):
    """Make a record in which the plain formula takes `ratio` times as long as ours."""
    figures = {OURS: figure(seconds, spread, error=0.0)}
    figures[EAGER] = figure(seconds * ratio, spread, error=0.0, ratio=figure(ratio, spread))
    result = {"name": "x", "title": "the title", "unit": "s", "rounds": 9, "figures": figures, "missing": {}}
    return {"commit": commit, "cpu": "a, 2 logical cores", "isa": "avx2", "threads": threads, "results": [result]}


def verdicts(*records):
    return [change.verdict for change in compare.compare(records, "aaaaaaa", "bbbbbbb")]


def test_a_change_beyond_the_noise():
    runs = [record("aaaaaaa", 4.0), record("aaaaaaa", 4.02), record("bbbbbbb", 5.0), record("bbbbbbb", 5.02)]
    (change,) = compare.compare(runs, "aaaaaaa", "bbbbbbb")
    assert change.verdict == "faster"
    assert change.ratio == pytest.approx(4.01 / 5.01, rel=1e-3)
    assert (change.before.runs, change.after.runs) == (2, 2)
    assert "the title" in compare.text([change])
    assert verdicts(record("aaaaaaa", 5.0), record("bbbbbbb", 4.0)) == ["slower"]


def test_noise_is_no_change():
    few = record("aaaaaaa", 4.0), record("bbbbbbb", 4.05)  # single runs: at least 1.5 % each
    assert verdicts(*few) == ["within noise"]
    apart = (
        record("aaaaaaa", 4.0),
        record("aaaaaaa", 5.0),
        record("bbbbbbb", 4.9),
    )  # the runs of one commit differ as much
    assert verdicts(*apart) == ["within noise"]
    wide = record("aaaaaaa", 4.0, spread=0.3), record("bbbbbbb", 4.4, spread=0.3)
    assert verdicts(*wide) == ["within noise"]


def test_a_slow_day_is_no_change():
    assert verdicts(record("aaaaaaa", 4.0), record("bbbbbbb", 4.0, seconds=1.5)) == ["within noise"]


def test_a_matrix_product_is_the_better_yardstick():
    before, after = record("aaaaaaa", 4.0), record("bbbbbbb", 5.0)
    for each in (before, after):
        each["results"][0]["share_of_sgemm"] = figure(0.9, 0.01)
    assert verdicts(before, after) == ["within noise"]
    after["results"][0]["share_of_sgemm"] = figure(1.1, 0.01)
    assert verdicts(before, after) == ["faster"]


def test_a_share_of_nothing_is_no_yardstick():
    """gather_corners multiplies nothing, so its share in records is 0."""
    before, after = record("aaaaaaa", 4.0), record("bbbbbbb", 5.0)
    for each in (before, after):
        each["results"][0]["share_of_sgemm"] = figure(0.0, 0.0)
    assert verdicts(before, after) == ["faster"]


def test_without_a_yardstick_times_are_compared():
    before, after = record("aaaaaaa", 4.0), record("bbbbbbb", 4.0, seconds=2.0)
    for each in (before, after):
        del each["results"][0]["figures"][EAGER]
    assert verdicts(before, after) == ["slower"]


def test_only_like_is_compared_with_like():
    before, after = record("aaaaaaa", 4.0), record("bbbbbbb", 4.0, threads=1)
    with pytest.raises(ValueError, match="no records of the same machine"):
        verdicts(before, after)
    with pytest.raises(ValueError, match="no record of commit bbbbbbb; there are records of aaaaaaa"):
        verdicts(before)
    changed = copy.deepcopy(before) | {"commit": "bbbbbbb+"}  # measured with uncommitted changes
    with pytest.raises(ValueError, match="no record of commit bbbbbbb"):
        verdicts(before, changed)
