"""Compare coordinates and the corner plan with an independent numpy float32 oracle and values computed by hand."""

import numpy as np
import pytest
import torch

from liif_fast.coord import centres, make_cell, make_coord, plan_corners
from liif_fast.functional import corner_plan

F32 = np.float32


def oracle_centres(n):
    """Return fl(fl(fl(2/n) * i) + fl(-1 + 1/n)), with numpy rounding after every operation."""
    return F32(2 / n) * np.arange(n).astype(F32) + F32(-1 + 1 / n)


def oracle_plan(coord, shape, local_ensemble):
    """Plan float32 coord [..., 2], one corner at a time."""
    shifts = [(a, b) for a in (-1, 1) for b in (-1, 1)] if local_ensemble else [(0, 0)]
    index, rel, area = [], [], []
    for shift in shifts:
        corner, distance = [], []
        for axis, n in enumerate(shape):
            x = coord[..., axis]
            moved = x + F32(shift[axis] / n + 1e-6) if local_ensemble else x
            clamped = np.clip(moved, F32(-1 + 1e-6), F32(1 - 1e-6))
            i = np.rint(((clamped + F32(1)) * F32(n) - F32(1)) / F32(2)).astype(np.int64)
            corner.append(i)
            distance.append((x - oracle_centres(n)[i]) * F32(n))
        index.append(np.stack(corner, -1))
        rel.append(np.stack(distance, -1))
        area.append(np.abs(distance[0] * distance[1]) + F32(1e-9))
    if local_ensemble:
        total = ((area[0] + area[1]) + area[2]) + area[3]
        weight = [area[3 - t] / total for t in range(4)]
    else:
        weight = [np.ones_like(area[0])]
    return np.stack(index, -2), np.stack(rel, -2), np.stack(weight, -1)


def assert_plan(coord, shape, local_ensemble):
    got = corner_plan(coord, shape, local_ensemble=local_ensemble)
    expected = oracle_plan(coord.numpy(), shape, local_ensemble)
    for name, tensor, array in zip(("index", "rel", "weight"), got, expected, strict=True):
        assert np.array_equal(tensor.numpy(), array), f"{name} differs at shape {shape}"


def test_make_coord_by_hand():
    expected = [[-0.5, -0.75], [-0.5, -0.25], [-0.5, 0.25], [-0.5, 0.75]]
    expected += [[0.5, column] for _, column in expected]
    assert torch.equal(make_coord((2, 4)), torch.tensor(expected))


def test_make_cell_is_a_view_of_one_row():
    cell = make_cell((2, 4))
    assert torch.equal(cell, torch.tensor([[1.0, 0.5]]).expand(8, 2))
    assert cell.stride()[0] == 0 and cell.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_grid(shape):
    assert make_coord(shape).shape == make_cell(shape).shape == (0, 2)


def test_centres_are_the_oracles_bits():
    for n in range(1, 300):
        assert np.array_equal(centres(n).numpy(), oracle_centres(n)), n


def test_plan_by_hand():
    index, rel, weight = corner_plan(torch.tensor([[[0.25, 0.0]]]), (2, 2))
    assert index.tolist() == [[[[0, 0], [0, 1], [1, 0], [1, 1]]]]
    assert rel.tolist() == [[[[1.5, 1.0], [1.5, -1.0], [-0.5, 1.0], [-0.5, -1.0]]]]
    assert weight.tolist() == [
        [[0.125, 0.125, 0.375, 0.375]]
    ]  # the near row has the largest weight, by the diagonal swap


def test_plan_of_the_nearest_by_hand():
    index, rel, weight = corner_plan(torch.tensor([[[0.25, -0.75]]]), (2, 2), local_ensemble=False)
    assert index.tolist() == [[[[1, 0]]]] and rel.tolist() == [[[[-0.5, -0.5]]]] and weight.tolist() == [[[1.0]]]


@pytest.mark.parametrize("local_ensemble", [True, False])
@pytest.mark.parametrize("scale", [1, 2, 3, 5, 7, 2.5, 3.7])
def test_plan_is_exact_on_grids(scale, local_ensemble):
    for n in range(1, 41):
        shape = (n, 41 - n)
        grid = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
        assert_plan(make_coord(grid).unsqueeze(0), shape, local_ensemble)


