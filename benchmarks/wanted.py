"""Time backward passes of which only some gradients are wanted: python -m benchmarks.wanted [--backend NAME].

The variants take turns. Their times are the process's CPU time (`time.process_time`), with one thread unless
OMP_NUM_THREADS says otherwise. The script prints medians of the times, and of the ratios to the pass for all gradients
in the same round.
"""

import argparse
import os
import statistics
import time

import torch

from benchmarks.common import make_problem, make_queries
from liif_fast.functional import liif_decode

SIDE, QUERIES = 48, 2304
# Whether the gradients of feat, of the network and of coord are wanted.
WANTED = {
    "all": (True, True, False),
    "frozen encoder": (False, True, False),
    "frozen decoder": (True, False, False),
    "coord only": (False, False, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wanted", description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="cpu", help="backend of liif_decode, on a CPU")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    feat, weights, biases = make_problem((SIDE, SIDE))
    coord, cell = make_queries(1, QUERIES, SIDE)
    grad, laps = torch.randn(1, QUERIES, 3), {name: list[float]() for name in WANTED}
    for round_number in range(args.rounds + 1):
        for name, (of_feat, of_network, of_coord) in WANTED.items():
            feat.requires_grad_(of_feat), coord.requires_grad_(of_coord)
            for each in (*weights, *biases):
                each.requires_grad_(of_network)
            out = liif_decode(feat, coord, cell, weights, biases, backend=args.backend, recompute=False)
            leaves = [each for each in (feat, coord, *weights, *biases) if each.requires_grad]
            begin = time.process_time()
            torch.autograd.grad(out, leaves, grad)
            if round_number:  # the first round warms up
                laps[name].append(time.process_time() - begin)
    for name, times in laps.items():
        ratio = statistics.median(mine / whole for mine, whole in zip(times, laps["all"], strict=True))
        print(f"{name:<16}{1000 * statistics.median(times):8.1f} ms{ratio:8.2f}")


if __name__ == "__main__":
    main()
