"""Functions for LIIF's relatives, which read the same corners in other ways; `liif_fast.functional` provides them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast import backends
from liif_fast.attention import Coordinates, Corners, CornerTransformer
from liif_fast.backends import attention, fourier
from liif_fast.call import Place, Switches, describe
from liif_fast.checks import (
    check_attention,
    check_chain,
    check_coord,
    check_corners,
    check_feat,
    check_grid,
    check_place,
    check_queries,
    check_shape,
    check_tensor,
    grid_cell,
)
from liif_fast.coord import centres

STRIP_QUERIES = 1 << 16  # queries of one image per strip; bounds memory, does not change the result


def render_by_query(
    query: Callable[[Tensor, Tensor], Tensor],
    feat: Tensor,
    size: Sequence[int],
    region: Sequence[int] | None,
    cell: Tensor | Sequence[float] | None,
) -> Tensor:
    """Render a window of a grid, `[B, out, height, width]`, strip by strip, from a function of coordinates.

    `query` maps coord and cell, `[B, Q, 2]` each, to `[B, Q, out]`. `feat` only gives the batch size and the device.
    The other arguments are those of `functional.liif_render`.
    """
    height, width, (top, left, h, w) = check_grid(size, region)
    cells = grid_cell(feat, height, width, cell)[:, None]
    rows = centres(height, device=feat.device)[top : top + h]
    columns = centres(width, device=feat.device)[left : left + w]
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
        values: [B, V, H, W] of feat's dtype, what is blended.
        coord: [B, Q, 2] float32 or float64, (row, column) in [-1, 1]; corners as of `corner_plan`. Or the result of
            `plan_attention`.
        transformer: its parameters, of feat's dtype.
        wrap: as for `plan_attention`, which has it already if that made coord.
        dropout: probability, after each linear map of a block and after gelu; on the backends `reference` and `torch`.
        backend: as for `liif_decode`.
        recompute: as for `liif_decode`; the backend `cpu` always computes activations again.

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
    chosen: Any = backends.choose(call._replace(widths=(), dropout=dropout), backend)
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
    return fourier.features(x, phase)


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
    chosen = _fourier_backend(feat, coord, cell, phase, weights, biases, coord.shape[1], backend, None)
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
) -> Tensor:
    """Decode a regular grid, or a window of it, as `fourier_decode` on make_coord and make_cell of it.

    Args:
        feat, phase, weights, biases, backend, recompute: as for `fourier_decode`.
        size, region, cell: as for `liif_render`.
        place: as for `liif_render`; see `latents_read` with feat_unfold=False.

    Returns:
        [B, out, height, width], not clamped; dtype of feat, float32 under autocast.

    Raises:
        TypeError, ValueError, RuntimeError: as `liif_decode`.

    Source: LTE (arXiv 2111.08918), section 3.
    """
    weights, biases = _check_fourier(feat, phase, weights, biases)
    height, width, window = check_grid(size, region)
    spot = None if place is None else check_place(place, feat, (height, width), window, False)
    queries = window[2] * window[3]
    chosen = _fourier_backend(feat, None, None, phase, weights, biases, queries, backend, spot)

    def query(coord: Tensor, cell: Tensor) -> Tensor:
        return chosen.fourier_decode(feat, coord, cell, phase, weights, biases, recompute, spot)

    return render_by_query(query, feat, size, region, cell)


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


def _fourier_backend(
    feat: Tensor,
    coord: Tensor | None,
    cell: Tensor | None,
    phase: Tensor,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor, ...],
    queries: int,
    backend: str,
    place: Place | None,
) -> Any:
    call = describe(
        "fourier_decode", feat, queries, (phase, *weights), biases, Switches(False, True, True), coord, cell
    )
    return backends.choose(call._replace(widths=call.widths[1:], place=place), backend)
