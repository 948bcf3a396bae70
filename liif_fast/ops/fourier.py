"""Define `fourier_decode`: LTE's decoder without its base, gather, waves, hidden layers and blend in one pass.

`p` [B, h, w, 2 D] holds a latent's D amplitudes and D frequencies in a row; `place` is (top, left, map_height,
map_width), the part of a map that it is. Amplitudes, frequencies and `phase` have the dtype in which products are
summed, weights and biases that of the products. Hidden activations of the first queries are saved for the backward
pass, in a tensor of the shape `saved`, as in `decode`; those of the others, and all waves, are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast.call import Kernels, Place, result_dtype, trains
from liif_fast.coord import place_gradients
from liif_fast.ops import define, in_turn, only, refuse_second_order, to_inputs, wide_in_turn


def _fake(
    p: Tensor,
    coord: Tensor,
    cell: Tensor,
    phase: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    place: Sequence[int],
    saved: Sequence[int],
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    return p.new_empty(coord.shape[0], coord.shape[1], weights[-1].shape[0]), weights[0].new_empty(saved)


def _backward_fake(
    grad: Tensor,
    p: Tensor,
    coord: Tensor,
    cell: Tensor,
    phase: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    wanted: Sequence[bool],
    backend: str | None,
) -> list[Tensor]:
    at, of_phase = p.new_empty(*coord.shape[:2], 4, 5), phase.new_empty(2, phase.shape[0])
    return only(wanted, [p.new_empty(p.shape), of_phase, *wide_in_turn(weights, biases), at])


_fourier = define(
    "fourier_decode",
    "(Tensor p, Tensor coord, Tensor cell, Tensor phase, Tensor[] weights, Tensor[] biases, SymInt[] place,"
    " SymInt[] saved, str? backend) -> (Tensor, Tensor)",
    _fake,
)
# Return the gradients of p, of the phase, [2, D/2], of the layers' weights and biases in turn, and of rel, cell and
# weight at each corner, [B, Q, 4, 5].
_fourier_backward = define(
    "fourier_decode_backward",
    "(Tensor grad, Tensor p, Tensor coord, Tensor cell, Tensor phase, Tensor[] weights, Tensor[] biases, Tensor saved,"
    " bool[] wanted, str? backend) -> Tensor[]",
    _backward_fake,
)


def _parts(
    feat: Tensor, phase: Tensor, params: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Return p, the phase, weights and biases as the operator takes them."""
    sums = torch.promote_types(dtype, torch.float32)
    layers = len(params) // 2
    narrow = [t.to(dtype) for t in params]
    p = feat.permute(0, 2, 3, 1).to(sums).contiguous()
    return p, phase.to(sums), narrow[:layers], narrow[layers:]


class _Fourier(torch.autograd.Function):
    """Decode on the map, without keeping a copy of it in rows."""

    @staticmethod
    def forward(
        ctx: Any,
        dtype: torch.dtype,
        place: Place,
        saved: Sequence[int],
        backend: str | None,
        coord: Tensor,
        cell: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        feat, phase, *params = inputs
        p, *rest = _parts(feat, phase, params, dtype)
        ctx.options = dtype, backend
        out, kept = _fourier(p, coord, cell, *rest, place, saved, backend)
        ctx.save_for_backward(coord, cell, kept, *inputs)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        dtype, backend = ctx.options
        coord, cell, kept, *inputs = ctx.saved_tensors
        feat, phase, *params = inputs
        p, *rest = _parts(feat, phase, params, dtype)
        places, wanted = any(ctx.needs_input_grad[4:6]), ctx.needs_input_grad[6:]
        flags = [*wanted[:2], *in_turn(wanted[2:]), places]
        p_grad, phase_grad, *layers, at = _fourier_backward(
            grad.to(p.dtype), p, coord, cell, *rest, kept, flags, backend
        )
        coord_grad = cell_grad = None
        if places:
            size = feat.shape[2], feat.shape[3], True
            coord_grad, cell_grad = place_gradients(at[..., :-1], at[..., -1], coord, ctx.needs_input_grad[4:6], *size)
        feat_grad = p_grad.permute(0, 3, 1, 2) if wanted[0] else None
        grads = [feat_grad, phase_grad.t(), *layers[0::2], *layers[1::2]]
        return *(None,) * 4, coord_grad, cell_grad, *to_inputs(grads, inputs, wanted)


def fourier_decode(
    kernels: Kernels,
    feat: Tensor,
    coord: Tensor,
    cell: Tensor,
    phase: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    recompute: bool | None,
    place: Place | None,
) -> Tensor:
    """Return the output [B, Q, out] of queries of maps feat [B, 2 D, H, W] of amplitudes and frequencies."""
    spot, params = place or (0, 0, feat.shape[2], feat.shape[3]), (*weights, *biases)
    train, dtype, backend = trains(feat, coord, cell, phase, *params), kernels.dtype(feat), kernels.backend
    saved = kernels.saves(weights, 0, coord.shape[0] * coord.shape[1], 4, dtype, train, recompute)
    if train:
        out = _Fourier.apply(dtype, spot, saved, backend, coord, cell, feat, phase, *params)
    else:
        p, *rest = _parts(feat, phase, params, dtype)
        out, _ = _fourier(p, coord, cell, *rest, spot, saved, backend)
    return out.to(result_dtype(feat))
