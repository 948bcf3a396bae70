"""Draw a record: the last one of a file, or the newest complete one: python -m benchmarks.plot [FILE.jsonl].

The pictures are bars of times, the growth of cost, and the roofline, each as PNG and SVG under docs/images. Variants
differ in lightness, hatches, markers and direct labels, so that the pictures can be read without colours.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import records, table
from benchmarks.common import COMPILED, EAGER, FACTORISED, FACTORISED_COMPILED, OURS

IMAGES = records.ROOT / "docs" / "images"
WIDTH = 11.0  # inches
# Okabe and Ito's colours, of different lightness, with a hatch and a marker each.
LOOKS = {
    OURS: ("#000000", "", "o"),
    EAGER: ("#E69F00", "//", "s"),
    COMPILED: ("#F0E442", "\\\\", "^"),
    "plain, ONNX Runtime": ("#CC79A7", "..", "v"),
    "plain, OpenVINO": ("#D55E00", "xx", "D"),
    FACTORISED: ("#56B4E9", "//", "P"),
    FACTORISED_COMPILED: ("#9AD0F5", "\\\\", "X"),
    "factorised, ONNX Runtime": ("#009E73", "..", "<"),
    "factorised, OpenVINO": ("#0072B2", "xx", ">"),
}
BARS = ("render-x4-48", "train-2304")
GROWTH = ("queries", "training", "latents", "batch", "threads")

Record = dict[str, Any]


def parts(record: Record) -> dict[str, Any]:
    """Return the content of each picture of a record, without empty pictures."""
    results = {result["name"]: result for result in record["results"]}
    shares = [
        {"title": result["title"], "work": result["work"], "rates": [result["matrix_rate"], result["copy_rate"]]}
        | {"figure": result["figures"][OURS]}
        for result in record["results"]
        if "share" in result["figures"].get(OURS, {})
    ]
    found = {
        "speed": [results[name] for name in BARS if name in results],
        "growth": [results[f"growth-{name}"] for name in GROWTH if f"growth-{name}" in results],
        "roofline": shares,
    }
    return {name: data for name, data in found.items() if data}


def stamp(data: Any) -> str:
    """Return a fingerprint of a picture's content; the files hold it, so that a test recognises an old picture."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def draw(record: Record, folder: Path = IMAGES) -> list[Path]:
    """Draw every picture that the record has figures for, and remove the others."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = {"svg.hashsalt": "liif_fast", "font.size": 9, "hatch.linewidth": 0.6, "axes.grid": True}
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.alpha": 0.3}
    drawers: dict[str, Callable[[Any, Any], Any]] = {"speed": _speed, "growth": _growth, "roofline": _roofline}
    folder.mkdir(exist_ok=True)
    for name in drawers:
        for kind in ("png", "svg"):
            (folder / f"benchmark-{name}.{kind}").unlink(missing_ok=True)
    made = []
    for name, data in parts(record).items():
        with pyplot.rc_context(settings):
            figure = drawers[name](pyplot, data)
            figure.text(0.005, 0.005, table.origin(record), fontsize=6, color="0.35")
            for kind in ("png", "svg"):
                made.append(folder / f"benchmark-{name}.{kind}")
                about = {"Description": stamp(data), **({"Date": None} if kind == "svg" else {"Software": None})}
                figure.savefig(made[-1], dpi=110, metadata=about)
            pyplot.close(figure)
    return made


def _speed(pyplot: Any, data: list[Record]) -> Any:
    """Draw a panel for each benchmark with times relative to ours, from fast to slow."""
    sizes = [len(table.variants(result)) for result in data]
    figure, axes = pyplot.subplots(
        1, len(data), figsize=(WIDTH, 0.9 + 0.34 * max(sizes)), layout="constrained", squeeze=False
    )
    figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))
    for axis, result in zip(axes[0], data, strict=True):
        shown = {name: figure for name, figure in table.variants(result).items() if name in LOOKS}
        one = dict.fromkeys(("q20", "median", "q80"), 1.0)
        names = sorted(shown, key=lambda name: -shown[name].get("ratio", one)["median"])
        longest = max(shown[name].get("ratio", one)["q80"] for name in names)
        for place, name in enumerate(names):
            ratio, (colour, hatch, _) = shown[name].get("ratio", one), LOOKS[name]
            axis.barh(place, ratio["median"], color=colour, hatch=hatch, edgecolor="black", linewidth=0.6, height=0.72)
            spread = [[ratio["median"] - ratio["q20"]], [ratio["q80"] - ratio["median"]]]
            if name != OURS:
                axis.errorbar(ratio["median"], place, xerr=spread, color="black", linewidth=1, capsize=2)
            label = f"{ratio['median']:.2f}x  {table.quantity(shown[name]['median'], 's')}"
            axis.text(ratio["q80"] + 0.015 * longest, place, label, va="center", fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=result["title"], xlabel="time in multiples of liif_fast's (less is better)")
        axis.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 1.28 * longest))
        axis.grid(axis="y", visible=False)
    return figure


def _growth(pyplot: Any, data: list[Record]) -> Any:
    """Draw time above and memory below, a column per axis, labelled with the fitted exponent."""
    figure, axes = pyplot.subplots(
        2, len(data), figsize=(max(WIDTH, 3.2 * len(data)), 6), layout="constrained", squeeze=False, sharex="col"
    )
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
    for column, result in enumerate(data):
        for row, (key, exponent, factor) in enumerate(
            (("median", "exponent", 1e3), ("memory", "memory_exponent", 2**-20))
        ):
            axis = axes[row][column]
            for name, series in result["series"].items():
                points = [
                    (size, value * factor)
                    for size, value in zip(result["sizes"], series[key], strict=True)
                    if value is not None
                ]
                if name not in LOOKS or not points:
                    continue
                colour, _, marker = LOOKS[name]
                axis.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    linestyle="--" if name.startswith("factorised") else "-",
                    marker=marker,
                    markeredgecolor="black",
                    markersize=5,
                    label=name,
                )
                if series[exponent] is not None:
                    at = {"xytext": (5, 0), "textcoords": "offset points"}
                    axis.annotate(f"^{series[exponent]:.2f}", points[-1], fontsize=7, va="center", **at)
            axis.set(xscale="log", yscale="log")
            axis.margins(x=0.16)
            if row == 0:
                axis.set_title(result["title"].replace(", ", ",\n", 1).replace(" against", "\nagainst", 1), fontsize=9)
            else:
                axis.set_xlabel(result["axis"])
            axis.set_ylabel(("ms", "MiB beyond the output")[row] if column == 0 else "")
            axis.set_xticks(result["sizes"], [f"{size:,}" for size in result["sizes"]], fontsize=6, rotation=30)
            axis.minorticks_off()
    handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def _roofline(pyplot: Any, data: list[Record]) -> Any:
    """Draw the roof and the kernels on the left, every kernel's share of its limit on the right."""
    figure, (roof, bars) = pyplot.subplots(
        1, 2, figsize=(WIDTH, 1.4 + 0.3 * max(len(data), 8)), layout="constrained", width_ratios=(1, 1)
    )
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
    matrix, copy = (sorted(each["rates"][i]["median"] for each in data)[len(data) // 2] for i in (0, 1))
    edge = matrix / copy
    xs = [edge / 1e3, edge, edge * 1e5]
    roof.plot(xs, [min(matrix, copy * x) / 1e9 for x in xs], color="black", linewidth=1.5)
    roof.text(edge / 700, matrix / 1e9 * 1.1, f"matrix products: {matrix / 1e9:.0f} GFLOP/s", fontsize=8)
    roof.text(edge / 20, matrix / 1e9 / 25, f"copy: {copy / 1e9:.0f} GB/s", fontsize=8)
    highest = matrix / 1e9
    for place, each in enumerate(data):
        letter, (flop, nbytes) = chr(ord("A") + place), (each["work"]["flop"], each["work"]["nbytes"])
        if flop:
            # The share of the limit in its own rounds, because the machine's rates differ between benchmarks.
            rate = each["figure"]["share"]["median"] * min(matrix, copy * flop / nbytes) / 1e9
            highest = max(highest, rate)
            roof.plot(flop / nbytes, rate, "o", color="white", markeredgecolor="black", markersize=11)
            roof.text(flop / nbytes, rate, letter, fontsize=7, ha="center", va="center")
        share = each["figure"]["share"]
        bars.barh(
            place, share["median"] * 100, color="#56B4E9", hatch="//" if flop else "..", edgecolor="black", height=0.7
        )
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # so that the line at 100 % does not cross it
        bars.text(share["median"] * 100 + 1.5, place, f"{share['median']:.0%}", va="center", fontsize=8, bbox=clear)
    roof.set(xscale="log", yscale="log", xlabel="useful FLOP per byte that must move", ylabel="GFLOP/s")
    roof.set(title="liif_fast under the machine's roof", ylim=(matrix / 1e9 / 300, highest * 2))
    names = [f"{each['title']}  {chr(ord('A') + place)}" for place, each in enumerate(data)]
    bars.axvline(100, color="black", linewidth=0.8, linestyle=":")
    bars.set(yticks=range(len(data)), xlabel="% of the limit: // arithmetic, .. memory", title="share of the limit")
    bars.set_yticklabels(names, fontsize=7)
    bars.set_xlim(0, max(115, *(each["figure"]["share"]["median"] * 115 for each in data)))
    bars.invert_yaxis()
    bars.grid(axis="y", visible=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, help="a file of records, whose last one is drawn")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder (default: docs/images)")
    args = parser.parse_args()
    if args.file:
        record = json.loads(args.file.read_text().splitlines()[-1])
    else:
        found = table.newest(records.read())
        if found is None:
            parser.exit(1, "error: there is no complete record\n")
        record = found
    print(*draw(record, args.out), sep="\n")


if __name__ == "__main__":
    main()
