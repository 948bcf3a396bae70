"""Print the newest complete record: python -m benchmarks.report.

With --write, fill the documents and draw the pictures. The tests refuse documents and pictures that differ from the
records.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import (
    bench_attend,
    bench_bfloat16,
    bench_export,
    bench_steps,
    convolution,
    few_rows,
    lidar_quality,
    plot,
    records,
    table,
    training_rate,
)
from benchmarks.common import EAGER, FACTORISED, OURS
from benchmarks.table import Record, quantity

README = records.ROOT / "README.md"
PERFORMANCE = records.ROOT / "docs" / "performance.md"
CPU = records.ROOT / "docs" / "cpu.md"
EXPORT = records.ROOT / "docs" / "export.md"
FAMILY = records.ROOT / "docs" / "family.md"
LIDAR = records.ROOT / "docs" / "lidar.md"
TRITON = records.ROOT / "docs" / "triton.md"
VIEWER = records.ROOT / "docs" / "viewer.md"
ABSENT = "Not yet measured by a record that is complete; `make bench` shows it for your machine."
CAPTIONS = {
    "speed": "Time of every rival in multiples of ours",
    "growth": "How time and memory grow with queries, latents, batch and threads",
    "roofline": "The machine's limits and what share of them each kernel reaches",
}


def pictures(record: Record, folder: str) -> str:
    """Return the pictures for which the record has figures."""
    return "\n\n".join(f"![{CAPTIONS[name]}]({folder}/benchmark-{name}.png)" for name in plot.parts(record))


def steps(record: Record | None) -> str:
    """Return the gain of each optimisation over the step before it and over the plain formula."""
    results = {result["name"]: result for result in record["results"]} if record else {}
    tables = []
    for name, order in (("steps-decode", bench_steps.DECODING), ("steps-train", bench_steps.TRAINING)):
        if name not in results:
            continue
        figures = results[name]["figures"]
        one = {"median": 1.0}
        # All but the times are relative to ours, within a round.
        costs = [(step, figures[step].get("ratio", one)["median"]) for step in order if step in figures]
        lines = [f"| {results[name]['title']} | time | against the step before | against plain |", "|---" * 4 + "|"]
        for (step, cost), (_, before) in zip(costs, [costs[0], *costs], strict=False):
            time = quantity(figures[step]["median"], "s")
            lines.append(f"| {step} | {time} | {before / cost:.2f}x | {costs[0][1] / cost:.2f}x |")
        tables.append("\n".join(lines))
    return "\n\n".join([*tables, _origin(record)]) if tables else ABSENT


def limits(record: Record | None) -> str:
    """Return the machine's rates and every kernel's share of its limit."""
    shown = plot.parts(record).get("roofline") if record else None
    if not shown:
        return ABSENT
    lines = ["| | useful work | bound by | our rate | the limit | share |", "|---" * 6 + "|"]
    for each in shown:
        flop, nbytes = each["work"]["flop"], each["work"]["nbytes"]
        matrix, copy = (rate["median"] for rate in each["rates"])
        arithmetic = flop / matrix > nbytes / copy
        amount, unit, limit = (flop, "GFLOP", matrix) if arithmetic else (nbytes, "GB", copy)
        lines.append(
            f"| {each['title']} | {quantity(amount / 1e9, unit)} | {'arithmetic' if arithmetic else 'memory'} | "
            f"{amount / each['figure']['median'] / 1e9:.0f} {unit}/s | {limit / 1e9:.0f} {unit}/s | "
            f"{each['figure']['share']['median']:.0%} |"
        )
    return "\n".join([*lines, "", _origin(record)])


def growth(record: Record | None) -> str:
    """Return the exponents of measurements at several sizes."""
    shown = plot.parts(record).get("growth") if record else None
    if not shown:
        return ABSENT
    lines = ["| | sizes | variant | time grows as | memory grows as |", "|---" * 5 + "|"]
    for result in shown:
        for variant, series in result["series"].items():
            powers = [
                "—" if series[key] is None else f"{result['axis']}^{series[key]:.2f}"
                for key in ("exponent", "memory_exponent")
            ]
            sizes = f"{result['sizes'][0]:,} to {result['sizes'][-1]:,}"
            lines.append(f"| {result['title']} | {sizes} | {variant} | {powers[0]} | {powers[1]} |")
    return "\n".join([*lines, "", _origin(record)])


def lost(record: Record | None) -> str:
    """Return the benchmarks in which a rival is faster than ours in the whole middle 60 % of rounds."""
    if record is None:
        return ABSENT
    lines = [
        f"| {result['title']} | {name} | {figure['ratio']['median']:.2f}x |"
        for result in record["results"]
        for name, figure in result["figures"].items()
        if not result["name"].startswith("steps-") and figure.get("ratio", {"q80": 1})["q80"] < 1
    ]
    if not lines:
        return f"In this record no rival is faster or smaller in any benchmark. {_origin(record)}"
    head = [f"| | rival | its time (or memory) over that of {OURS} |", "|---|---|---|"]
    return "\n".join([*head, *lines, "", _origin(record)])


def export(found: Sequence[Record]) -> str:
    """Return the comparison of exported graphs with ours, from the newest record that has it."""
    columns = (OURS, FACTORISED, *bench_export.RUNTIMES)
    return _suite(found, "export", columns, "Whole is one call, strips the parts.")


def lidar(found: Sequence[Record]) -> str:
    """Return the comparison of ILN's decoder and frame with the plain form, from the newest record that has it."""
    columns = (OURS, bench_attend.BACKEND_TORCH, EAGER)
    shown = _suite(found, "attend", columns, "Plain is the authors' form, in chunks of 100,000 queries.")
    times = [
        result["figures"][OURS]["median"]
        for record in found
        for result in record["results"]
        if result["name"] == "attend-frame"
    ]
    return f"{shown} A frame takes {quantity(times[-1], 's')}: {1 / times[-1]:.1f} Hz." if times else shown


