import copy

from benchmarks import table
from benchmarks.common import EAGER, OURS


def figure(median, **more):
    return {"q20": median * 0.9, "median": median, "q80": median * 1.1, "error": 1e-6, **more}


def result(name):
    ratio = {"q20": 4.9, "median": 5.0, "q80": 5.1}
    unit = "MiB" if name.startswith("memory") else "s"
    return {
        "name": name,
        "title": f"the title of {name}",
        "unit": unit,
        "rounds": 3,
        "figures": {
            OURS: figure(0.1234, p=0.1, memory=2**21, share={"q20": 0.7, "median": 0.75, "q80": 0.8}),
            EAGER: figure(0.617, ratio=ratio),
            "sgemm": {"q20": 1.0, "median": 1.0, "q80": 1.0},
        },
        "missing": {"absent": "ImportError: not here"},
        "matrix_rate": {"q20": 99e9, "median": 100e9, "q80": 101e9},
        "share_of_sgemm": {"q20": 0.9, "median": 0.91, "q80": 0.92},
    }


RECORD = {
    "version": "1.2.3",
    "commit": "abc1234",
    "date": "2026-01-02T03:04:05Z",
    "cpu": "a processor, 2 logical cores",
    "isa": "avx2",
    "threads": 2,
    "torch": "2.13.0",
    "load": [0.0, 0.0, 0.0],
    "results": [result(name) for name in table.NEEDED],
}


def test_markdown():
    text = table.markdown(RECORD)
    assert "| the title of render-x4-48 | 1 | 5.0x |" in text
    assert "91%" in text
    assert "| the title of memory-188 | 0.123 MiB (1) | 0.617 MiB (5.0x) |" in text
    assert "abc1234" in text
    assert table.markdown(None) == "Not yet measured."


def test_full():
    text = table.full(RECORD)
    for each in (
        "123 ms",
        "[111 ms .. 136 ms]",
        "5.00x [4.90 .. 5.10]",
        "no figure: ImportError",
        "75% of the limit",
        "2.00 MiB",
        "100 GFLOP/s",
    ):
        assert each in text


def test_a_benchmark_s_own_notes_are_shown():
    record = {**RECORD, "results": [{**result("data"), "notes": ["samples/s: 12"]}]}
    assert "\n  samples/s: 12\n" in table.full(record)


def test_newest_needs_every_row():
    partial = copy.deepcopy(RECORD)
    del partial["results"][0]
    assert table.newest([RECORD, partial]) is RECORD
    assert table.newest([partial]) is None


def test_quantity():
    assert [table.quantity(*each) for each in ((1.234, "s"), (0.5, "s"), (12.3e-6, "s"), (1234.5, "MiB"))] == [
        "1.23 s",
        "500 ms",
        "12.3 µs",
        "1,234 MiB",
    ]
