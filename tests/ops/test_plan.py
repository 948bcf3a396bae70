"""Check promise 1, the corner plan bit for bit, on every backend and in every operator that makes one.

Expected values come from oracle.py (numpy float32 without fused operations). There is no tolerance except where noted.
"""

import numpy as np
import pytest
import torch

from liif_fast import functional, make_coord

from . import oracle
from .oracle import Switches
from .support import BACKENDS, DEVICE, same_bits

SIDES = range(1, 41)
SCALES = (1, 2, 3, 4, 5, 0.5, 1.5, 2.5, 3.7, 4.3)
NEAREST = Switches(feat_unfold=False, local_ensemble=False)
BLENDED = Switches(feat_unfold=False, local_ensemble=True)


def grid_of(n):
    return n, 41 - n


def scaled(shape, scale):
    return tuple(max(1, round(side * scale)) for side in shape)


def edge_coords(shape):
    """Return coordinates at and beyond the edges of map, latents and cells, each with its float32 neighbours."""
    special = [0.0, -0.0, 1, 1.5, 1 + 1e-6, 1 - 1e-6, 1 - 2e-6, 2, 3, 1e-6, 1e-30, 1e-45, 1e30, 3e38, np.inf, np.nan]
    values = [np.float32(v) * sign for v in special for sign in (1, -1)]
    for n in shape:
        values += [*oracle.centres(n), *(oracle.centres(n) + np.float32(1 / n)), np.float32(-1)]
    values = np.array(values, np.float32)
    with np.errstate(all="ignore"):
        values = np.concatenate([values, np.nextafter(values, np.float32(9)), np.nextafter(values, np.float32(-9))])
    generator = np.random.default_rng(shape[0])
    pairs = np.stack((values, generator.permutation(values)), -1)
    return np.concatenate((pairs, np.stack((values, values), -1)))


def check_plan(got, coord, shape, ensemble):
    """Assert that the plan `got` (index, rel, weight) of coord [Q, 2] equals the oracle's."""
    for name, ours, expected in zip(("index", "rel", "weight"), got, oracle.plan(coord, shape, ensemble), strict=True):
        expected, ours = torch.from_numpy(expected).unsqueeze(0), ours.cpu()
        if name == "index":  # a NaN may read any latent, as long as it exists
            known = ~torch.from_numpy(np.isnan(coord)).view(1, -1, 1, 2).expand(expected.shape)
            assert torch.equal(ours[known], expected[known])
            assert bool(((ours >= 0) & (ours < torch.tensor(shape))).all())
        else:
            assert same_bits(ours, expected), name


@pytest.mark.parametrize("ensemble", [True, False])
@pytest.mark.parametrize("n", range(1, 41))
def test_corner_plan(n, ensemble):
    shape = grid_of(n)
    for scale in SCALES:
        size = scaled(shape, scale)
        coord = oracle.grid(size)
        assert same_bits(make_coord(size), torch.from_numpy(coord)), "make_coord"
        at = make_coord(size)[None].to(DEVICE)
        check_plan(functional.corner_plan(at, shape, local_ensemble=ensemble), coord, shape, ensemble)
    coord = edge_coords(shape)
    at = torch.from_numpy(coord)[None].to(DEVICE)
    check_plan(functional.corner_plan(at, shape, local_ensemble=ensemble), coord, shape, ensemble)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ensemble", [True, False])
def test_gather_corners(backend, ensemble):
    """The plan inside gather_corners is right, as latents that encode their position show."""
    for n in SIDES:
        shape = height, width = grid_of(n)
        coord = np.concatenate([oracle.grid(scaled(shape, scale))[:: 1 + n % 5] for scale in SCALES])
        coord = np.concatenate((coord, edge_coords(shape)))
        feat = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))[None].float()
        at = torch.from_numpy(coord)[None]
        cell = torch.rand(at.shape, generator=torch.Generator().manual_seed(n))
        options = {"feat_unfold": False, "local_ensemble": ensemble, "backend": backend}
        x, weight = functional.gather_corners(*(t.to(DEVICE) for t in (feat, at, cell)), **options)
        x = x.cpu()
        index, rel, area, scale = x[..., :2].long(), x[..., 2:4], weight, x[..., 4:]
        check_plan((index, rel, area), coord, shape, ensemble)
        expected = torch.from_numpy(cell.numpy() * np.array(shape, np.float32))
        assert same_bits(scale, expected.unsqueeze(2).expand(scale.shape))


# ---- The plan inside decode and render, read through networks with exact arithmetic.


def nearest_network():
    """Make a network for one corner: out = (row, column, rel_row, rel_column, cell_row * H, cell_column * W).

    Fused kernels need a hidden layer, which holds both signs: x = relu(x) - relu(-x).
    """
    first = torch.cat((torch.eye(6), -torch.eye(6)))
    return [first, first.T.contiguous()], [torch.zeros(12), torch.zeros(6)]


