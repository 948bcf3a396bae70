"""Measure what packing and comparing weights cost calls of few rows: python -m benchmarks.few_rows.

One thread calls `fused_mlp` of three layers 256 x 256. Calls of so few rows read the weights where they lie. From
`PACKED` rows on, with AVX-512, they pack them. A cache of packed weights would have to compare the weights with a copy
in each call, as `memcmp` does here. The three take turns, so other programs disturb all alike.
"""

import argparse
import ctypes
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from liif_fast.functional import fused_mlp

PACKED = 61  # csrc/cpu/kernel_avx512.cpp: turned_rows
ROWS = (1, 4, 12, 24, 48, PACKED - 1, PACKED, 72, 96)


def seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median time of each call, which runs once before it is timed so that its data are in the cache."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in found.items()}


def calls(width: int = 256, layers: int = 3) -> dict[str, Callable[[], object]]:
    """Return the calls by the first cell of their line."""
    weights = [torch.randn(width, width) / width**0.5 for _ in range(layers)]
    biases, copies = [torch.zeros(width)] * layers, [weight.clone() for weight in weights]
    compare = ctypes.CDLL(None).memcmp

    def compared() -> None:
        for one, other in zip(weights, copies, strict=True):
            assert not compare(ctypes.c_void_p(one.data_ptr()), ctypes.c_void_p(other.data_ptr()), one.nbytes)

    def call(x: Tensor) -> Callable[[], object]:
        return lambda: fused_mlp(x, weights, biases)

    return {f"{rows} rows": call(torch.randn(rows, width)) for rows in ROWS} | {"memcmp": compared}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_rows", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=300, help="of which the medians are shown (default: 300)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print("| | time |\n|---|---|")
    for name, time_taken in seconds(calls(), rounds).items():
        print(f"| {name} | {1e6 * time_taken:.0f} µs |")


if __name__ == "__main__":
    main()
