"""Compare the rate of training with a dense render's: python -m benchmarks.training_rate.

In a dense render no activation is 0, so kernels omit no term. In a step they omit terms of 0, forward and backward.
Rates are useful operations (limits.py) per second. On one thread they count CPU time, which other programs disturb
little; on more, elapsed time. A step is liif_decode with gradients of the latents and of every parameter. Its
projection does not count as useful, nor does recomputation. Each round runs the dense render before and after the step.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks import records
from benchmarks.common import make_problem, make_queries, quantiles
from benchmarks.limits import decode_work, training_work
from benchmarks.records import Record
from liif_fast.functional import liif_decode, liif_render

CASES = ((2, 16_384), (1, 131_072), (16, 2304), (2, 2304))  # images, queries of each
SIDE, SCALE = 48, 2
PARTS = ("render", "forward", "backward", "both")


def seconds(call: Callable[[], object]) -> float:
    """Return the time of a call."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def shares(batch: int, queries: int, rounds: int, side: int, hidden: Sequence[int]) -> dict[str, list[float]]:
    """Return, by round, a dense render's rate and the rates of a render, each pass and the step as shares of it."""
    picture = make_problem((side, side), hidden=hidden)
    positive = [bias + 100.0**layer for layer, bias in enumerate(picture.biases, 1)]  # outweighs all other terms
    problem = make_problem((side, side), batch=batch, hidden=hidden)
    leaves = [problem.feat.requires_grad_(), *problem.weights, *problem.biases]
    places, grad = make_queries(batch, queries, side), torch.randn(batch, queries, 3)
    size = (SCALE * side, SCALE * side)
    useful = decode_work(size[0] * size[1], 0, picture.weights).flop
    total = training_work(batch * queries, 0, problem.weights).flop
    out = torch.empty(0)

    @torch.no_grad()
    def render(biases: Sequence[torch.Tensor] = picture.biases) -> None:
        liif_render(picture.feat, size, picture.weights, biases)

    def dense() -> None:
        render(positive)

    def forward() -> None:
        nonlocal out
        out = liif_decode(problem.feat, *places, problem.weights, problem.biases)

    def backward() -> None:
        torch.autograd.grad(out, leaves, grad)

    found = []
    for _ in range(rounds + 1):
        first, usual, there, back, last = map(seconds, (dense, render, forward, backward, dense))
        rate = useful / (first + last) * 2
        rates = useful / usual, total / 3 / there, total * 2 / 3 / back, total / (there + back)
        found.append((rate, *(each / rate for each in rates)))
    return dict(zip(("dense", *PARTS), map(list, zip(*found[1:], strict=True)), strict=True))


def measure(rounds: int, side: int = SIDE, hidden: Sequence[int] = (256,) * 4) -> list[Record]:
    """Return a result for each case."""
    results = []
    for batch, queries in CASES:
        found = {name: quantiles(values) for name, values in shares(batch, queries, rounds, side, hidden).items()}
        results.append(
            {
                "name": f"training-rate-{batch}-{queries}",
                "title": f"B = {batch}, Q = {queries:,}",
                "unit": "of a dense render's rate",
                "rounds": rounds,
                "figures": {part: found[part] for part in PARTS},
                "missing": {},
                "dense_rate": found["dense"],
            }
        )
    return results


def lines(results: Sequence[Record]) -> list[str]:
    """Return the lines of a table of results."""
    rows = [
        [result["title"], f"{result['dense_rate']['median'] / 1e9:.0f} GFLOP/s"]
        + [f"{result['figures'][part]['median']:.2f}" for part in PARTS]
        for result in results
    ]
    return [f"| {' | '.join(row)} |" for row in (["", "dense render", *PARTS], ["---"] * (2 + len(PARTS)), *rows)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_rate", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds; medians are shown (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of all calls (default: 1)")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = records.environment()
    results = measure(args.rounds)
    print("\n".join(lines(results)))
    if args.record:
        print(f"recorded in {records.append(found, results)}")


if __name__ == "__main__":
    main()
