"""The documents and pictures show the newest complete record."""

import copy
import json

import pytest

from benchmarks import plot, records, report, table

WRITE = "run `python -m benchmarks.report --write`"
RECORD = table.newest(records.read())


def test_there_is_a_record():
    assert RECORD is not None, "run `make bench ARGS='--record --threads 2'`"


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, found in report.sections(RECORD).items() for name in found]
)
def test_documents_are_what_the_newest_record_says(path, name):
    text = path.read_text()
    assert report.fill(text, name, report.sections(RECORD)[path][name]) == text, WRITE


def test_pictures_are_of_the_newest_record():
    shown = plot.parts(RECORD)
    for name in ("speed", "growth", "roofline"):
        path = plot.IMAGES / f"benchmark-{name}.svg"
        assert path.exists() == path.with_suffix(".png").exists() == (name in shown), WRITE
        if name in shown:
            assert plot.stamp(shown[name]) in path.read_text(), WRITE


def test_fill():
    text = "before\n<!-- begin:x -->\nold\n<!-- end:x -->\nafter\n"
    assert report.fill(text, "x", "new") == text.replace("old", "new")
    with pytest.raises(ValueError, match="the markers of y are there 0 times"):
        report.fill(text, "y", "new")


def figure(median, **more):
    spread = {"q20": median * 0.9, "median": median, "q80": median * 1.1}
    return {**spread, "error": 1e-6, **more}


@pytest.fixture
def whole():
    """Make a record with everything that is drawn and written."""
    record = copy.deepcopy(RECORD)
    result = next(result for result in record["results"] if result["name"] == "render-x4-48")
    result["figures"][report.OURS]["share"] = figure(0.7)
    result["figures"]["factorised, OpenVINO"] = figure(0.2, ratio=figure(0.8))
    result |= {"work": {"flop": 10**10, "nbytes": 10**7}, "matrix_rate": figure(4e11), "copy_rate": figure(4e10)}
    gather = {**copy.deepcopy(result), "name": "gather", "title": "gather", "work": {"flop": 0, "nbytes": 10**8}}
    series = {"median": [1.0, 2.0, 4.0], "memory": [2**20, None, 2**22], "exponent": 1.0, "memory_exponent": None}
    growth = {"name": "growth-queries", "title": "decode against queries", "axis": "queries", "sizes": [1, 2, 4]}
    growth |= {"series": {report.OURS: series, "plain, eager": series}, "figures": {}, "missing": {}, "rounds": 3}
    orders = {"steps-decode": report.bench_steps.DECODING, "steps-train": report.bench_steps.TRAINING}
    steps = [
        {
            "name": name,
            "title": name,
            "figures": {each: figure(1.0 / (i + 1), ratio=figure(8.0 / (i + 1))) for i, each in enumerate(order)},
        }
        for name, order in orders.items()
    ]
    record["results"] += [
        gather,
        {**growth, "unit": "s"},
        *({**s, "unit": "s", "missing": {}, "rounds": 3} for s in steps),
    ]
    return record


def test_sections_of_a_whole_record(whole):
    shown = report.sections(whole)
    for path in (report.README, report.PERFORMANCE):  # the others are of suites that have records of their own
        for name, section in shown[path].items():
            assert report.ABSENT not in section, name
    shown = shown[report.PERFORMANCE]
    assert "| render x4 from 48x48 | factorised, OpenVINO | 0.80x |" in shown["lost"]
    assert "| decode against queries | 1 to 4 | liif_fast | queries^1.00 | — |" in shown["growth"]
    assert "| factorised | 500 ms | 2.00x | 2.00x |" in shown["steps"]
    assert "| memory |" in shown["limits"] and "| arithmetic |" in shown["limits"]


