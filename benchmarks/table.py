"""Format records as tables: `full` for a terminal, `markdown` for docs/performance.md, `short` for the README."""

from collections.abc import Sequence
from typing import Any

from benchmarks.common import COMPILED, EAGER, FACTORISED, OURS

COLUMNS = (
    OURS,
    EAGER,
    COMPILED,
    "plain, ONNX Runtime",
    "plain, OpenVINO",
    FACTORISED,
    "factorised, ONNX Runtime",
    "factorised, OpenVINO",
)
# The results that a record needs to be shown; then the rows of the table in docs, and of the README's. CPU times are
# noisy, so only ratios within one run are published.
NEEDED = ("render-x4-48", "train-2304", "train-16384", "memory-188", "memory-375", "operator", "function")
ROWS = (
    "render-x2-48",
    "render-x3.7-48",
    "render-x4-48",
    "render-x8-48",
    "render-x2-128",
    "strip-x4-256",
    "strip-x4-512",
    "queries-16384",
    "train-1024",
    "train-2304",
    "train-16384",
    "train-131072",  # this and the next with --long
    "train-1048576",
    "upscale-x2",
    "train-step",
    "memory-188",
    "memory-375",
    "memory-training",  # with --long
)

SHORT_ROWS = ("render-x4-48", "upscale-x2", "train-2304", "train-step", "memory-375", "memory-training")
SHORT_COLUMNS = (OURS, EAGER, FACTORISED, "factorised, OpenVINO")

WIDE = 1.25  # q80 over q20 above which one figure does not describe a ratio

Record = dict[str, Any]


def quantity(value: float, unit: str) -> str:
    """Format a value with three digits and a suitable unit."""
    if unit == "s":
        factor, unit = next(((f, u) for f, u in ((1, "s"), (1e3, "ms")) if value * f >= 1), (1e6, "µs"))
        value *= factor
    elif value >= 100:
        return f"{value:,.0f} {unit}"
    return f"{value:#.3g}".rstrip(".") + f" {unit}"


def full(record: Record) -> str:
    """Return every figure of a record with its quantiles, as text."""
    lines = []
    for result in record["results"]:
        lines += ["", f"{result['title']}; rounds: {result['rounds']}"]
        lines += [_line(name, figure, result["unit"]) for name, figure in variants(result).items()]
        lines += _series(result)
        lines += [f"  {name:<26}no figure: {reason}" for name, reason in result["missing"].items()]
        rates = [f"{quantity(rate['median'] / 1e9, unit)} {name}" for name, unit, rate in _rates(result)]
        if rates:
            lines.append(f"  this machine, in the same rounds: {', '.join(rates)}")
        lines += [f"  {note}" for note in result.get("notes", ())]
    where = ("cpu", "isa", "gpu", "driver", "threads", "torch", "packages", "version", "commit", "date", "load")
    return "\n".join([*lines, "", ", ".join(f"{key} {record[key]}" for key in where if key in record)])


def variants(result: Record) -> Record:
    """Return the figures of the variants, without those of the machine."""
    return {name: figure for name, figure in result["figures"].items() if "error" in figure}


def _line(name: str, figure: Record, unit: str) -> str:
    low, middle, high = (quantity(figure[q], unit) for q in ("q20", "median", "q80"))
    line = f"  {name:<26}{middle:>10}"
    if low != high:
        line += f"  [{low} .. {high}]"
    if "ratio" in figure:
        line += "  {median:.2f}x [{q20:.2f} .. {q80:.2f}]".format(**figure["ratio"])
    if "memory" in figure:
        line += f"  {quantity(figure['memory'] / 2**20, 'MiB')}"
    if 0 < figure.get("p", 0) <= figure["median"]:
        line += f"  {figure['median'] - figure['p']:.1f} MiB beyond P"
    if "share" in figure:
        line += f"  {figure['share']['median']:.0%} of the limit"
    return f"{line}  error {figure['error']:.0e}"


def _series(result: Record) -> list[str]:
    """Return a line for each variant and quantity measured at several sizes."""
    lines = []
    sizes = result.get("sizes", [])
    if sizes:
        lines.append(f"  {result['axis']:<26}" + "".join(f"{size:>11,}" for size in sizes) + "   exponent")
    for name, series in result.get("series", {}).items():
        memory = [None if each is None else each / 2**20 for each in series["memory"]]
        for what, unit, values, key in (
            ("", "s", series["median"], "exponent"),
            (", memory", "MiB", memory, "memory_exponent"),
        ):
            if any(value is not None for value in values):
                cells = "".join(f"{'' if value is None else quantity(value, unit):>11}" for value in values)
                fitted = "" if series[key] is None else f"{series[key]:>11.2f}"
                lines.append(f"  {name + what:<26}{cells}{fitted}")
    return lines