@pytest.mark.parametrize("local_ensemble", [True, False])
def test_plan_is_exact_anywhere(local_ensemble):
    edges = [-1.0, 1.0, -1 + 1e-6, 1 - 1e-6, 0.0, 1.5, -7.0, 1e-30]
    edges = torch.cartesian_prod(torch.tensor(edges), torch.tensor(edges))
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 1), (1, 7), (13, 17), (40, 3), (500, 1000)):
        anywhere = torch.rand(2000, 2, generator=generator) * 2.4 - 1.2
        assert_plan(torch.cat((edges, anywhere)).unsqueeze(0), shape, local_ensemble)


def test_the_order_of_operations_shows():
    """At x3 the outermost areas are rounding noise, so an equivalent formula for the centre gives other weights."""
    coord, shape = make_coord((27, 33)).unsqueeze(0), (9, 11)
    index, _, weight = corner_plan(coord, shape)
    n = torch.tensor(shape)
    other = (coord.unsqueeze(2) - (-1 + (2 * index + 1) / n).float()) * n
    area = other.prod(-1).abs() + 1e-9
    assert ((area.flip(-1) / area.sum(-1, keepdim=True) - weight).abs() > 0.01).any()


def test_weights_sum_to_one():
    weight = corner_plan(torch.rand(2, 500, 2) * 2 - 1, (6, 9))[2]
    torch.testing.assert_close(weight.sum(-1), torch.ones(2, 500), rtol=0, atol=3e-7)  # four roundings of 6e-8


def test_invalid_coordinates_stay_inside_the_map():
    coord = torch.tensor([[[float("nan"), 0.0], [float("inf"), 0.0], [0.0, float("-inf")]]])
    index, rel, _ = corner_plan(coord, (3, 5))
    assert ((index >= 0) & (index < torch.tensor([3, 5]))).all()
    assert rel[0, 0, :, 0].isnan().all() and rel[0, 1, :, 0].isinf().all()


def test_float64_plan_is_finer():
    coord = torch.rand(1, 50, 2, dtype=torch.float64)
    index, rel, weight = corner_plan(coord, (5, 5))
    assert rel.dtype == weight.dtype == torch.float64
    centre = -1 + (2 * index.double() + 1) / 5
    torch.testing.assert_close(rel, (coord.unsqueeze(2) - centre) * 5, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("local_ensemble", [True, False])
def test_plan_gradients(local_ensemble):
    coord = (torch.rand(1, 6, 2, dtype=torch.float64) * 1.6 - 0.8).requires_grad_()

    def plan(coord):
        return corner_plan(coord, (4, 5), local_ensemble=local_ensemble)[1:]

    def operator(coord):
        return torch.ops.liif_fast.corner_plan(coord, 4, 5, local_ensemble)[:2]

    assert torch.autograd.gradcheck(plan, coord)
    assert torch.autograd.gradgradcheck(plan, coord)
    assert torch.autograd.gradcheck(operator, coord)


@pytest.mark.parametrize("local_ensemble", [True, False])
def test_operator_is_the_function(local_ensemble):
    coord = make_coord((27, 33)).expand(2, -1, -1)
    operator = torch.ops.liif_fast.corner_plan.default
    index, rel, weight = plan_corners(coord, 9, 11, local_ensemble)
    for got, expected in zip(operator(coord, 9, 11, local_ensemble), (rel, weight, index), strict=True):
        assert torch.equal(got, expected)
    torch.library.opcheck(operator, (coord[:, :5].clone().requires_grad_(), 9, 11, local_ensemble))


def test_centres_operator():
    index = torch.tensor([[0, 3], [2, 1]])
    torch.library.opcheck(torch.ops.liif_fast.centres.default, (index, 4, torch.float32))
    assert torch.equal(torch.ops.liif_fast.centres(index, 4, torch.float32), centres(4)[index])


def test_compiled_plan_keeps_its_bits():
    """A compiler may contract a*b + c, which would change the plan of the outermost rows at x3."""

    @torch.compile(fullgraph=True, dynamic=True)
    def plan(height, width, shape):
        coord = make_coord((height, width)).unsqueeze(0)
        return coord, *corner_plan(coord, shape)

    for shape in ((9, 11), (13, 7)):
        coord, *got = plan(shape[0] * 3, shape[1] * 3, shape)
        assert torch.equal(coord[0], make_coord((shape[0] * 3, shape[1] * 3)))
        for tensor, expected in zip(got, corner_plan(coord, shape), strict=True):
            assert torch.equal(tensor, expected)