def test_a_suite_is_shown_from_the_newest_record_that_has_it():
    def frames(seconds, commit):
        figures = {report.OURS: figure(seconds), "plain, eager": figure(9.0, ratio=figure(12.0))}
        results = [{"name": "attend-frame", "title": "a frame", "unit": "s", "figures": figures}]
        return {**RECORD, "load": [0.1], "commit": commit, "results": results}

    other = {**RECORD, "results": [{"name": "render-x4-48", "figures": {}}]}
    shown = report.lidar([frames(0.5, "old"), frames(0.125, "new"), other])
    assert "| | liif_fast | plain, eager |" in shown and "| a frame | 1 | 12.0x |" in shown
    assert "at new," in shown and shown.endswith("A frame takes 125 ms: 8.0 Hz.") and "busy" not in shown
    assert report.lidar([other]) == report.ABSENT


def test_two_suites_in_one_table():
    """Both suites of relatives are in it, and the command names both."""
    figures = {report.OURS: figure(1.0), "plain, eager": figure(2.0, ratio=figure(2.0))}
    results = [{"name": name, "title": name, "unit": "s", "figures": figures} for name in ("fourier", "modulated")]
    both = {**RECORD, "load": [0.1], "results": results}
    shown = report.relatives([both])
    assert "| fourier | 1 | 2.0x |\n| modulated | 1 | 2.0x |" in shown
    assert "`liif-fast bench fourier modulated`" in shown
    assert report.relatives([both, {**both, "results": results[:1]}]) == shown, "a later record of one suite"


def test_registers_are_of_the_newest_triton(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)

    def record(triton, *registers):
        entry = {"kernel": "attend_kernel", "arch": "sm_90", "config": "x", "spill_bytes": 0, "triton": triton}
        entries = [{**entry, "registers": each} for each in registers]
        (tmp_path / f"triton-{triton}.json").write_text(json.dumps(entries))

    record("3.7.1", 100)
    record("3.10.0", 200)
    record("3.11.0")
    assert "| `attend_kernel` | 200 |\n\nTriton 3.10.0;" in report.registers()
    record("3.10.0", 200, 201)
    with pytest.raises(AssertionError, match="two configurations of attend_kernel on sm_90"):
        report.registers()


def test_times_of_the_viewer():
    results = [{"name": "view-tile", "title": "view: a tile", "unit": "s", "figures": {report.OURS: figure(0.25)}}]
    assert "| a tile | 250 ms |" in report.viewer([{**RECORD, "results": results}])
    assert report.viewer([{**RECORD, "results": []}]) == report.ABSENT


def test_pictures_of_a_whole_record(whole, tmp_path):
    pytest.importorskip("matplotlib")
    stale = tmp_path / "benchmark-roofline.png"
    stale.touch()
    made = plot.draw(whole, tmp_path)
    assert sorted(path.name for path in made) == sorted(
        f"benchmark-{name}.{kind}" for name in ("speed", "growth", "roofline") for kind in ("png", "svg")
    )
    for name, data in plot.parts(whole).items():
        assert plot.stamp(data) in (tmp_path / f"benchmark-{name}.svg").read_text()
    assert stale.stat().st_size > 0
    growth = [result for result in whole["results"] if result["name"].startswith("growth-")][-1:]
    plot.draw({**whole, "results": growth}, tmp_path)  # a part without figures in the record is removed
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark-growth.png", "benchmark-growth.svg"}


def test_a_render_that_never_holds_the_projection():
    record = copy.deepcopy(RECORD)
    memory = next(result for result in record["results"] if result["name"] == "memory-375")
    memory["figures"][report.OURS] |= {"p": 137.3, "median": 8.7}
    assert "137 MiB, are never in memory as a whole" in table.markdown(record)
    assert "beyond P" not in table.full({**record, "results": [memory]}).split("factorised")[0]


def test_stamp_is_of_the_figures():
    data = plot.parts(RECORD)["speed"]
    changed = json.loads(json.dumps(data))
    changed[0]["figures"][report.OURS]["median"] *= 2
    assert plot.stamp(changed) != plot.stamp(data)
