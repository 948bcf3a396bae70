"""Compare the rate of training with that of the render: python -m benchmarks.training_rate.

Both rates are useful operations (limits.py) per second of CPU time, on one thread. So other processes disturb them less
than a race of `make bench`. A step is liif_decode with gradients of the latents and of every parameter; its projection
does not count as useful, nor does anything that it computes again. Each round runs a render before and after the step.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from benchmarks.common import make_problem, make_queries
from benchmarks.limits import decode_work, training_work
from liif_fast.functional import liif_decode, liif_render

CASES = ((2, 16_384), (1, 131_072), (16, 2304), (2, 2304))  # images, queries of each
SIDE, SCALE = 48, 2


def seconds(call: Callable[[], object]) -> float:
    """Return the CPU time of a call on this thread."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def shares(batch: int, queries: int, rounds: int, side: int, hidden: Sequence[int]) -> dict[str, float]:
    """Return the rates of the forward pass, the backward pass and both, as shares of the render's; and that rate."""
    picture = make_problem((side, side), hidden=hidden)
    problem = make_problem((side, side), batch=batch, hidden=hidden)
    leaves = [problem.feat.requires_grad_(), *problem.weights, *problem.biases]
    places, grad = make_queries(batch, queries, side), torch.randn(batch, queries, 3)
    size = (SCALE * side, SCALE * side)
    useful = decode_work(size[0] * size[1], 0, picture.weights).flop
    total = training_work(batch * queries, 0, problem.weights).flop
    out = torch.empty(0)

    @torch.no_grad()
    def render() -> None:
        liif_render(picture.feat, size, picture.weights, picture.biases)

    def forward() -> None:
        nonlocal out
        out = liif_decode(problem.feat, *places, problem.weights, problem.biases)

    def backward() -> None:
        torch.autograd.grad(out, leaves, grad)

    found = []
    for _ in range(rounds + 1):
        first, there, back, last = map(seconds, (render, forward, backward, render))
        rate = useful / (first + last) * 2
        found.append((rate, total / 3 / there / rate, total * 2 / 3 / back / rate, total / (there + back) / rate))
    return dict(zip(("render", "forward", "backward", "both"), map(median, zip(*found[1:], strict=True)), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_rate", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are shown (default: 5)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| case | render | forward | backward | both |\n|---|---|---|---|---|")
    for batch, queries in CASES:
        found = shares(batch, queries, rounds, SIDE, (256,) * 4)
        ratios = " | ".join(f"{found[part]:.2f}" for part in ("forward", "backward", "both"))
        print(f"| B = {batch}, Q = {queries:,} | {found['render'] / 1e9:.0f} GFLOP/s | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
