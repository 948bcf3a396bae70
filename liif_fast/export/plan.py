"""Make an exported graph's inputs other than the image; needs only numpy, so it may be copied to other programs."""

from collections.abc import Sequence

import numpy as np


def graph_inputs(shape: Sequence[int], size: Sequence[int], corners: int = 2) -> dict[str, np.ndarray]:
    """Return the plan from latents of `shape` (H, W) to an output of `size` (h, w), and the cell, by input name.

    `corners` is 1 for a model without local ensemble. Every operation is one rounding to float32 of docs/semantics.md.
    """
    if any(n < 1 or n != int(n) for n in (*shape, *size)):
        raise ValueError(f"shape and size must be whole numbers of at least 1, got {shape} and {size}")
    f = np.float32

    def centres(index: np.ndarray, n: int) -> np.ndarray:
        return index.astype(f) * f(2 / n) + f(-1 + 1 / n)

    inputs = {"cell": np.array([f(2 / q) * f(n) for n, q in zip(shape, size, strict=True)])}
    for axis, n, q in zip(("row", "column"), shape, size, strict=True):
        coord = centres(np.arange(q), q)
        shifts = (f(-1 / n + 1e-6), f(1 / n + 1e-6)) if corners == 2 else (f(0),)
        place = np.clip([coord + shift for shift in shifts], f(-1 + 1e-6), f(1 - 1e-6))
        index = np.rint(((place + f(1)) * f(n) - f(1)) * f(0.5)).clip(0, n - 1).astype(np.int64)
        inputs |= {f"{axis}_index": index, f"{axis}_rel": (coord - centres(index, n)) * f(n)}
    return inputs
