"""Run the calls whose instructions are counted: python -m benchmarks.instructions_driver SWITCH, inside callgrind.

It calls each operator of the CPU backend once in float32, with a network half as wide as the paper's, on a small map.
SWITCH is a library with `start` and `stop`, so that the import of PyTorch runs faster, without being counted.
"""

import ctypes
import sys

import torch

from benchmarks.common import make_problem, make_queries
from liif_fast.functional import fused_mlp, gather_corners, liif_decode, liif_render

SIDE, QUERIES, CHANNELS, HIDDEN = 12, 96, 32, (128,) * 4


def main() -> None:
    switch = ctypes.CDLL(sys.argv[1])
    torch.set_num_threads(1)
    feat, weights, biases = make_problem((SIDE, SIDE), channels=CHANNELS, hidden=HIDDEN)
    feat.requires_grad_()
    coord, cell = make_queries(1, QUERIES, SIDE)
    switch.start()
    with torch.no_grad():
        x, _ = gather_corners(feat, coord, cell, backend="cpu")
        fused_mlp(x, weights, biases, backend="cpu")
        liif_render(feat, (2 * SIDE, QUERIES // 2 // SIDE), weights, biases, backend="cpu")
    out = liif_decode(feat, coord, cell, weights, biases, backend="cpu")
    torch.autograd.grad(out.sum(), (feat, *weights, *biases))
    switch.stop()


if __name__ == "__main__":
    main()
