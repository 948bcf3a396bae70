"""Compare attend_corners, whose kernels run as compiled PTX, with the plain form, for test_attention.py.

    python -m tests.ptx.attention ARCHITECTURE (atomic | sorted) WIDTH DEPTH HEADS

It prints a line of JSON: for each tensor [name, error, plain PyTorch's error, size]; the names of the kernels executed.
"""

import json
import sys

import torch

from tests.ops.test_attend import Attention
from tests.ptx import execute
from tests.ptx.cases import fill_with_nan, rms


def main():
    architecture, order, *network = sys.argv[1:]
    execute.install(int(architecture))
    torch.use_deterministic_algorithms(order == "sorted")
    fill_with_nan()
    width, depth, heads = map(int, network)
    # Two tiles, the second not full. All have the same rounded numbers, so that errors come from the computation.
    made = [Attention(width, depth, heads, width, shape=(3, 4), queries=9, values=2) for _ in range(3)]
    exact = made[2]
    exact.feat, exact.values, exact.net = exact.feat.double(), exact.values.double(), exact.net.to(torch.float64)
    results = []
    for problem, backend in zip(made, ("triton", "reference", "reference"), strict=True):
        outs, grads = problem.gradients(backend, wrap=True)
        results.append({"output": outs[0], "output: weight": outs[1], **grads})
    names = [name for name, value in results[2].items() if rms(value)]
    errors = [
        [name, *(rms(each[name] - results[2][name]) for each in results[:2]), rms(results[2][name])] for name in names
    ]
    print(json.dumps({"errors": errors, "executed": execute.Executor.executed}))


if __name__ == "__main__":
    main()
