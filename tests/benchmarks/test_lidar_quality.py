"""The model card shows the measured figures of the shipped LiDAR model, and a new scan confirms its quality."""

import json
from pathlib import Path

import pytest

from benchmarks.lidar_quality import END, SHIPPED, START, measure, table
from liif_fast import load_model

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks/results/lidar_quality.json").read_text())["results"]


def test_the_table_is_that_of_the_record() -> None:
    written = (ROOT / "liif_fast/assets/LIDAR_MODEL_CARD.md").read_text().split(START)[1].split(END)[0].strip()
    assert written == table(RESULTS)


def test_the_model_on_a_real_scan() -> None:
    """On every fourth line of an OS1-128, its MAE of returns is at most 0.65 of linear's, and 0.77 are within 0.2 m."""
    assert SHIPPED.stat().st_size < 400_000
    model, _, linear = measure(load_model(SHIPPED), "os1-128", 4)
    assert model["mae_returns"] <= 0.65 * linear["mae_returns"]
    assert model["within"] >= max(0.77, linear["within"])
    recorded = next(r for r in RESULTS if (r["scan"], r["step"], r["method"]) == ("os1-128", 4, "model"))
    for key in ("mae", "mae_returns", "within", "iou", "kept", "kept_within"):
        assert model[key] == pytest.approx(recorded[key], abs=2e-3), key


def test_it_is_nowhere_worse_than_the_better_interpolation_in_the_error_of_returns() -> None:
    for scan, step in {(r["scan"], r["step"]) for r in RESULTS}:
        own, *others = (r["mae_returns"] for r in RESULTS if (r["scan"], r["step"]) == (scan, step))
        assert own < min(others)
