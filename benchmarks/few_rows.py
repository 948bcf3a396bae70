"""Measure what packing and comparing weights cost calls of few rows: python -m benchmarks.few_rows.

One thread calls `fused_mlp` with three layers of 256 x 256. Calls of up to `UNPACKED` rows read the weights in place.
Larger ones pack them. A cache of packed weights would have to compare the weights with a copy in each call, as `memcmp`
does here. All calls take turns, so other programs disturb all of them alike.
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
from liif_fast.backends import cpu
from liif_fast.functional import fused_mlp

UNPACKED = {"avx512": 60, "avx2": 6}  # by instruction set: turned_rows of float in csrc/cpu/kernel_*.cpp
COMPARED = "`memcmp` with a copy"
ROWS = (1, 4, 12, 24, 48, 72, 96)  # beside the numbers on either side of the threshold


def seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the times of each call; it runs once before it is timed, so that its data is in the cache."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return found


def calls(unpacked: int, width: int = 256, layers: int = 3) -> dict[str, Callable[[], object]]:
    """Return the calls by the titles of their columns; calls of up to `unpacked` rows pack no weights."""
    weights = [torch.randn(width, width) / width**0.5 for _ in range(layers)]
    biases, copies = [torch.zeros(width)] * layers, [weight.clone() for weight in weights]
    compare = ctypes.CDLL(None).memcmp

    def compared() -> None:
        for one, other in zip(weights, copies, strict=True):
            assert not compare(ctypes.c_void_p(one.data_ptr()), ctypes.c_void_p(other.data_ptr()), one.nbytes)

    def call(x: Tensor) -> Callable[[], object]:
        return lambda: fused_mlp(x, weights, biases)

    numbers = sorted({*ROWS, unpacked, unpacked + 1})
    return {f"{rows}{', packed' if rows > unpacked else ''}": call(torch.randn(rows, width)) for rows in numbers} | {
        COMPARED: compared
    }


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> Record:
    """Return the times of the calls as a result."""
    title, figures = "fused_mlp of few rows", {name: quantiles(each) for name, each in seconds(calls, rounds).items()}
    return {"name": "packing", "title": title, "unit": "s", "rounds": rounds, "figures": figures, "missing": {}}


def lines(result: Record) -> list[str]:
    """Return a table and the cost of packing, which is the step at the threshold minus the time of one row."""
    times = {name: 1e6 * figure["median"] for name, figure in result["figures"].items()}
    rows = ["rows", *times], ["---"] * (1 + len(times)), ["time of a call", *(f"{t:.0f} µs" for t in times.values())]

    compared = times.pop(COMPARED)
    before, last = [(int(name), time) for name, time in times.items() if name.isdigit()][-2:]
    first = next(time for name, time in times.items() if not name.isdigit())
    row = (last[1] - before[1]) / (last[0] - before[0])
    step = first - last[1]
    sign = "more" if step > 0 else "less"
    packed = step - row
    said = [
        f"A call of {last[0] + 1} rows takes {abs(step):.0f} µs {sign} than one of {last[0]}.",
        f"A row takes {row:.0f} µs, as from {before[0]} to {last[0]} rows.",
        f"So packing costs {packed:.0f} µs beyond reading the weights as they lie"
        if packed >= 0.5
        else "So packing costs nothing beyond reading the weights as they lie",
    ]
    spared = packed - compared
    said[-1] += f", and comparing them costs {compared:.0f} µs."
    said.append(
        f"A cache that compares them would save {spared:.0f} µs a call, {100 * spared / first:.0f} % of this one."
        if spared >= 0.5
        else "A cache that compares them would save nothing."
    )
    return [*(f"| {' | '.join(each)} |" for each in rows), "", " ".join(said)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_rows", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=300, help="number of rounds; medians are shown (default: 300)")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/results/")
    args = parser.parse_args()
    if cpu.ISA not in UNPACKED:
        raise SystemExit(f"few_rows: expected kernels for {' or '.join(UNPACKED)}, got {records.isa()}")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    found = records.environment()
    result = measure(calls(UNPACKED[cpu.ISA]), args.rounds)
    print("\n".join(lines(result)))
    if args.record:
        print(f"recorded in {records.append(found, [result])}")


if __name__ == "__main__":
    main()
