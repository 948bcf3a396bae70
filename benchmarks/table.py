"""Records as tables: python -m benchmarks.table prints the newest complete one, --write puts it into README.md."""

import argparse
from typing import Any

from benchmarks.common import COMPILED, EAGER, FACTORISED, OURS, ROOT, read_records

README = ROOT / "README.md"
BEGIN, END = "<!-- begin:benchmarks -->", "<!-- end:benchmarks -->"
COLUMNS = (OURS, EAGER, COMPILED, FACTORISED)
NEEDED = ("render-x4-48", "train-2304", "train-16384", "memory-188", "memory-375", "operator", "function")
ROWS = NEEDED[:-2]  # of the README; times of CPUs are noisy, so that only ratios of one run are worth publishing


def quantity(value: float, unit: str) -> str:
    """Write a value with three digits and a unit that suits it."""
    if unit == "s":
        factor, unit = next(((f, u) for f, u in ((1, "s"), (1e3, "ms")) if value * f >= 1), (1e6, "µs"))
        value *= factor
    elif value >= 100:
        return f"{value:,.0f} {unit}"
    return f"{value:#.3g}".rstrip(".") + f" {unit}"


def full(record: dict[str, Any]) -> str:
    """Return every figure of a record with its quantiles, as text."""
    lines = []
    for result in record["results"]:
        unit = result["unit"]
        lines += ["", f"{result['title']}; rounds: {result['rounds']}"]
        for name, figure in result["figures"].items():
            if name == "sgemm":
                continue
            low, middle, high = (quantity(figure[q], unit) for q in ("q20", "median", "q80"))
            line = f"  {name:<22}{middle:>10}"
            if low != high:
                line += f"  [{low} .. {high}]"
            if "ratio" in figure:
                line += "  {median:.2f}x [{q20:.2f} .. {q80:.2f}]".format(**figure["ratio"])
            if figure.get("p"):
                line += f"  {figure['median'] - figure['p']:.1f} MiB beyond P"
            lines.append(f"{line}  error {figure['error']:.0e}")
        lines += [f"  {name:<22}no figure: {reason}" for name, reason in result["missing"].items()]
        if "share_of_sgemm" in result:
            share, rate = result["share_of_sgemm"], result["sgemm_gflops"]
            lines.append(
                f"  {share['median']:.1%} [{share['q20']:.1%} .. {share['q80']:.1%}] of the machine's sgemm rate, "
                f"{rate['median']:.1f} GFLOP/s [{rate['q20']:.1f} .. {rate['q80']:.1f}]"
            )
    where = ("cpu", "isa", "threads", "torch", "version", "commit", "date", "load")
    return "\n".join([*lines, "", ", ".join(f"{key} {record[key]}" for key in where)])


def newest(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the newest record of all suites."""
    complete = [r for r in records if set(NEEDED) <= {result["name"] for result in r["results"]}]
    return complete[-1] if complete else None


def _cell(result: dict[str, Any], column: str) -> str:
    figure = result["figures"].get(column)
    if figure is None:
        return ""
    ratio = f"{figure['ratio']['median']:.1f}x" if "ratio" in figure else "1"
    return ratio if result["unit"] == "s" else f"{quantity(figure['median'], result['unit'])} ({ratio})"


def markdown(record: dict[str, Any] | None) -> str:
    """Return the README's section for a record."""
    if record is None:
        return "Not yet measured."
    results = {result["name"]: result for result in record["results"]}
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for result in (results[name] for name in ROWS):
        lines.append(f"| {result['title']} | " + " | ".join(_cell(result, column) for column in COLUMNS) + " |")
    render, memory = results["render-x4-48"], results["memory-375"]["figures"][OURS]
    return "\n".join(
        [
            *lines,
            "",
            "Time or memory in multiples of ours, medians. Float32, C = 64, hidden 256 x 4 (memory: C = 4, "
            f"16 x 4), {record['threads']} threads on {record['cpu']} ({record['isa']}), torch {record['torch']}, "
            f"liif_fast {record['version']} at {record['commit'] or 'an unknown commit'}, {record['date'][:10]}. "
            "Plain is the formula as the original computes it, images in chunks of 30,000 queries; factorised is our "
            "backend `torch`. All variants took turns in one run, after a check against the reference. The memory of "
            "the plain formula is that of its first two chunks, a lower bound.",
            "",
            f"The render does {render['share_of_sgemm']['median']:.0%} of this machine's own sgemm rate "
            f"(8192x256x256, same rounds) on its useful operations, 1.58 MFLOP a query. "
            f"Of the larger render's memory, {memory['p']:.0f} MiB are the projected latents P, "
            f"{memory['median'] - memory['p']:.0f} MiB everything else.",
        ]
    )


def fill(text: str, section: str) -> str:
    """Return `text` with what stands between the markers replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{section}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    record = newest(read_records())
    print("no complete record" if record is None else full(record))
    if args.write:
        README.write_text(fill(README.read_text(), markdown(record)))


if __name__ == "__main__":
    main()
