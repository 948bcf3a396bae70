"""Count the sectors of memory that the warps' accesses touch where rows are gathered and added.

    python -m tests.ptx.traffic ARCHITECTURE

test_traffic.py runs it. It prints a line of JSON: {kernel and kind of access: sectors}, how many sectors
hold the rows that are gathered and the sums that are added to, and, of a decoder's backward pass by what is wanted, the
chain's instructions and the sectors that it writes and that are added to.
"""

import json
import sys
from collections import Counter

import torch

from liif_fast.kernels import decode, gather_corners, scatter
from tests.ops.support import make_layers
from tests.ptx import execute
from tests.ptx.execute import Executor

CHANNELS, QUERIES = 64, 12


# The gradients of P, of the columns for rel and the cell, of the layers behind the first, and at the corners.
WANTED = {
    "all": [True] * 2 + [True] * 6 + [True], "map": [True] + [False] * 8, "places": [False] * 8 + [True],
    "second layer": [False] * 2 + [True] * 2 + [False] * 5, "last layer": [False] * 6 + [True] * 2 + [False],
}  # fmt: skip


def wanted(flags):
    """Return the gradients, the chain's instructions, the sectors that it writes, and those that are added to."""
    counted = Executor.executed, Executor.sectors
    for counter in counted:
        counter.clear()
    torch.manual_seed(0)
    weights, biases = make_layers((68, 32, 32, 32, 3))
    coord, saved = torch.zeros(1, 16, 2), torch.randn(3, 64, 32).relu()
    inputs = torch.ones(1, 16, 3), torch.ones(1, 3, 4, 32), coord, coord, weights, biases, saved, True
    grads, (executed, sectors) = decode.decode_backward(*inputs, flags), counted
    return grads, executed["chain_kernel"], sectors["chain_kernel st"], sectors["atomic_kernel atom"]


def main():
    execute.install(int(sys.argv[1]))
    Executor.sectors = Counter()
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(1, CHANNELS, 5, 6, generator=generator)
    coord = torch.rand(1, QUERIES, 2, generator=generator) * 2 - 1
    x, _ = gather_corners.gather_corners(feat, coord, None, True, True)
    torch.use_deterministic_algorithms(True)
    gather_corners.gather_corners_backward(x, coord, CHANNELS, 5, 6, True, True)
    torch.use_deterministic_algorithms(False)
    rows, latents = torch.ones(32, 256, dtype=torch.float16), torch.arange(32)
    scatter.add(rows, latents, torch.zeros(32, 256))
    found = dict(Executor.sectors)
    every, *_ = wanted(WANTED["all"])
    backward = {}
    for name, flags in WANTED.items():
        grads, *backward[name] = wanted(flags)
        assert all(torch.equal(one, other) for one, other, want in zip(grads, every, flags, strict=True) if want), name
    print(
        json.dumps(
            found | {"backward": backward, "rows": 4 * QUERIES * 9 * CHANNELS * 4 // 32, "added": 32 * 256 * 4 // 32}
        )
    )


if __name__ == "__main__":
    main()
