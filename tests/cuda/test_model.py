"""Execute the kernel's data movement: exact on integers, and the plan bit for bit."""

import ctypes

import numpy as np
import pytest
import torch

from liif_fast import make_coord
from liif_fast.backends import cpu
from liif_fast.coord import plan_corners

from . import model

SHAPE = (4, 8)  # powers of two, so that rel and the scaled cell can be integers


def integers(rng, shape, low, high, density=1.0):
    values = rng.integers(low, high + 1, shape) * (rng.random(shape) < density)
    return values.astype(np.float32)


def network(rng, terms, out_dim, hidden=4):
    """Make integer weights and biases behind P; the first layer's latent columns (5 here) do not matter."""
    weights = [integers(rng, (256, 5 + terms), -1, 1)]
    weights += [integers(rng, (256, 256), -1, 1, 0.01) for _ in range(hidden - 1)]
    weights.append(integers(rng, (out_dim, 256), -2, 2))
    return weights, [integers(rng, w.shape[:1], -2, 2) for w in weights]


def pack_with(host, weights, biases, terms, bfloat):
    products = len(weights) - 2
    bytes_ = products * model.constant(host, "product_bytes") + 4 * model.constant(host, "table_floats")
    packed = np.zeros(bytes_, np.uint8)
    pointers = [(ctypes.c_void_p * len(ts))(*[t.ctypes.data for t in ts]) for ts in (weights, biases)]
    host.pack(*pointers, len(weights), weights[0].shape[1], terms, len(biases[-1]), int(bfloat), model.pointer(packed))
    return packed


def operator_pack(weights, biases, terms, bfloat):
    tensors = [[torch.from_numpy(t) for t in ts] for ts in (weights, biases)]
    return torch.ops.liif_fast.pack_sm90(*tensors, terms, bfloat).numpy()


def expected(p, coord, cell, weights, biases, terms, ensemble):
    """Return the reference in float64, [B, Q, out]."""
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
    """Make coordinates on the edges between latents, where rel is 1 or -1, and cells of whole numbers of latents."""
    edges = [rng.integers(0, n + 1, (2, queries)) * (2 / n) - 1 for n in SHAPE]
    coord = np.stack(edges, -1).astype(np.float32)
    cell = rng.integers(0, 3, (2, queries, 2)).astype(np.float32) / np.float32(SHAPE)
    if ensemble:
        coord += rng.uniform(-0.3, 0.3, coord.shape).astype(np.float32)
    return coord, cell


def run(host, packed, p, coord, cell, products, out_dim, *, ensemble, bfloat, cluster=1):
    dtype = torch.bfloat16 if bfloat else torch.float16
    raw = torch.from_numpy(p).to(dtype).view(torch.int32).numpy().view(np.uint32)
    problem, total = model.make_problem(host, raw, SHAPE, ensemble, coord=coord, cell=cell)
    kernel = model.Kernel(host, packed, products, out_dim, ensemble=ensemble, bfloat=bfloat, cluster=cluster)
    out = kernel.run(problem, total)
    host.forget(ctypes.c_void_p(problem))
    return out.reshape(*coord.shape[:2], out_dim)


def exact_case(host, pack, *, bfloat=False, cluster=1, terms=4, out_dim=3, hidden=4, queries=45):
    """Return output and reference without the ensemble, so that every number is an integer."""
    rng = np.random.default_rng(hidden)
    weights, biases = network(rng, terms, out_dim, hidden)
    p, (coord, cell) = integers(rng, (2, *SHAPE, 256), -2, 2), sample(rng, queries, False)
    cell = cell if terms == 4 else None
    packed = pack(weights, biases, terms, bfloat)
    out = run(host, packed, p, coord, cell, hidden - 1, out_dim, ensemble=False, bfloat=bfloat, cluster=cluster)
    return out, expected(p, coord, cell, weights, biases, terms, False)


