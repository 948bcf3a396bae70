"""Provide the operators as functions, with validation, autocast and the choice of backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from liif_fast import backends
from liif_fast.backends import Explanation
from liif_fast.call import Switches, describe
from liif_fast.checks import (
    check_coord,
    check_extent,
    check_feat,
    check_grid,
    check_layers,
    check_place,
    check_queries,
    check_shape,
    check_tensor,
    grid_cell,
    latents_read,
)
from liif_fast.coord import lattice, plan_corners
from liif_fast.family import (
    attend_corners,
    fourier_decode,
    fourier_features,
    fourier_render,
    modulated_decode,
    modulated_render,
    plan_attention,
)
from liif_fast.frozen import frozen_weights
from liif_fast.ops import flops

__all__ = [
    "attend_corners",
    "corner_plan",
    "explain",
    "fourier_decode",
    "fourier_features",
    "fourier_render",
    "frozen_weights",
    "fused_mlp",
    "gather_corners",
    "latents_read",
    "liif_decode",
    "liif_render",
    "modulated_decode",
    "modulated_render",
    "plan_attention",
]

backends.load()
flops.register()


def liif_decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    feat_unfold: bool = True,
    local_ensemble: bool = True,
    cell_decode: bool = True,
    backend: str = "auto",
    recompute: bool | None = None,
) -> Tensor:
    """Decode queries of a feature map: LIIF's local implicit image function.

    Args:
        feat: [B, C, H, W] floating point, the latents; any memory layout.
        coord: [B, Q, 2] float32, (row, column) of each query in [-1, 1], pixel centres. Queries beyond read the border
            latents. The backends `reference` and `torch` also take float64, and plan in it.
        cell: [B, Q, 2] in coord's dtype, (2/H_out, 2/W_out) on a regular grid; None if not cell_decode.
        weights: the MLP's weights [out_i, in_i], as nn.Linear's; in_0 = C (times 9 with feat_unfold) + 2 (+ 2 with
            cell_decode). dtype of feat, or any under autocast.
        biases: the MLP's biases [out_i].
        feat_unfold: concatenate the 3x3 neighbourhood of each latent.
        local_ensemble: blend the predictions from the four nearest latents by area; otherwise use the nearest one's.
        cell_decode: give the network the size of the query's pixel.
        backend: "auto" (the fastest that can run the call) or a name; see `explain`.
        recompute: in training, compute hidden activations again in the backward pass instead of keeping them. None
            keeps up to 1 GiB of them.

    Returns:
        [B, Q, out], not clamped; dtype of feat, float32 under autocast.

    Raises:
        TypeError: an argument is not a tensor, or has a dtype that cannot be used.
        ValueError: a shape, device or backend name does not fit.
        RuntimeError: the named backend cannot run this call.

    Source: LIIF (arXiv 2012.09161), equations 1 to 4 and section 3.
    """
    switches = Switches(feat_unfold, local_ensemble, cell_decode)
    weights, biases = tuple(weights), tuple(biases)
    check_feat(feat)
    cell = check_queries(feat, coord, cell, cell_decode)
    check_layers(feat, weights, biases, switches)
    call = describe("decode", feat, coord.shape[1], weights, biases, switches, coord, cell)
    return backends.choose(call, backend).decode(feat, coord, cell, weights, biases, switches, recompute)


def liif_render(
    feat: Tensor,
    size: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    region: Sequence[int] | None = None,
    cell: Tensor | Sequence[float] | None = None,
    feat_unfold: bool = True,
    local_ensemble: bool = True,
    cell_decode: bool = True,
    backend: str = "auto",
    recompute: bool | None = None,
    place: Sequence[int] | None = None,
    extent: Sequence[float] | None = None,
) -> Tensor:
    """Decode a regular grid, or a window of it, without any coordinate tensor.

    The result equals `liif_decode` on make_coord(size) and make_cell(size), and is differentiable in the same way.
    With `extent` it equals that on make_coord(size, extent=extent, of=(H, W)) and the same make_cell.

    Args:
        feat: [B, C, H, W] floating point, the latents.
        size: (H_out, W_out) of the whole grid.
        weights, biases: as for `liif_decode`.
        region: (top, left, height, width), the window of the grid to decode, in pixels; None is all of it.
        cell: the network's pixel size: a pair of floats, or float32 [2] or [B, 2]; None is (2/H_out, 2/W_out).
        feat_unfold, local_ensemble, cell_decode, backend, recompute: as for `liif_decode`.
        place: (top, left, map_height, map_width): feat is a part of a map of that size, and starts at that row and
            column. The result is that of the whole map, bit for bit where the backend promises it. The part must hold
            all latents that the region reads; see `latents_read`. None: feat is the whole map.
        extent: (top, left, height, width) in latents, fractions allowed: the part of the map that the grid covers.
            None: all of it.

    Returns:
        [B, out, height, width], in any memory layout; dtype of feat, float32 under autocast.

    Raises:
        TypeError, ValueError, RuntimeError: as `liif_decode`.

    Source: LIIF (arXiv 2012.09161), section 3.
    """
    switches = Switches(feat_unfold, local_ensemble, cell_decode)
    weights, biases = tuple(weights), tuple(biases)
    check_feat(feat)
    check_layers(feat, weights, biases, switches)
    height, width, window = check_grid(size, region)
    further: dict[str, Any] = {}  # arguments that not every backend takes
    if extent is not None:
        shape = feat.shape[2:] if place is None else check_shape("place", tuple(place)[2:], "(map_height, map_width)")
        further["extent"] = check_extent(extent, shape)
        cell = lattice((height, width), further["extent"], shape)[::2] if cell is None else cell
    cells = grid_cell(feat, height, width, cell) if cell_decode else None
    if place is not None:
        further["place"] = check_place(place, feat, (height, width), window, feat_unfold, further.get("extent"))
    call = describe("render", feat, window[2] * window[3], weights, biases, switches, None, cells)
    render: Any = backends.choose(call._replace(grid=(height, width), **further), backend).render
    return render(feat, (height, width), window, cells, weights, biases, switches, recompute, **further)


def corner_plan(coord: Tensor, shape: Sequence[int], *, local_ensemble: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Plan each query: the latents that it reads, its position relative to them, and their weights.

    Args:
        coord: [B, Q, 2] float32 or float64, (row, column) in [-1, 1].
        shape: (H, W) of the feature map.
        local_ensemble: plan the K = 4 nearest latents, in the order 00, 01, 10, 11; otherwise the nearest, K = 1.

    Returns:
        index [B, Q, K, 2] int64 (row, column); rel [B, Q, K, 2], the distance from the latent's centre in units of
        half a latent; weight [B, Q, K], each corner's share, after the diagonal swap. rel and weight have the dtype of
        coord and are differentiable with respect to it. All backends give the same bits.

    Raises:
        TypeError, ValueError: coord or shape cannot be used.

    Source: LIIF (arXiv 2012.09161), section 3.2 (local ensemble); order of operations of the authors' code.
    """
    check_coord("coord", coord)
    height, width = check_shape("shape", shape, "(H, W)")
    return plan_corners(coord, height, width, local_ensemble)