def parity_map(height, width):
    """Make sixteen channels for four kinds of latents (neighbours differ): is it, its row, its column, is it not."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    kind = torch.nn.functional.one_hot(row % 2 * 2 + column % 2, 4).permute(2, 0, 1).float()
    return torch.cat((kind, kind * row, kind * column, 1 - kind)).unsqueeze(0)


def blended_network():
    """Make a network for four corners: each kind's weight, and weight times row, column, rel_row+-, rel_column+-.

    A hidden unit is relu(-4 * not_kind +- rel): exactly rel if the latent is of the kind, else exactly 0 (|rel| < 4).
    If the four latents are distinct, sums over the corners have one nonzero term.
    """
    first = torch.zeros(28, 20)  # of 16 channels, 2 of rel, 2 of cell
    first[:12, :12] = torch.eye(12)
    for kind in range(4):
        for i, (column, sign) in enumerate([(16, 1), (16, -1), (17, 1), (17, -1)]):
            first[12 + kind * 4 + i, 12 + kind], first[12 + kind * 4 + i, column] = -4, sign
    return [first, torch.eye(28)], [torch.zeros(28), torch.zeros(28)]


def blended_expected(coord, shape):
    """Return blended_network's output for a plan, [Q, 28], and where the four latents are distinct, [Q]."""
    index, rel, weight = oracle.plan(coord, shape)
    kind = index[..., 0] % 2 * 2 + index[..., 1] % 2
    hidden = np.zeros((*kind.shape, 28), np.float32)
    units = [(kind, 1), (4 + kind, index[..., 0]), (8 + kind, index[..., 1])]
    for i, value in enumerate([rel[..., 0], -rel[..., 0], rel[..., 1], -rel[..., 1]]):
        units.append((12 + kind * 4 + i, np.maximum(value, np.float32(0))))
    for unit, value in units:
        np.put_along_axis(hidden, unit[..., None], np.broadcast_to(value, kind.shape)[..., None], -1)
    terms = weight[..., None] * hidden
    distinct = (index[:, 0] != index[:, 3]).all(-1)
    return ((terms[:, 0] + terms[:, 1]) + terms[:, 2]) + terms[:, 3], distinct


def decoded(backend, shape, size, switches, network, feat):
    """Return the same grid by decode, render, and a window of render, [H*W, out] each, and the window's rows."""
    feat, coord, cell = (t.to(DEVICE) for t in (feat, make_coord(size)[None], torch.tensor([0.25, 0.125])))
    network = [[p.to(DEVICE) for p in ps] for ps in network]
    options = {**switches._asdict(), "backend": backend}
    decode = functional.liif_decode(feat, coord, cell.expand(coord.shape), *network, **options)[0]
    render = functional.liif_render(feat, size, *network, cell=cell, **options)[0]
    window = size[0] // 3, size[1] // 2, size[0] - size[0] // 3, size[1] - size[1] // 2
    part = functional.liif_render(feat, size, *network, cell=cell, region=window, **options)[0]
    assert same_bits(part, render[:, window[0] :, window[1] :]), "region"
    return decode.cpu(), render.flatten(1).T.cpu()


def check_exact(backend, out, expected):
    """Compare bits; for backends that replace a float32 product by three TF32 ones, allow the last bit's rounding.

    Such a product splits each factor into two of 11 bits, so the last of 24 bits may be lost. test_gather_corners
    checks such a backend's plan bit for bit.
    """
    if backend == "triton" and DEVICE != "cpu":
        torch.testing.assert_close(out, expected, rtol=2.0**-22, atol=0)
    else:
        assert same_bits(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_decode_and_render_of_the_nearest(backend):
    for n in SIDES:
        shape = height, width = grid_of(n)
        feat = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))[None].float()
        for scale in SCALES[n % 2 :: 2]:
            size = scaled(shape, scale)
            index, rel, _ = oracle.plan(oracle.grid(size), shape, False)
            cell = np.broadcast_to(np.array([0.25 * height, 0.125 * width], np.float32), index[:, 0].shape)
            expected = torch.from_numpy(np.concatenate((index[:, 0].astype(np.float32), rel[:, 0], cell), -1))
            for out in decoded(backend, shape, size, NEAREST, nearest_network(), feat):
                check_exact(backend, out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_decode_and_render_of_the_blend(backend):
    for n in SIDES:
        shape = grid_of(n)
        for scale in SCALES[n % 2 :: 2]:
            size = scaled(shape, scale)
            expected, distinct = map(torch.from_numpy, blended_expected(oracle.grid(size), shape))
            for out in decoded(backend, shape, size, BLENDED, blended_network(), parity_map(*shape)):
                check_exact(backend, out[distinct], expected[distinct])
                # Elsewhere terms of one kind are added, possibly fused: three sums of at most 40 round by 2^-24 each.
                torch.testing.assert_close(out, expected, rtol=2.0**-22, atol=1e-9)


def test_compiled_plan():
    """The operator is opaque to compilers, so none may fuse the plan's operations."""

    def both(coord, height, width):
        return functional.corner_plan(coord, (height, width))

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (7, 20, 40):
        shape = grid_of(n)
        for scale in (3, 2.5):
            coord = oracle.grid(scaled(shape, scale))
            check_plan(compiled(torch.from_numpy(coord)[None], *shape), coord, shape, True)