def scans() -> str:
    """Return the scores of the shipped LiDAR model on the scan of an OS1-128, from their record."""
    record = json.loads((records.RESULTS / "lidar_quality.json").read_text())
    shown = lidar_quality.table([result for result in record["results"] if result["scan"] == "os1-128"])
    methods = " / ".join(lidar_quality.METHODS.values())
    origin = f"liif_fast {record['version']} at {record['commit']}, torch {record['torch']}"
    return f"{shown}\n\nScores of {methods}, by `python -m benchmarks.lidar_quality`; {origin}."


def relatives(found: Sequence[Record]) -> str:
    """Return the comparison of LTE's and LM-LIIF's decoders with the plain form, from the newest record with both."""
    columns = (OURS, bench_attend.BACKEND_TORCH, EAGER)
    return _suite(found, ("fourier", "modulated"), columns, "Plain is the authors' form, in chunks of 30,000 queries.")


def viewer(found: Sequence[Record]) -> str:
    """Return the times of the viewer's tiles, from the newest record that has them."""

    def lines(results: Sequence[Record]) -> list[str]:
        times = [(result["title"], quantity(result["figures"][OURS]["median"], "s")) for result in results]
        return ["| | time |", "|---|---|", *(f"| {title.removeprefix('view: ')} | {time} |" for title, time in times)]

    return _lines(found, "view-", lines)


def registers() -> str:
    """Return the registers of the kernels of `attend_corners`, from the record of the newest Triton that has them."""
    reports = [json.loads(path.read_text()) for path in records.RESULTS.glob("triton-*.json")]
    entries = [[entry for entry in report if entry["kernel"].startswith("atte")] for report in reports]
    shown = max(filter(None, entries), key=lambda each: [int(part) for part in each[0]["triton"].split(".")])
    arches = sorted({entry["arch"] for entry in shown})
    rows: dict[str, dict[str, int]] = {}
    for entry in sorted(shown, key=lambda entry: entry["arch"]):
        kept = ", keeping activations" if " keep=True " in entry["config"] else ""
        row = rows.setdefault(f"`{entry['kernel']}`{kept}", {})
        assert entry["arch"] not in row, f"two configurations of {entry['kernel']}{kept} on {entry['arch']}"
        row[entry["arch"]] = entry["registers"]
    lines = [f"| kernel | {' | '.join(f'registers on {arch}' for arch in arches)} |", "|---" * (1 + len(arches)) + "|"]
    lines += [f"| {name} | {' | '.join(str(found[arch]) for arch in arches)} |" for name, found in rows.items()]
    spills = max(entry["spill_bytes"] for entry in shown)
    return "\n".join([*lines, "", f"Triton {shown[0]['triton']}; spilled bytes: {spills}."])


def bfloat16(found: Sequence[Record]) -> str:
    """Return the comparison of bfloat16 with float32 and with rivals in bfloat16, each race from its newest record."""
    newest = {
        result["name"]: (result, record)
        for record in found
        for result in record["results"]
        if result["name"].endswith("-bf16")
    }
    if not newest:
        return ABSENT
    shown: Record = {"results": [result for result, _ in newest.values()]}
    origins = dict.fromkeys(f"{_origin(record)}{_busy(record)}" for _, record in newest.values())
    about = "Time in multiples of ours in bfloat16, variants in turns, medians; below 1 a rival is better."
    return "\n".join([*table.comparison(shown, [*newest], bench_bfloat16.COLUMNS), "", " ".join([about, *origins])])