def gather_corners(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    *,
    feat_unfold: bool = True,
    local_ensemble: bool = True,
    cell_decode: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Gather the network's input for every corner of every query, for your own network.

    From the result (x, weight), LIIF's output for a network `net` is (weight[..., None] * net(x)).sum(2).

    Args:
        feat, coord, cell, feat_unfold, local_ensemble, cell_decode, backend: as for `liif_decode`.

    Returns:
        x [B, Q, K, in_dim]: latent (unfolded: channel c*9 + ki*3 + kj), rel and scaled cell; dtype of feat, float32
        under autocast. weight [B, Q, K] of coord's dtype.

    Raises:
        TypeError, ValueError, RuntimeError: as `liif_decode`.

    Source: LIIF (arXiv 2012.09161), section 3.
    """
    switches = Switches(feat_unfold, local_ensemble, cell_decode)
    check_feat(feat)
    cell = check_queries(feat, coord, cell, cell_decode)
    call = describe("gather_corners", feat, coord.shape[1], (), (), switches, coord, cell)
    return backends.choose(call, backend).gather_corners(feat, coord, cell, switches)


def fused_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    backend: str = "auto",
    recompute: bool | None = None,
) -> Tensor:
    """Apply a multilayer perceptron (Linear and ReLU in turn, with a Linear at the end) to the last dimension.

    Args:
        x: [..., in] floating point.
        weights, biases, backend, recompute: as for `liif_decode`.

    Returns:
        [..., out]; dtype of x, float32 under autocast.

    Raises:
        TypeError, ValueError, RuntimeError: as `liif_decode`.

    Source: LIIF (arXiv 2012.09161), section 4.1 (the decoding function f_theta).
    """
    weights, biases = tuple(weights), tuple(biases)
    check_tensor("x", x)
    if x.ndim < 1:
        raise ValueError("x must have shape [..., in], got []")
    check_layers(x, weights, biases, None)
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    call = describe("fused_mlp", x, rows, weights, biases, Switches(), None, None)
    return backends.choose(call, backend).fused_mlp(x, weights, biases, recompute)


def explain(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    feat_unfold: bool = True,
    local_ensemble: bool = True,
    cell_decode: bool = True,
    backend: str = "auto",
) -> Explanation:
    """Return every backend's answer to a call of `liif_decode`: chosen, can run, or refused with the reason.

    Args:
        feat, coord, cell, weights, biases, feat_unfold, local_ensemble, cell_decode, backend: as for `liif_decode`.

    Returns:
        An Explanation, which prints as a table: `chosen` (a name, or "" if no backend can) and `answers` (name, can
        run, reason).

    Raises:
        TypeError, ValueError: as `liif_decode`.
    """
    switches = Switches(feat_unfold, local_ensemble, cell_decode)
    weights, biases = tuple(weights), tuple(biases)
    check_feat(feat)
    cell = check_queries(feat, coord, cell, cell_decode)
    check_layers(feat, weights, biases, switches)
    return backends.explain(describe("decode", feat, coord.shape[1], weights, biases, switches, coord, cell), backend)
