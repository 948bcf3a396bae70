"""Measure the peak memory of one render in this process: python -m benchmarks.peak VARIANT LATENTS THREADS.

Prints JSON: `beyond_output`, the bytes by which resident memory peaked over what it was before, without the output;
`p`, how many of them are the projected latents P [H, W, 256]; `error`, of some rows against the reference. The plain
formula renders only its first two chunks of queries (all its chunks are alike), so that its figure is a lower bound.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import eager
from benchmarks.common import EAGER, FACTORISED, Problem, check, make_problem
from liif_fast.functional import liif_render

CLEAR_REFS = Path("/proc/self/clear_refs")
SCALE = 4
ROWS = 8  # rows that are checked, at the top, in the middle and at the bottom


def resident(key: str) -> int:
    """Return VmRSS, what is resident now, or VmHWM, its peak, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def settle() -> int:
    """Give freed memory back to the system, start a new peak, and return what is resident."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    CLEAR_REFS.write_text("5")
    return resident("VmRSS")


@torch.no_grad()
def render(variant: str, problem: Problem, size: int) -> Tensor:
    """Return [1, queries, 3] of the plain formula, else [1, 3, size, size]."""
    feat, weights, biases = problem
    if variant == EAGER:
        return eager.render(feat, (size, size), weights, biases, chunks=2)
    return liif_render(feat, (size, size), weights, biases, backend="torch" if variant == FACTORISED else "auto")


@torch.no_grad()
def largest_error(problem: Problem, size: int, out: Tensor) -> float:
    """Return the largest error of the rows looked at, against the reference."""
    feat, weights, biases = problem
    flat = out if out.shape[-1] == 3 else out.flatten(2).transpose(1, 2)
    errors = []
    for top in (0, size // 2, size - ROWS):
        rows = flat[:, top * size : (top + ROWS) * size]
        if rows.shape[1] == ROWS * size:
            region = (top, 0, ROWS, size)
            wanted = liif_render(feat, (size, size), weights, biases, region=region, backend="reference")
            errors.append(check(rows, wanted.flatten(2).transpose(1, 2))["error"])
    return max(errors)


def main() -> None:
    variant, latents, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    problem, size = make_problem((latents, latents)), latents * SCALE
    render(variant, make_problem((8, 8)), 8 * SCALE)  # starts the threads and loads the libraries
    before = settle()
    out = render(variant, problem, size)
    beyond = resident("VmHWM") - before - out.nbytes
    p = 0 if variant == EAGER else latents * latents * problem.weights[0].shape[0] * out.element_size()
    print(json.dumps({"beyond_output": beyond, "p": p, "error": largest_error(problem, size, out)}))


if __name__ == "__main__":
    main()
