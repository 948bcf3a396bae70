"""Make coordinates: pixel centres, cells, and the corner plan, which selects the latents that a query reads.

The float32 operations below and their order are a contract, the same as in LIIF's own code, because at odd scales their
rounding noise decides the blend. So they allow no fused multiply-add and no algebraically equal form. In eager mode
PyTorch rounds after every operation. A compiler may contract a*b + c, so under torch.compile the same code runs as an
opaque operator (`liif_fast::corner_plan`, `liif_fast::centres`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast.call import Extent, Window

EPSILON = 1e-6  # the shift that breaks ties between two latents, and the clamp's margin (1 - 1e-10 would be 1.0f)
AREA_FLOOR = 1e-9


def _centres(index: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    # fl(fl(fl(2/n) * i) + fl(-1 + 1/n)): the two scalars are computed in double and rounded once.
    return index.to(dtype) * (2 / n) + (-1 + 1 / n)


def centres_at(index: Tensor, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the centres of the pixels `index` (integers, any shape) of an axis of `n` pixels over [-1, 1]."""
    if torch.compiler.is_compiling():
        return torch.ops.liif_fast.centres(index, n, dtype)
    return _centres(index, n, dtype)


def centres(n: int, *, device: torch.device | str | None = None) -> Tensor:
    """Return the pixel centres of an axis of `n` pixels over [-1, 1], float32 [n]."""
    return centres_at(torch.arange(n, device=device), max(n, 1))


def lattice(size: Sequence[int], extent: Extent, shape: Sequence[int]) -> tuple[float, float, float, float]:
    """Return step and origin of the rows, then of the columns, of a grid of `size` laid over a part of a map.

    Pixel i of W over (x, w) of an axis of n pixels lies at -1 + 2 (x + (i + 0.5) w / W) / n, which is computed as
    fl(fl(fl(step) * i) + fl(origin)). Over the whole axis these are the bits of `centres`.

    Args:
        size: (H, W) of the grid.
        extent: (top, left, height, width) of the part, in pixels of the map.
        shape: (H, W) of the map.
    """
    rows, columns = (
        (2 / count * (length / n), -1 + (2 * first / n + length / n / count))
        for count, first, length, n in zip(size, extent[:2], extent[2:], shape, strict=True)
    )
    return *rows, *columns


def on_lattice(index: Tensor, step: float, origin: float) -> Tensor:
    """Return the positions of pixels (integers, any shape) on one axis of a `lattice`, float32."""
    return index.to(torch.float32) * step + origin


