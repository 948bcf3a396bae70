"""When the compiled Hopper kernel is executed, how much of it, and on what."""

import os

import numpy as np
import pytest
import torch

from liif_fast.backends import cpu

from ...cuda.test_model import SHAPE, expected, integers, network, operator_pack, sample
from . import launch


def require():
    """Skip a module without nvcc, unless there has to be one."""
    if cpu._missing:
        pytest.skip("the packing operator needs the C++ kernels", allow_module_level=True)
    why = launch.missing()
    if why and os.environ.get("LIIF_FAST_TEST_NVCC") != "1":
        pytest.skip(why, allow_module_level=True)


def decoded(dtype, ensemble, cluster, seed, *, hidden=2, queries=0, grid=1, change=None):
    """Output and reference, where all but the ensemble's blend is integers, exact in both dtypes."""
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
