"""Count the sectors of memory that the warps' accesses touch where rows are gathered and added.

    python -m tests.ptx.traffic ARCHITECTURE

test_traffic.py starts this process. It prints a line of JSON: {kernel and kind of access: sectors}, and how many
sectors hold the rows that are gathered and the sums that are added to.
"""

import json
import sys
from collections import Counter

import torch

from liif_fast.kernels import gather_corners, scatter
from tests.ptx import execute
from tests.ptx.execute import Executor

CHANNELS, QUERIES = 64, 12


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
    print(json.dumps(Executor.sectors | {"rows": 4 * QUERIES * 9 * CHANNELS * 4 // 32, "added": 32 * 256 * 4 // 32}))


if __name__ == "__main__":
    main()
