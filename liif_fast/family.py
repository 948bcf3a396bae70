"""Functions for LIIF's relatives, which read the same corners in other ways; `liif_fast.functional` provides them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast import backends
from liif_fast.attention import Coordinates, Corners, CornerTransformer
from liif_fast.backends import attention, corners
from liif_fast.call import Place, Switches, describe
from liif_fast.checks import (
    check_attention,
    check_chain,
    check_coord,
    check_corners,
    check_extent,
    check_feat,
    check_grid,
    check_place,
    check_queries,
    check_shape,
    check_tensor,
    grid_cell,
)
from liif_fast.coord import grid_axes, lattice

STRIP_QUERIES = 1 << 16  # queries of one image per strip; bounds memory, does not change the result


def render_by_query(
    query: Callable[[Tensor, Tensor], Tensor],
    feat: Tensor,
    size: Sequence[int],
    region: Sequence[int] | None,
    cell: Tensor | Sequence[float] | None,
    extent: Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
) -> Tensor:
    """Render a window of a grid, `[B, out, height, width]`, strip by strip, from a function of coordinates.

    `query` maps coord and cell, `[B, Q, 2]` each, to `[B, Q, out]`. `feat` only gives the batch size and the device,
    and the size of the map if that is not `shape`. The other arguments are those of `functional.liif_render`.
    """
    height, width, window = check_grid(size, region)
    shape = feat.shape[2:] if shape is None else shape
    part = None if extent is None else check_extent(extent, shape)
    if part is not None and cell is None:
        cell = lattice((height, width), part, shape)[::2]
    cells, (h, w) = grid_cell(feat, height, width, cell)[:, None], window[2:]
    rows, columns = grid_axes((height, width), window, part, shape, device=feat.device)
    strips = []
    for strip in rows.split(max(1, STRIP_QUERIES // max(1, w))) if h else (rows,):
        coord = torch.stack(torch.meshgrid(strip, columns, indexing="ij"), -1).reshape(1, -1, 2)
        out = query(coord.expand(len(feat), -1, 2), cells.expand(-1, coord.shape[1], 2))
        strips.append(out.transpose(1, 2).unflatten(2, (len(strip), w)))
    return torch.cat(strips, 2)


def plan_attention(coord: Tensor, shape: Sequence[int], *, wrap: bool = False) -> Corners:
    """Plan the corners of `attend_corners` once, for a stream of maps of one size.

    Args:
        coord: [B, Q, 2] float32 or float64, (row, column) in [-1, 1]; B = 1 serves any number of maps.
        shape: (H, W) of the maps.
        wrap: treat the columns as a circle: corners beyond the first or last column are those at the other end.

    Returns:
        The corners, in the order 00, 01, 10, 11.

    Raises:
        TypeError, ValueError: coord or shape cannot be used.
    """
    check_coord("coord", coord)
    return attention.plan(coord, *check_shape("shape", shape, "(H, W)"), wrap)


def attend_corners(
    feat: Tensor,
    values: Tensor,
    coord: Tensor | Corners,
    transformer: CornerTransformer,
    *,
    wrap: bool = False,
    dropout: float = 0.0,
    backend: str = "auto",
    recompute: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Let a transformer weigh the four corners of each query, and blend given values with the weights.

    The tokens are the latents of the four corners, each with an embedding of its rel; the transformer's logits go
    through a softmax over the corners.

    Args:
        feat: [B, D, H, W] floating point, the latents.
        values: [B, V, H, W] of feat's dtype, the values to blend.
        coord: [B, Q, 2] float32 or float64, (row, column) in [-1, 1]; corners as of `corner_plan`. Or the result of
            `plan_attention`.
        transformer: its parameters, of feat's dtype.
        wrap: as for `plan_attention`, which has it already if that made coord.
        dropout: probability, after each linear map of a block and after gelu; on the backends `reference` and `torch`.
        backend: as for `liif_decode`.
        recompute: as for `liif_decode`; the backends `cpu` and `triton` always compute activations again.

    Returns:
        out [B, Q, V], a convex combination of four values each, and the weights [B, Q, 4] of the corners 00, 01, 10,
        11; dtype of feat.

    Raises:
        TypeError, ValueError, RuntimeError: as `liif_decode`.

    Source: ILN (arXiv 2203.06413), the weight prediction.
    """
    check_feat(feat)
    queries: Corners | Coordinates
    if isinstance(coord, Corners):
        check_corners(feat, coord)
        queries, count, places = coord, coord.at.shape[1], coord.rel
    else:
        check_queries(feat, coord, None, cell_decode=False)
        queries, count, places = Coordinates(coord, wrap), coord.shape[1], coord
    check_attention(feat, values, transformer, dropout)
    tensors = tuple(tensor for _, tensor in transformer.tensors())
    call = describe("attend_corners", feat, count, (values, *tensors), (), Switches(False, True, False), places, None)
    widths = tuple([len(block.up_weight) for block in transformer.blocks])
    chosen: Any = backends.choose(call._replace(widths=widths, dropout=dropout, values=values.shape[1]), backend)
    return chosen.attend_corners(feat, values, queries, transformer, dropout, recompute)


