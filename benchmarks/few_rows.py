"""Measure what packing and comparing weights cost calls of few rows: python -m benchmarks.few_rows.

One thread calls `fused_mlp` of three layers 256 x 256. Calls of so few rows read the weights where they lie. From
`PACKED` rows on, with AVX-512, they pack them. A cache of packed weights would have to compare the weights with a copy
in each call, as `memcmp` does here. The three take turns, so other programs disturb all alike.
"""

import argparse
import ctypes
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import records
from benchmarks.common import quantiles
from benchmarks.records import Record
from liif_fast.functional import fused_mlp

PACKED = 61  # csrc/cpu/kernel_avx512.cpp: turned_rows
COMPARED = "`memcmp` with a copy"
ROWS = (1, 4, 12, 24, 48, PACKED - 1, PACKED, 72, 96)


def seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the times of each call, which runs once before it is timed so that its data are in the cache."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return found


def calls(width: int = 256, layers: int = 3) -> dict[str, Callable[[], object]]:
    """Return the calls by the heads of their columns."""
    weights = [torch.randn(width, width) / width**0.5 for _ in range(layers)]
    biases, copies = [torch.zeros(width)] * layers, [weight.clone() for weight in weights]
    compare = ctypes.CDLL(None).memcmp

    def compared() -> None:
        for one, other in zip(weights, copies, strict=True):
            assert not compare(ctypes.c_void_p(one.data_ptr()), ctypes.c_void_p(other.data_ptr()), one.nbytes)

    def call(x: Tensor) -> Callable[[], object]:
        return lambda: fused_mlp(x, weights, biases)

    return {_head(rows): call(torch.randn(rows, width)) for rows in ROWS} | {COMPARED: compared}


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> Record:
    """Return the times of the calls as a result."""
    title, figures = "fused_mlp of few rows", {name: quantiles(each) for name, each in seconds(calls, rounds).items()}
    return {"name": "packing", "title": title, "unit": "s", "rounds": rounds, "figures": figures, "missing": {}}


def _head(rows: int) -> str:
    return f"{rows}{', packed' if rows >= PACKED else ''}"


def lines(result: Record) -> list[str]:
    """Return the lines of a table, and what packing costs."""
    times = {name: 1e6 * figure["median"] for name, figure in result["figures"].items()}
    rows = ["rows", *times], ["---"] * (1 + len(times)), ["time of a call", *(f"{t:.0f} µs" for t in times.values())]

    step, compared = times[_head(PACKED)] - times[_head(PACKED - 1)], times[COMPARED]
    return [
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"The step from {PACKED - 1} to {PACKED} rows, {step:.0f} µs, is what packing costs beyond reading the weights "
        f"as they lie. Comparing them takes {compared:.0f} µs.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_rows", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=300, help="of which the medians are shown (default: 300)")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    found = records.environment()
    result = measure(calls(), args.rounds)
    print("\n".join(lines(result)))
    if args.record:
        print(f"recorded in {records.append(found, [result])}")


if __name__ == "__main__":
    main()
