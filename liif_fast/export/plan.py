"""Make the inputs of an exported graph beside the image; numpy only, so copy this file to where liif_fast is not."""

import numpy as np


def graph_inputs(shape, size, corners=2):  # type: ignore[no-untyped-def]  # to be copied and read
    """Return the plan from latents of `shape` (H, W) to an output of `size` (h, w), and the cell, by input name.

    `corners` is 1 for a model without local ensemble. Every line is one rounding to float32 of docs/semantics.md.
    """
    f = np.float32

    def centre(index, n):  # type: ignore[no-untyped-def]
        return index.astype(f) * f(2 / n) + f(-1 + 1 / n)

    inputs = {"cell": np.array([f(2 / q) * f(n) for q, n in zip(size, shape)], f)}  # noqa: B905
    for axis, n, q in zip(("row", "column"), shape, size):  # noqa: B905
        coord = centre(np.arange(q), q)
        shifts = [f(-1 / n + 1e-6), f(1 / n + 1e-6)] if corners == 2 else [f(0)]
        place = np.clip(np.stack([coord + shift for shift in shifts]), f(-1 + 1e-6), f(1 - 1e-6))
        index = np.clip(np.rint(((place + f(1)) * f(n) - f(1)) * f(0.5)), 0, n - 1).astype(np.int64)
        inputs[f"{axis}_index"], inputs[f"{axis}_rel"] = index, (coord - centre(index, n)) * f(n)
    return inputs