def fourier_features(x: Tensor, phase: Tensor) -> Tensor:
    """Turn amplitudes, frequencies, rel and cell of corners into the waves that LTE's network reads.

    Args:
        x: [..., 2 D + 4] floating point, as `gather_corners` without unfolding returns it for maps of D amplitudes and
            D frequencies; frequency k has its row's part at 2 k and its column's at 2 k + 1.
        phase: [D/2, 2], of the cell.

    Returns:
        [..., D]: amplitude * [cos, sin](pi * (frequency . rel + phase cell)).

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape.

    Source: LTE (arXiv 2111.08918), equations 5 to 8.
    """
    check_tensor("x", x)
    check_tensor("phase", phase)
    width = x.shape[-1] - 4 if x.ndim else 0
    if width < 4 or width % 4 or phase.shape != (width // 4, 2):
        raise ValueError(
            f"x must have shape [..., 4 K + 4] and phase [K, 2], got {list(x.shape)} and {list(phase.shape)}"
        )
    return corners.waves(x, phase)


def fourier_decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor,
    phase: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    backend: str = "auto",
    recompute: bool | None = None,
) -> Tensor:
    """Decode queries of maps of amplitudes and frequencies: LTE without the image that it adds.

    The output is (weight[..., None] * mlp(fourier_features(x, phase))).sum(2), with (x, weight) of `gather_corners`
    without unfolding.

    Args:
        feat: [B, 2 D, H, W] floating point: D amplitudes, half of them for cosines, and D frequencies, of which 2 k is
            the row's part of number k and 2 k + 1 the column's. D is even.
        coord, cell: [B, Q, 2], as for `liif_decode`.
        phase: [D/2, 2], of the cell.
        weights, biases: the MLP's, as for `liif_decode`, with in_0 = D.
        backend, recompute: as for `liif_decode`.

    Returns:
        [B, Q, out], not clamped; dtype of feat, float32 under autocast.

    Raises:
        TypeError, ValueError, RuntimeError: as `liif_decode`.

    Source: LTE (arXiv 2111.08918), section 3.
    """
    weights, biases = _check_fourier(feat, phase, weights, biases)
    check_queries(feat, coord, cell, cell_decode=True)
    tensors = (phase, *weights)
    switches, queries = Switches(feat_unfold=False), coord.shape[1]
    chosen = _backend(backend, "fourier_decode", feat, queries, tensors, biases, switches, coord, cell)
    return chosen.fourier_decode(feat, coord, cell, phase, weights, biases, recompute, None)