def training(found: Sequence[Record]) -> str:
    """Return the rates of training as shares of a dense render's rate, from the newest record that has them."""
    return _lines(found, "training-rate", training_rate.lines)


def packing(found: Sequence[Record]) -> str:
    """Return the times of calls of few rows, from the newest record that has them."""
    return _lines(found, "packing", lambda results: few_rows.lines(results[0]))


def convolution_errors(found: Sequence[Record]) -> str:
    """Return the errors of conv3x3 and of PyTorch's convolutions, from the newest record that has them."""
    return _lines(found, "convolution-", convolution.lines, timed=False)


def _lines(
    found: Sequence[Record], suite: str, lines: Callable[[Sequence[Record]], list[str]], timed: bool = True
) -> str:
    """Return lines about a suite's results, from the newest record that has any, and the record's origin."""
    shown = [(record, results) for record in found if (results := _results(record, suite))]
    if not shown:
        return ABSENT
    record, results = shown[-1]
    return "\n".join([*lines(results), "", _origin(record) + (_busy(record) if timed else "")])


def _suite(found: Sequence[Record], suite: str | tuple[str, ...], columns: Sequence[str], about: str) -> str:
    """Return the comparison of the results of one or more suites, from the newest record that has all of them."""
    suites = (suite,) if isinstance(suite, str) else suite
    shown = [(record, _named(record, suite)) for record in found if all(_named(record, each) for each in suites)]
    if not shown:
        return ABSENT
    record, names = shown[-1]
    lines = table.comparison(record, names, columns)
    return "\n".join(
        [
            *lines,
            "",
            "Time in multiples of ours, variants in turns, medians; below 1 a rival is better. "
            f"`liif-fast bench {' '.join(suites)}` measures it on your machine. "
            f"{about} {_origin(record)}{_busy(record)}",
        ]
    )


def _busy(record: Record) -> str:
    """Return a sentence if other programs took part of the machine's time, else ""."""
    load = (record["load"] or [0])[0]
    return f" Other programs kept the machine busy (load {load:.0f})." if load > 4 else ""


def _named(record: Record, suite: str | tuple[str, ...]) -> list[str]:
    return [result["name"] for result in _results(record, suite)]


def _results(record: Record, suite: str | tuple[str, ...]) -> list[Record]:
    return [result for result in record["results"] if result["name"].startswith(suite)]


def _origin(record: Record | None) -> str:
    return f"{table.origin(record)}." if record else ""


def sections(record: Record | None) -> dict[Path, dict[str, str]]:
    """Return the generated text between the markers of every document."""
    shown = pictures(record, "images") if record else ""
    return {
        README: {"benchmarks": table.short(record)},
        PERFORMANCE: {
            "benchmarks": table.markdown(record),
            "pictures": shown or ABSENT,
            "limits": limits(record),
            "steps": steps(record),
            "growth": growth(record),
            "lost": lost(record),
            "bfloat16": bfloat16(records.read()),
            "training": training(records.read()),
        },
        CPU: {"packing": packing(records.read()), "convolution": convolution_errors(records.read())},
        EXPORT: {"export": export(records.read())},
        LIDAR: {"lidar": lidar(records.read()), "scans": scans()},
        FAMILY: {"relatives": relatives(records.read())},
        TRITON: {"attention": registers()},
        VIEWER: {"view": viewer(records.read())},
    }


def fill(text: str, name: str, section: str) -> str:
    """Return `text` with the part between the markers of that name replaced.

    Raises:
        ValueError: the markers are not there exactly once.
    """
    begin, end = f"<!-- begin:{name} -->", f"<!-- end:{name} -->"
    filled, count = re.subn(f"{begin}\n.*?{end}", lambda _: f"{begin}\n{section}\n{end}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the markers of {name} are there {count} times, expected once")
    return filled


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the documents and draw the pictures")
    args = parser.parse_args()
    record = table.newest(records.read())
    print("no complete record" if record is None else table.full(record))
    if args.write:
        for path, found in sections(record).items():
            text = path.read_text()
            for name, section in found.items():
                text = fill(text, name, section)
            path.write_text(text)
        if record:
            plot.draw(record)


if __name__ == "__main__":
    main()
