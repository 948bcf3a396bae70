"""Score a LiDAR model, the nearest line and linear interpolation on real scans that the model has not seen.

    python benchmarks/lidar_quality.py [MODEL] [--out FILE.json] [--table FILE.md ...]

Every k-th line of a scan is kept, and the removed lines are scored up to 80 m. A direction without a return counts as
100 m. The script prints a Markdown table. --out writes all figures; --table replaces the table between its marks in
documents. The scans are Ouster's (tests/lidar/scans).
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liif_fast import __version__, load_model
from liif_fast.lidar import Sensor, Upsampler, scores

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "liif_fast" / "assets" / "iln-small-streets.safetensors"
SCANS = ROOT / "tests" / "lidar" / "scans"
START, END = "<!-- begin:lidar -->", "<!-- end:lidar -->"
FAR, NONE = 80.0, 100.0  # metres: the farthest return that counts, and what no return counts as
METHODS = {"model": "model", "nearest": "nearest line", "linear": "linear"}


def read(name: str) -> tuple[np.ndarray, Sensor]:
    """Return a scan, float32 [128, 1024] metres, and its sensor."""
    with np.load(SCANS / f"{name}.npz") as archive:
        ranges = archive["range_5mm"].astype(np.float32) * np.float32(0.005)
    sensor = Sensor.named(name)
    return ranges, Sensor(sensor.beams, ranges.shape[1], 0.3, FAR, name)


def interpolated(ranges: np.ndarray, low: Sensor, full: Sensor, nearest: bool) -> np.ndarray:
    """Fill the lines between by the nearest line or linearly in beam index; beyond the last line, repeat the last."""
    metres = np.where((ranges <= 0) | (ranges > FAR), NONE, ranges)
    row = np.clip(low.row_of(full.elevations), 0, low.lines - 1)
    first = np.minimum(np.floor(row).astype(int), max(low.lines - 2, 0))
    part = (row - first)[:, None]
    if nearest:
        part = np.round(part + 1e-6)
    return metres[first] * (1 - part) + metres[np.minimum(first + 1, low.lines - 1)] * part


def measure(model: Any, name: str, step: int) -> list[dict[str, Any]]:
    """Score the model and both interpolations on the lines that were removed: all but every `step`-th."""
    ranges, full = read(name)
    low, away = full.every(step), np.arange(full.lines) % step != 0
    made = Upsampler(model, low, full)(ranges[::step])
    sensor = Sensor(tuple(np.asarray(full.beams)[away]), full.columns, full.min_range, full.max_range, name)
    methods = {
        "model": made.ranges[0].numpy(),
        "nearest": interpolated(ranges[::step], low, full, nearest=True),
        "linear": interpolated(ranges[::step], low, full, nearest=False),
    }
    results = []
    for method, values in methods.items():
        found = scores(values[away], ranges[away], sensor, max_range=FAR, norm_range=NONE)
        results.append({"scan": name, "step": step, "method": method, **_rounded(found)})
    kept = np.where(made.kept[0].numpy(), methods["model"], 0)[away]  # as the command writes them
    both = (kept > 0) & (ranges[away] > 0) & (ranges[away] <= FAR)
    error = np.abs(kept - ranges[away])[both]
    voxels = scores(kept, ranges[away], sensor, max_range=FAR, norm_range=NONE)
    results[0] |= {
        "kept": round(float((kept > 0).mean()), 4),
        "kept_mae": round(float(error.mean()), 4),
        "kept_within": round(float((error <= 0.2).mean()), 4),
        "kept_precision": round(voxels.precision, 4),
        "kept_recall": round(voxels.recall, 4),
    }
    return results


def _rounded(found: Any) -> dict[str, float]:
    return {key: round(value, 4) for key, value in found._asdict().items()}


def table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table: a row per scan and step, with the scores of model, nearest line and linear."""
    heads = ("MAE of returns, m", "within 0.2 m", "MAE of all, m", "voxel IoU")
    rows = ["| scan | kept lines | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for scan, step in dict.fromkeys((r["scan"], r["step"]) for r in results):
        own = [r for r in results if (r["scan"], r["step"]) == (scan, step)]
        cells = [
            " / ".join(f"{r[key]:.{digits}f}" for r in own)
            for key, digits in (("mae_returns", 2), ("within", 3), ("mae", 2), ("iou", 3))
        ]
        rows.append(f"| {scan} | 1 of {step} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=str(SHIPPED))
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--out", type=Path, help="JSON record")
    parser.add_argument("--table", type=Path, nargs="+", default=[], help=f"files with the lines {START} and {END}")
    args = parser.parse_args()
    model = load_model(args.model)
    names = ("os1-128", "os0-128", "os2-128")
    results = [result for name in names for step in args.steps for result in measure(model, name, step)]
    text = table(results)
    print(f"{' / '.join(METHODS.values())}\n\n{text}")
    for result in results:
        if result["method"] == "model":
            print({key: value for key, value in result.items() if key.startswith(("scan", "step", "kept"))})
    if args.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        record = {"model": Path(args.model).name, "version": __version__, "commit": commit, "torch": torch.__version__}
        args.out.write_text(json.dumps({**record, "results": results}, indent=1) + "\n")
    for path in args.table:
        before, rest = path.read_text().split(START)
        path.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
