"""Choose when the compiled Hopper kernel is executed, how much of it, and on which inputs."""

import os

import numpy as np
import pytest
import torch

from liif_fast.backends import cpu
from liif_fast.coord import plan_corners

from . import launch

SHAPE = (4, 8)  # powers of two, so that rel and the scaled cell can be integers


def integers(rng, shape, low, high, density=1.0):
    values = rng.integers(low, high + 1, shape) * (rng.random(shape) < density)
    return values.astype(np.float32)


def network(rng, terms, out_dim, hidden=4):
    """Return integer weights and biases behind P; the first layer's latent columns (5 here) do not matter."""
    weights = [integers(rng, (256, 5 + terms), -1, 1)]
    weights += [integers(rng, (256, 256), -1, 1, 0.01) for _ in range(hidden - 1)]
    weights.append(integers(rng, (out_dim, 256), -2, 2))
    return weights, [integers(rng, w.shape[:1], -2, 2) for w in weights]


def operator_pack(weights, biases, terms, bfloat):
    tensors = [[torch.from_numpy(t) for t in ts] for ts in (weights, biases)]
    return torch.ops.liif_fast.pack_sm90(*tensors, terms, bfloat).numpy()


def expected(p, coord, cell, weights, biases, terms, ensemble):
    """Return the reference's output in float64, [B, Q, out]."""
    index, rel, weight = (t.numpy() for t in plan_corners(torch.from_numpy(coord), *SHAPE, ensemble))
    affine = weights[0][:, -terms:].astype(np.float64)
    values = np.stack([p[b][index[b, ..., 0], index[b, ..., 1]] for b in range(len(p))]).astype(np.float64)
    parts = rel if terms == 2 else np.concatenate(
        [rel, np.broadcast_to((cell * np.float32(SHAPE))[:, :, None], rel.shape)], -1)  # fmt: skip
    h = np.maximum(values + parts @ affine.T, 0)
    for w, b in zip(weights[1:-1], biases[1:-1], strict=True):
        h = np.maximum(h @ w.T.astype(np.float64) + b, 0)
        assert not (h > 256).any()  # exact in bfloat16, too
    return (weight[..., None] * (h @ weights[-1].T)).sum(2) + biases[-1]


def sample(rng, queries, ensemble):
    """Return coordinates on edges between latents, where rel is 1 or -1, and cells of whole numbers of latents."""
    edges = [rng.integers(0, n + 1, (2, queries)) * (2 / n) - 1 for n in SHAPE]
    coord = np.stack(edges, -1).astype(np.float32)
    cell = rng.integers(0, 3, (2, queries, 2)).astype(np.float32) / np.float32(SHAPE)
    if ensemble:
        coord += rng.uniform(-0.3, 0.3, coord.shape).astype(np.float32)
    return coord, cell


def require():
    """Skip a module without nvcc, unless nvcc is required."""
    if cpu._missing:
        pytest.skip("the packing operator needs the C++ kernels", allow_module_level=True)
    why = launch.missing()
    if why and os.environ.get("LIIF_FAST_TEST_NVCC") != "1":
        pytest.skip(why, allow_module_level=True)


def decoded(dtype, ensemble, cluster, seed, *, hidden=2, queries=0, grid=1, change=None):
    """Return output and reference; all but the ensemble's blend is integers, exact in both dtypes."""
    rng = np.random.default_rng(7)
    weights, biases = network(rng, 4, 3, hidden)
    if ensemble:
        weights[0][:, -4:-2] = 0
    coord, cell = sample(rng, queries or (40 if ensemble else 100), ensemble)
    p = integers(rng, (2, *SHAPE, 256), -2, 2)
    if change:
        change(p)
    packed = torch.from_numpy(operator_pack(weights, biases, 4, dtype == torch.bfloat16))
    launch.Executor.seed, launch.Executor.grid = seed, grid
    inputs = (torch.from_numpy(each) for each in (p, coord, cell))
    out = launch.decode(next(inputs).to(dtype), *inputs, packed, 3, ensemble, cluster)
    return out.numpy(), expected(p, coord, cell, weights, biases, 4, ensemble), coord
