"""How cost grows: the exponent of a power law."""

import math
from collections.abc import Sequence


def exponent(sizes: Sequence[float], costs: Sequence[float | None]) -> float | None:
    """Return b of cost = a * size^b, fitted to the upper half of the sizes (at least three), where overhead is small.

    None where fewer than three costs are known, or one is 0. It is the slope of a straight line by least squares
    through the logarithms: 1 where cost is proportional to size, 0 where it does not grow.
    """
    known = [(math.log(size), math.log(cost)) for size, cost in zip(sizes, costs, strict=True) if cost]
    if len(known) < 3:
        return None
    known = known[-max(3, (len(known) + 1) // 2) :]
    x_mean, y_mean = (sum(values) / len(known) for values in zip(*known, strict=True))
    spread = sum((x - x_mean) ** 2 for x, _ in known)
    return round(sum((x - x_mean) * (y - y_mean) for x, y in known) / spread, 3)
