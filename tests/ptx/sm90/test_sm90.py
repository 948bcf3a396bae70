"""Execute what nvcc compiles of csrc/cuda/decode_sm90.cu on the CPU, and check the results.

Each run has another order of warps, copies and products; LIIF_FAST_TEST_COMPILE=all makes more of them, on larger
problems. Without nvcc all tests are skipped, unless LIIF_FAST_TEST_NVCC=1 requires it.
"""

import itertools

import numpy as np
import pytest
import torch

from liif_fast import functional
from liif_fast.backends import cuda
from liif_fast.coord import plan_corners
from liif_fast.ops import sm90

from ...kernels.test_compile_report import LONG
from ...ops.support import Problem
from ..cases import rms
from . import launch
from .support import SHAPE, decoded, require

require()
pytestmark = pytest.mark.ptx

KERNELS = list(itertools.product((torch.float16, torch.bfloat16), (True, False), (1, 2)))


def test_every_kernel_is_there():
    names = {launch.Kernel("Half" if dtype == torch.float16 else "Bfloat", *more) for dtype, *more in KERNELS}
    assert set(launch.compiled()) == names


@pytest.mark.parametrize(("dtype", "ensemble", "cluster"), KERNELS)
@pytest.mark.parametrize("seed", range(12 if LONG else 1))
def test_integers(dtype, ensemble, cluster, seed):
    larger = {"hidden": 2 + seed % 3, "grid": 1 + seed % 2, "queries": (50, 150)[not ensemble]} if LONG else {}
    out, right, _ = decoded(dtype, ensemble, cluster, seed, **larger)
    assert np.abs(right).max() > 10
    if ensemble:  # 256 float32 additions of either sign
        assert np.abs(out - right).max() <= 1e-5 * np.abs(right).max()
    else:
        assert np.array_equal(out, right)


def test_nan_reaches_its_readers_only():
    def spoil(p):
        p[1, 2, 3] = np.nan

    clean, *_ = decoded(torch.float16, True, 1, 1, queries=20)
    dirty, _, coord = decoded(torch.float16, True, 1, 2, queries=20, change=spoil)
    index = plan_corners(torch.from_numpy(coord), *SHAPE, True)[0].numpy()
    reads = ((index == (2, 3)).all(-1).any(-1)) & np.array([[False], [True]])
    assert reads.any()
    assert np.isnan(dirty[reads]).all()
    assert np.array_equal(dirty[~reads], clean[~reads])


@pytest.mark.parametrize(
    ("op", "dtype", "cluster", "truncate"),
    [("decode", torch.float16, 1, 0), ("render", torch.bfloat16, 2, 0), ("render", torch.float16, 1, 4)],
)
def test_the_backend_keeps_its_promises(op, dtype, cluster, truncate, monkeypatch):
    """Promise 2 (docs/backends.md) holds for the backend, also for a window of a grid on a part of a map."""
    # The operators around these take CUDA tensors alone.
    monkeypatch.setattr(sm90, op, getattr(launch, op))
    around = "decode_queries" if op == "decode" else "render_window"
    monkeypatch.setattr(cuda, around, lambda *arguments: cuda.OPERATORS[op](*arguments[:-1]))
    monkeypatch.setattr(cuda, "CLUSTER", cluster)
    monkeypatch.setattr(launch.Executor, "truncate", truncate)
    problem = Problem(shape=(5, 7), queries=17, hidden=(256,) * 3).to(dtype)
    exact = Problem(shape=(5, 7), queries=17, hidden=(256,) * 3).to(dtype).to(torch.float64)
    region = (3, 2, 4, 5)

    def run(p, backend):
        if op == "decode":
            return functional.liif_decode(*p.arguments, backend=backend)
        return functional.liif_render(p.feat, (11, 16), p.weights, p.biases, region=region, backend=backend)

    with torch.no_grad():
        feat, coord, cell, *layers = problem.arguments
        if op == "decode":
            ours = cuda.decode(feat, coord, cell, *layers, problem.switches, None)
        else:
            own_cell = torch.tensor([[2 / 11, 2 / 16]]).expand(len(feat), 2)
            ours = cuda.render(feat, (11, 16), region, own_cell, *layers, problem.switches, None)
        plain, right = run(problem, "torch"), run(exact, "reference")
    assert rms(ours - right) <= 2 * rms(plain - right) + 12 * torch.finfo(dtype).eps * rms(right)