def fourier_render(
    feat: Tensor,
    size: Sequence[int],
    phase: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    region: Sequence[int] | None = None,
    cell: Tensor | Sequence[float] | None = None,
    backend: str = "auto",
    recompute: bool | None = None,
    place: Sequence[int] | None = None,
    extent: Sequence[float] | None = None,
) -> Tensor:
    """Decode a regular grid, or a window of it, as `fourier_decode` on make_coord and make_cell of it.

    Args:
        feat, phase, weights, biases, backend, recompute: as for `fourier_decode`.
        size, region, cell: as for `liif_render`.
        place, extent: as for `liif_render`; see `latents_read` with feat_unfold=False.

    Returns:
        [B, out, height, width], not clamped; dtype of feat, float32 under autocast.

    Raises:
        TypeError, ValueError, RuntimeError: as `liif_decode`.

    Source: LTE (arXiv 2111.08918), section 3.
    """
    weights, biases = _check_fourier(feat, phase, weights, biases)
    spot, queries = _spot(feat, size, region, place, extent)
    feat = feat.contiguous(memory_format=torch.channels_last)  # as backends read it, once for all strips
    tensors = (phase, *weights)
    switches = Switches(feat_unfold=False)
    chosen = _backend(backend, "fourier_decode", feat, queries, tensors, biases, switches, place=spot)

    def query(coord: Tensor, cell: Tensor) -> Tensor:
        return chosen.fourier_decode(feat, coord, cell, phase, weights, biases, recompute, spot)

    return render_by_query(query, feat, size, region, cell, extent, feat.shape[2:] if spot is None else spot[2:])


def modulated_decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    local_ensemble: bool = True,
    cell_decode: bool = True,
    backend: str = "auto",
    recompute: bool | None = None,
) -> Tensor:
    """Decode queries of maps of modulations and features: a small network whose layers each latent scales and shifts.

    A corner's input is its latent's features, rel and cell. Layer i of the L hidden ones computes
    relu((W_i h + b_i) * (1 + scale_i) + shift_i); the last layer is linear, and the corners are blended by area.

    Args:
        feat: [B, 2 L h + C, H, W] floating point: L h scales, layer by layer, L h shifts, and C features.
        coord, cell: [B, Q, 2], as for `liif_decode`.
        weights, biases: of L + 1 layers, as for `liif_decode`; in_0 = C + 2 (+ 2 with cell_decode), and
            hidden layers h wide.
        local_ensemble, cell_decode, backend: as for `liif_decode`.
        recompute: as for `liif_decode`; the backend `cpu` always computes activations again.

    Returns:
        [B, Q, out], not clamped; dtype of feat, float32 under autocast.

    Raises:
        TypeError, ValueError, RuntimeError: as `liif_decode`.

    Source: LMF (arXiv 2404.16451), section 3.
    """
    switches = Switches(False, local_ensemble, cell_decode)
    weights, biases = _check_modulated(feat, weights, biases, switches)
    cell = check_queries(feat, coord, cell, cell_decode)
    queries = coord.shape[1]
    chosen = _backend(backend, "modulated_decode", feat, queries, weights, biases, switches, coord, cell)
    return chosen.modulated_decode(feat, coord, cell, weights, biases, switches, recompute, None)