def _rates(result: Record) -> list[tuple[str, str, Record]]:
    found = (
        ("sgemm (8192x256x256)", "GFLOP/s", result.get("sgemm_rate")),
        ("fastest matrix product", "GFLOP/s", result.get("matrix_rate")),
        ("copy", "GB/s", result.get("copy_rate")),
    )
    return [(name, unit, rate) for name, unit, rate in found if rate]


def newest(records: Sequence[Record]) -> Record | None:
    """Return the newest record with all results that the documents need."""
    complete = [r for r in records if set(NEEDED) <= {result["name"] for result in r["results"]}]
    return complete[-1] if complete else None


def _cell(result: Record, column: str) -> str:
    figure = result["figures"].get(column)
    if figure is None:
        return ""
    ratio = _ratio(figure["ratio"]) if "ratio" in figure else "1"
    return ratio if result["unit"] == "s" else f"{quantity(figure['median'], result['unit'])} ({ratio})"


def _ratio(ratio: Record) -> str:
    """Return the median, or the range of most rounds if they disagree too much for one figure."""
    if ratio["q80"] > WIDE * ratio["q20"]:
        return f"{ratio['q20']:.1f} to {ratio['q80']:.1f}x"
    return f"{ratio['median']:.1f}x"


def comparison(record: Record, wanted: Sequence[str] = ROWS, variants: Sequence[str] = COLUMNS) -> list[str]:
    """Return the lines of a table: a row for each benchmark, a column for each variant that the record has."""
    results = {result["name"]: result for result in record["results"]}
    rows = [results[name] for name in wanted if name in results]
    columns = [each for each in variants if any(each in row["figures"] for row in rows)]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row['title']} | " + " | ".join(_cell(row, column) for column in columns) + " |")
    return lines


def origin(record: Record) -> str:
    """Return where and when a record was measured."""
    where = f"{record['gpu']}, driver {record['driver']}" if "gpu" in record else f"{record['cpu']} ({record['isa']})"
    packages = "".join(f", {name} {found}" for name, found in record.get("packages", {}).items() if found)
    return (
        f"{record['threads']} thread{'s' * (record['threads'] > 1)} on {where}, torch {record['torch']}{packages}, "
        f"liif_fast {record['version']} at {record['commit'] or 'an unknown commit'}, {record['date'][:10]}"
    )


def markdown(record: Record | None) -> str:
    """Return the whole comparison of a record."""
    if record is None:
        return "Not yet measured."
    results = {result["name"]: result for result in record["results"]}
    render, memory = results["render-x4-48"], results["memory-375"]["figures"][OURS]
    training = "; ".join(results.get("memory-training", {}).get("notes", ()))
    return "\n".join(
        [
            *comparison(record),
            "",
            "Time or memory in multiples of ours; below 1 a rival is better. Medians, or where the machine was uneven "
            "the range of the middle three fifths of the rounds. Float32, C = 64, hidden 256 x 4 "
            f"(memory of a render: C = 4, 16 x 4), {origin(record)}. "
            "Plain is the formula as the original computes it, images in chunks of 30,000 queries; factorised is our "
            "backend `torch`, or its graph in other runtimes. All variants took turns in one "
            "run, after a check against the reference. The memory of the plain formula is that of its first two "
            f"chunks, a lower bound{f'; in training, {training}' if training else ''}.",
            "",
            f"{_limit(render)} {_projection(memory)}",
        ]
    )


def short(record: Record | None) -> str:
    """Return a few rows of the comparison for the README."""
    if record is None:
        return "Not yet measured."
    lines = [*comparison(record, SHORT_ROWS, SHORT_COLUMNS), "", f"In multiples of ours; {origin(record)}."]
    return "\n".join(lines)


def _projection(memory: Record) -> str:
    """Return a sentence on how much of the larger render's memory the projection of the latents takes."""
    if memory["p"] <= memory["median"]:
        return (
            f"Of the larger render's memory, {memory['p']:.0f} MiB are the projected latents P, "
            f"{memory['median'] - memory['p']:.0f} MiB everything else."
        )
    return f"The projected latents P of the larger render, {memory['p']:.0f} MiB, are never in memory as a whole."


def _limit(render: Record) -> str:
    sgemm = (
        f"The render does {render['share_of_sgemm']['median']:.0%} of this machine's own sgemm rate (8192x256x256, "
        "same rounds) on its useful operations, 1.58 MFLOP a query"
    )
    share = render["figures"][OURS].get("share")
    return f"{sgemm}, {share['median']:.0%} of that of the fastest matrix product found." if share else f"{sgemm}."
