"""Combine measurements at several sizes into a series, and fit the exponent of a power law."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

QUANTITIES = ("q20", "median", "q80", "memory", "error")


def merged(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results with the points of each series (one name, a `size` each) combined."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(result["name"], []).append(result)
    return [_series(points) if "size" in points[0] else points[0] for points in found.values()]


def _series(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sizes = [point["size"] for point in points]
    series: dict[str, Any] = {}
    for variant in dict.fromkeys(each for point in points for each in point["figures"]):
        figures = [point["figures"].get(variant, {}) for point in points]
        found: dict[str, Any] = {key: [figure.get(key) for figure in figures] for key in QUANTITIES}
        found["exponent"] = exponent(sizes, found["median"])
        found["memory_exponent"] = exponent(sizes, found["memory"])
        series[variant] = found
    return {
        **{key: points[0][key] for key in ("name", "title", "unit", "axis")},
        "rounds": min(point["rounds"] for point in points),
        "sizes": sizes,
        "series": series,
        "figures": {},
        "missing": {each: why for point in points for each, why in point["missing"].items()},
    }


def exponent(sizes: Sequence[float], costs: Sequence[float | None]) -> float | None:
    """Return b of cost = a * size^b, fitted to the upper half of the sizes (at least three), where overhead is small.

    None if fewer than three costs are known, or if a cost is a tenth below that of a smaller size, because another
    algorithm starts there (e.g. the direct form for few queries of a large map) and no power law holds. The exponent is
    the slope of a least-squares line through the logarithms: 1 for a cost proportional to size, 0 for a constant one.
    """
    known = [(math.log(size), math.log(cost)) for size, cost in zip(sizes, costs, strict=True) if cost]
    if len(known) < 3:
        return None
    known = known[-max(3, (len(known) + 1) // 2) :]
    if any(b < a + math.log(0.9) for (_, a), (_, b) in itertools.combinations(known, 2)):
        return None
    x_mean, y_mean = (sum(values) / len(known) for values in zip(*known, strict=True))
    spread = sum((x - x_mean) ** 2 for x, _ in known)
    return round(sum((x - x_mean) * (y - y_mean) for x, y in known) / spread, 3)