def modulated_render(
    feat: Tensor,
    size: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    region: Sequence[int] | None = None,
    cell: Tensor | Sequence[float] | None = None,
    local_ensemble: bool = True,
    cell_decode: bool = True,
    backend: str = "auto",
    recompute: bool | None = None,
    place: Sequence[int] | None = None,
    extent: Sequence[float] | None = None,
) -> Tensor:
    """Decode a regular grid, or a window of it, as `modulated_decode` on make_coord and make_cell of it.

    Args:
        feat, weights, biases, local_ensemble, cell_decode, backend, recompute: as for `modulated_decode`.
        size, region, cell: as for `liif_render`.
        place, extent: as for `liif_render`; see `latents_read` with feat_unfold=False.

    Returns:
        [B, out, height, width], not clamped; dtype of feat, float32 under autocast.

    Raises:
        TypeError, ValueError, RuntimeError: as `liif_decode`.

    Source: LMF (arXiv 2404.16451), section 3.
    """
    switches = Switches(False, local_ensemble, cell_decode)
    weights, biases = _check_modulated(feat, weights, biases, switches)
    spot, queries = _spot(feat, size, region, place, extent)
    feat = feat.contiguous(memory_format=torch.channels_last)  # as backends read it, once for all strips
    chosen = _backend(backend, "modulated_decode", feat, queries, weights, biases, switches, place=spot)

    def query(coord: Tensor, cell: Tensor) -> Tensor:
        cells = cell if cell_decode else None
        return chosen.modulated_decode(feat, coord, cells, weights, biases, switches, recompute, spot)

    return render_by_query(query, feat, size, region, cell, extent, feat.shape[2:] if spot is None else spot[2:])


def _spot(
    feat: Tensor,
    size: Sequence[int],
    region: Sequence[int] | None,
    place: Sequence[int] | None,
    extent: Sequence[float] | None,
) -> tuple[Place | None, int]:
    """Return the checked place of a render, and its number of queries."""
    height, width, window = check_grid(size, region)
    if place is None:
        return None, window[2] * window[3]
    part = None if extent is None else check_extent(extent, check_shape("place", tuple(place)[2:], "(height, width)"))
    return check_place(place, feat, (height, width), window, False, part), window[2] * window[3]


def _check_fourier(
    feat: Tensor, phase: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    check_feat(feat)
    check_tensor("phase", phase)
    channels = feat.shape[1]
    if channels % 4:
        raise ValueError(f"feat must have shape [B, 2 D, H, W] with an even D, got {list(feat.shape)}")
    if phase.shape != (channels // 4, 2):
        raise ValueError(f"phase must have shape [{channels // 4}, 2] (D/2 for feat), got {list(phase.shape)}")
    if phase.device != feat.device:
        raise ValueError(f"phase must be on the device of feat, {feat.device}, got {phase.device}")
    weights, biases = tuple(weights), tuple(biases)
    check_chain("feat", feat, channels // 2, f"D = {channels // 2}, half the channels of feat", weights, biases)
    return weights, biases


def _check_modulated(
    feat: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], switches: Switches
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    check_feat(feat)
    weights, biases = tuple(weights), tuple(biases)
    if len(weights) < 2:
        raise ValueError(f"weights must be those of a hidden layer at least and of the last one, got {len(weights)}")
    places = 4 if switches.cell_decode else 2
    check_tensor("weights[0]", weights[0])
    features = weights[0].shape[-1] - places
    check_chain("feat", feat, features + places, f"C + {places}", weights, biases)
    width = weights[0].shape[0]
    if any(weight.shape[0] != width for weight in weights[:-1]):
        widths = [weight.shape[0] for weight in weights[:-1]]
        raise ValueError(f"weights must have hidden layers of one width, got {widths}")
    expected = 2 * (len(weights) - 1) * width + features
    if features < 0 or feat.shape[1] != expected:
        raise ValueError(
            f"feat must have 2 L h + C = {expected} channels, L = {len(weights) - 1}, h = {width}, C = {features}, "
            f"got {feat.shape[1]}"
        )
    return weights, biases


def _backend(
    name: str,
    op: str,
    feat: Tensor,
    queries: int,
    tensors: tuple[Tensor, ...],
    biases: tuple[Tensor, ...],
    switches: Switches,
    coord: Tensor | None = None,
    cell: Tensor | None = None,
    place: Place | None = None,
) -> Any:
    """Return the backend to run a call; `tensors` are the network's weights, and before them other parameters."""
    call = describe(op, feat, queries, tensors, biases, switches, coord, cell)
    return backends.choose(call._replace(widths=call.widths[-len(biases) :], place=place), name)