def grid_axes(
    size: Sequence[int],
    region: Window,
    extent: Extent | None,
    shape: Sequence[int],
    *,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the positions of a window's rows [h] and columns [w], float32.

    Args:
        size, region: of the grid and its window.
        extent, shape: the part of a map of (H, W) that the grid covers; None is all of it.
        device: device of the results.
    """
    rows, columns = (torch.arange(region[axis], region[axis] + region[axis + 2], device=device) for axis in (0, 1))
    if extent is None:
        return centres_at(rows, size[0]), centres_at(columns, size[1])
    down, across = lattice(size, extent, shape)[:2], lattice(size, extent, shape)[2:]
    return on_lattice(rows, *down), on_lattice(columns, *across)


def make_coord(
    shape: Sequence[int],
    *,
    device: torch.device | str | None = None,
    extent: Extent | None = None,
    of: Sequence[int] | None = None,
) -> Tensor:
    """Return the pixel centres of a grid, row by row.

    Args:
        shape: (H, W) of the grid.
        device: device of the result.
        extent: (top, left, height, width), fractions allowed: the part of an image that the grid covers; None is all.
        of: (H, W) of that image.

    Returns:
        float32 [H*W, 2]: (row, column) in [-1, 1].

    Source: LIIF (arXiv 2012.09161), section 3; pixel-centre convention.
    """
    height, width = shape
    if extent is None:
        rows, columns = centres(height, device=device), centres(width, device=device)
    else:
        rows, columns = grid_axes(shape, (0, 0, height, width), extent, _of(of), device=device)
    rows, columns = rows[:, None].expand(height, width), columns.expand(height, width)
    return torch.stack((rows, columns), -1).reshape(height * width, 2)


def make_cell(
    shape: Sequence[int],
    *,
    device: torch.device | str | None = None,
    extent: Extent | None = None,
    of: Sequence[int] | None = None,
) -> Tensor:
    """Return the cell (pixel size) of every query of a grid, as an expanded view that holds one row.

    Args:
        shape: (H, W) of the grid.
        device: device of the result.
        extent, of: as for `make_coord`.

    Returns:
        float32 [H*W, 2]: (2/H, 2/W) in every row, times the part's share of the image.

    Source: LIIF (arXiv 2012.09161), section 3.3, cell decoding.
    """
    height, width = shape
    sides = [2 / max(n, 1) for n in (height, width)] if extent is None else lattice(shape, extent, _of(of))[::2]
    cell = torch.stack([torch.full((), side, device=device, dtype=torch.float32) for side in sides])
    return cell.expand(height * width, 2)


def _of(shape: Sequence[int] | None) -> Sequence[int]:
    if shape is None:
        raise TypeError("extent is a part of an image: give its (H, W) as the argument of")
    return shape


def _axis_plan(coord: Tensor, n: int, local_ensemble: bool) -> tuple[Tensor, Tensor]:
    """Plan one axis: coord [B, Q] -> index int64 [B, Q, V] and rel [B, Q, V] for the V = 2 (or 1) shifts."""
    position = coord.detach()
    # v/n + 1e-6 is summed in double, rounded to coord's dtype, then added.
    shifted = torch.stack([position + (v / n + EPSILON) for v in (-1, 1)] if local_ensemble else [position], -1)
    clamped = shifted.clamp(-1 + EPSILON, 1 - EPSILON)
    # torch.round rounds half to even. The last clamp serves only NaN, which converts to an arbitrary integer.
    index = (((clamped + 1) * n - 1) * 0.5).round().to(torch.int64).clamp(0, n - 1)
    return index, (coord.unsqueeze(-1) - _centres(index, n, coord.dtype)) * n


def _corner_plan(coord: Tensor, height: int, width: int, local_ensemble: bool) -> tuple[Tensor, Tensor, Tensor]:
    row_index, row_rel = _axis_plan(coord[..., 0], height, local_ensemble)
    column_index, column_rel = _axis_plan(coord[..., 1], width, local_ensemble)

    def pair(rows: Tensor, columns: Tensor) -> Tensor:  # corner order 00, 01, 10, 11
        return torch.stack(torch.broadcast_tensors(rows.unsqueeze(-1), columns.unsqueeze(-2)), -1).flatten(-3, -2)

    index, rel = pair(row_index, column_index), pair(row_rel, column_rel)
    if not local_ensemble:
        return index, rel, torch.ones_like(rel[..., 0])
    area = (rel[..., 0] * rel[..., 1]).abs() + AREA_FLOOR
    first, second, third, fourth = area.unbind(-1)
    total = ((first + second) + third) + fourth
    return index, rel, area.flip(-1) / total.unsqueeze(-1)  # the diagonal swap: 0 <-> 3, 1 <-> 2


def plan_corners(coord: Tensor, height: int, width: int, local_ensemble: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return index int64 [B, Q, K, 2], rel [B, Q, K, 2] and weight [B, Q, K] of `functional.corner_plan`, unchecked."""
    if torch.compiler.is_compiling():
        rel, weight, index = torch.ops.liif_fast.corner_plan(coord, height, width, local_ensemble)
        return index, rel, weight
    return _corner_plan(coord, height, width, local_ensemble)


def latent_window(
    size: tuple[int, int], region: Window, shape: tuple[int, int], extent: Extent | None = None
) -> Window:
    """Return a window of the latent grid `shape` that holds every latent that the region of the grid `size` reads.

    `extent` is the part of the latent grid that the grid `size` covers, by default all of it.
    """
    first, length = [], []
    for axis, (full, start, count, latents) in enumerate(zip(size, region[:2], region[2:], shape, strict=True)):
        # A query reads the two latents around it; two more are a margin for rounding. The margin grows with the map,
        # because the plan's shift of 1e-6 and a coordinate's rounding are relative to the whole axis.
        margin = 3 + latents // 100_000
        low, high = 2 * start + 1, 2 * (start + count) - 1  # the outermost pixels' centres, in half pixels
        if extent is None:
            low, high = low * latents // (2 * full), high * latents // (2 * full)
        else:
            at, part = extent[axis], extent[axis + 2] / (2 * full)
            low, high = math.floor(at + low * part), math.floor(at + high * part)
        low, high = max(low - margin, 0), min(high + margin, latents)
        first.append(low)
        length.append(max(high - low, 1))
    return first[0], first[1], length[0], length[1]


# ---- The same two functions as operators that are opaque to a compiler.

torch.library.define("liif_fast::centres", "(Tensor index, SymInt n, ScalarType dtype) -> Tensor")
torch.library.define(
    "liif_fast::corner_plan",
    "(Tensor coord, SymInt height, SymInt width, bool local_ensemble) -> (Tensor rel, Tensor weight, Tensor index)",
)


torch.library.impl("liif_fast::centres", "CompositeExplicitAutograd", _centres)


@torch.library.register_fake("liif_fast::centres")
def _centres_fake(index: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(index.shape, dtype=dtype, device=index.device)


@torch.library.impl("liif_fast::corner_plan", "CompositeExplicitAutograd")
def _corner_plan_impl(coord: Tensor, height: int, width: int, local_ensemble: bool) -> tuple[Tensor, Tensor, Tensor]:
    index, rel, weight = _corner_plan(coord, height, width, local_ensemble)
    return rel.contiguous(), weight.contiguous(), index.contiguous()


@torch.library.register_fake("liif_fast::corner_plan")
def _corner_plan_fake(coord: Tensor, height: int, width: int, local_ensemble: bool) -> tuple[Tensor, Tensor, Tensor]:
    corners = (*coord.shape[:-1], 4 if local_ensemble else 1)
    rel = torch.empty((*corners, 2), dtype=coord.dtype, device=coord.device)
    weight = torch.empty(corners, dtype=coord.dtype, device=coord.device)
    return rel, weight, torch.empty_like(rel, dtype=torch.int64)


def _corner_plan_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, ctx.height, ctx.width, ctx.local_ensemble = inputs
    ctx.save_for_backward(output[0], output[1])


def scaled(pairs: Tensor, height: int, width: int) -> Tensor:
    """Return (row, column) pairs [..., 2] times the map's sides: the network's cell, or a gradient from that of rel."""
    return torch.stack((pairs[..., 0] * height, pairs[..., 1] * width), -1)


def _coord_gradient(
    rel: Tensor, weight: Tensor, grad_rel: Tensor, grad_weight: Tensor, height: int, width: int, local_ensemble: bool
) -> Tensor:
    if local_ensemble:  # weight_t = area_{3-t} / total
        product = rel[..., 0] * rel[..., 1]
        total = (product.abs() + AREA_FLOOR).sum(-1, keepdim=True)
        # From differences of gradients, because they may lie close together far from zero.
        apart = grad_weight.flip(-1).unsqueeze(-1) - grad_weight.unsqueeze(-2)
        grad_area = (apart * weight.unsqueeze(-2)).sum(-1) / total
        grad_rel = grad_rel + (grad_area * product.sign()).unsqueeze(-1) * rel.flip(-1)
    return scaled(grad_rel.sum(-2), height, width)


def place_gradients(
    places: Tensor,
    grad_weight: Tensor,
    coord: Tensor,
    wanted: Sequence[bool],
    height: int,
    width: int,
    local_ensemble: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of coord and cell from those at the corners.

    Args:
        places: [B, Q, K, 2 or 4], the gradient of rel and, with 4, of the cell, both as the network reads them.
        grad_weight: [B, Q, K], the gradient of the corners' weights.
        coord: [B, Q, 2].
        wanted: of coord and of cell.

    Returns:
        [B, Q, 2] each, in the dtype of coord; None if unwanted.
    """
    places, grad_coord = places.to(coord.dtype), None
    if wanted[0]:
        _, rel, weight = plan_corners(coord.detach(), height, width, local_ensemble)
        parts = places[..., :2], grad_weight.to(coord.dtype)
        grad_coord = _coord_gradient(rel, weight, *parts, height, width, local_ensemble)
    return grad_coord, scaled(places[..., 2:].sum(-2), height, width) if wanted[1] else None


def _corner_plan_backward(
    ctx: Any, grad_rel: Tensor, grad_weight: Tensor, _: Tensor
) -> tuple[Tensor, None, None, None]:
    rel, weight = ctx.saved_tensors
    size = ctx.height, ctx.width, ctx.local_ensemble
    return _coord_gradient(rel, weight, grad_rel, grad_weight, *size), None, None, None


torch.library.register_autograd("liif_fast::corner_plan", _corner_plan_backward, setup_context=_corner_plan_context)