@pytest.mark.skipif(bool(cpu._missing), reason="the packing operator needs the C++ kernels")
@pytest.mark.parametrize(("bfloat", "cluster"), [(False, 1), (True, 1), (False, 2)])
@pytest.mark.parametrize(("terms", "out_dim", "hidden"), [(4, 3, 4), (2, 1, 2), (4, 4, 5)])
def test_integers_are_exact(host, bfloat, cluster, terms, out_dim, hidden):
    network = {"terms": terms, "out_dim": out_dim, "hidden": hidden}
    out, right = exact_case(host, operator_pack, bfloat=bfloat, cluster=cluster, **network)
    assert np.abs(right).max() > 10
    assert np.array_equal(out, right)


@pytest.mark.parametrize("mutation", [
    ("layout.h", "2 * (k / 16 % 2) + k % 16 / 8) + k % 2", "2 * (k / 16 % 2) + k % 16 / 8) + (1 - k % 2)"),
    ("layout.h", "offset ^ ((offset >> 7 & 7) << 4)", "offset ^ ((offset >> 7 & 3) << 4)"),
    ("layout.h", "return kRegistersA * kk + 2 * high + low", "return kRegistersA * kk + 2 * low + high"),
    ("layout.h", "return 4 * block + 2 * low + odd", "return 4 * block + 2 * odd + low"),
    ("layout.h", "step * kK * 2", "step * kK * 4"),
    ("layout.h", "uint64_t{8 * kRowBytes / 16} << 32", "uint64_t{4 * kRowBytes / 16} << 32"),
    ("layout.h", "(c / 16 * 4 + c % 8 / 2) * 4 + c % 16 / 8 * 2 + c % 2", "c"),
    ("layout.h", "return rank * (kSliceBytes / cluster)", "return rank * (kSliceBytes / cluster / 2)"),
    ("layout.h", "slice_bytes(slice) - kSliceBytes : 0", "(slice_bytes(slice) - kSliceBytes) / 2 : 0"),
    ("thread.h", "row_query(lane.g) : lane.g + 8 * low", "row_query(lane.g) : lane.g + 7 * low"),
])  # fmt: skip
def test_a_wrong_formula_fails(tmp_path, mutation):
    """The model can fail, because a small change of any formula changes the output."""
    mutant = model.compile_host(tmp_path, mutation)
    out, right = exact_case(mutant, lambda *arguments: pack_with(mutant, *arguments), cluster=2)
    assert not np.array_equal(out, right)


@pytest.mark.parametrize("bfloat", [False, True])
def test_ensemble(host, bfloat):
    """Hidden activations are integers if rel has no weight; the blend is rounded in float32."""
    rng = np.random.default_rng(7)
    weights, biases = network(rng, 4, 3)
    weights[0][:, -4:-2] = 0
    p, (coord, cell) = integers(rng, (2, *SHAPE, 256), -2, 2), sample(rng, 37, True)
    packed = pack_with(host, weights, biases, 4, bfloat)
    out = run(host, packed, p, coord, cell, 3, 3, ensemble=True, bfloat=bfloat)
    right = expected(p, coord, cell, weights, biases, 4, True)
    assert np.abs(out - right).max() <= 1e-5 * np.abs(right).max()  # 256 float32 additions of either sign


def test_nan_reaches_its_readers_only(host):
    rng = np.random.default_rng(8)
    weights, biases = network(rng, 4, 3)
    p, (coord, cell) = integers(rng, (2, *SHAPE, 256), -2, 2), sample(rng, 37, True)
    packed = pack_with(host, weights, biases, 4, False)
    clean = run(host, packed, p, coord, cell, 3, 3, ensemble=True, bfloat=False)
    p[1, 2, 3] = np.nan
    dirty = run(host, packed, p, coord, cell, 3, 3, ensemble=True, bfloat=False)
    index = plan_corners(torch.from_numpy(coord), *SHAPE, True)[0].numpy()
    reads = ((index == (2, 3)).all(-1).any(-1)) & np.array([[False], [True]])
    assert reads.any()
    assert np.isnan(dirty[reads]).all()
    assert np.array_equal(dirty[~reads], clean[~reads])


def rows_of(host, problem, ensemble, first, lane):
    rel, weight = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
    latent = np.zeros(2, np.int64)
    host.rows_of(ctypes.c_void_p(problem), int(ensemble), ctypes.c_int64(first), lane, *map(model.pointer,
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
    problem, total = model.make_problem(host, p, shape, ensemble, **where)
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
