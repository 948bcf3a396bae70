"""The Hopper kernel's corner plan, compiled for the host, equals the reference's bit for bit."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from liif_fast import make_coord
from liif_fast.coord import plan_corners

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Return the kernel's headers, compiled for the host."""
    library = tmp_path_factory.mktemp("host") / "host.so"
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
    command += ["-shared", "-fPIC", f"-I{ROOT / 'csrc/cuda'}", ROOT / "tests/cuda/host.cpp", "-o", library]
    subprocess.run([*map(str, command)], check=True)
    host = ctypes.CDLL(str(library))
    host.problem.restype = ctypes.c_void_p
    return host


def pointer(array):
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def make_problem(host, p, shape, ensemble, *, window=(0, 0), coord=None, cell=None, grid=None, region=None):
    """Return p [B, h, w, 128] uint32 at `window` of a map of `shape`, and coord [B, Q, 2] or a region of a grid."""
    batch = p.shape[0]
    queries = coord.shape[1] if coord is not None else region[2] * region[3]
    grid, region = grid or (1, 1), region or (0, 0, 1, 1)
    numbers = [*shape, *window, *p.shape[1:3], queries, batch * queries, *grid, region[0], region[1], region[3]]
    cell_step = 2 if cell is not None and cell.ndim == 3 else 0
    made = host.problem((ctypes.c_int64 * len(numbers))(*numbers), int(ensemble), pointer(p), pointer(coord),
                        pointer(cell), ctypes.c_int64(cell_step))  # fmt: skip
    return made, batch * queries


def rows_of(host, problem, ensemble, first, lane):
    rel, weight = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
    latent = np.zeros(2, np.int64)
    host.rows_of(ctypes.c_void_p(problem), int(ensemble), ctypes.c_int64(first), lane, *map(pointer,
                 (rel, weight, latent)))  # fmt: skip
    return rel, weight, latent


@pytest.mark.parametrize("ensemble", [True, False])
@pytest.mark.parametrize("render", [True, False])
def test_the_plan_is_the_references(host, ensemble, render):
    """Promise 1: index, rel and weight bit for bit, at odd scales (x3), beyond the edges and for NaN."""
    shape, grid = (5, 11), (15, 33)
    region = (1, 2, 13, 30)
    coord = make_coord(grid).view(*grid, 2)[1:14, 2:32].reshape(1, -1, 2).contiguous()
    if not render:
        coord = torch.cat((coord, torch.rand(1, 50, 2) * 2.4 - 1.2, torch.tensor([[[-1.0, 1.0], [9.0, -9.0]]])), 1)
    index, rel, weight = (t.numpy()[0] for t in plan_corners(coord, *shape, ensemble))
    p, queries = np.zeros((1, *shape, 128), np.uint32), coord.shape[1]
    where = {"grid": grid, "region": region} if render else {"coord": coord.numpy()}
    problem, total = make_problem(host, p, shape, ensemble, **where)
    assert total == queries
    per_warp, seen = (4, 16)[not ensemble], np.zeros(index.shape[:2], bool)
    for first in range(0, queries, per_warp):
        for lane in range(32):
            found = rows_of(host, problem, ensemble, first, lane)
            g = lane // 4
            for low in range(2):
                query, corner = (first + g // 2, g % 2 + 2 * low) if ensemble else (first + g + 8 * low, 0)
                if query >= queries:
                    continue
                assert np.array_equal(found[0][low], rel[query, corner])
                assert found[1][low] == weight[query, corner]
                assert found[2][low] == index[query, corner, 0] * shape[1] + index[query, corner, 1]
                seen[query, corner] = True
    assert seen.all()
    host.forget(ctypes.c_void_p(problem))
