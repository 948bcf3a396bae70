"""Define `modulated_decode`: LM-LIIF's decoder behind its modulations, gather, modulated layers and blend in one pass.

`p` [B, h, w, 2 L K + C] holds, of each latent in a row, the scales and the shifts of L layers of K neurons, and C
features; `place` is (top, left, map_height, map_width), the part of a map that it is. `p` has the dtype in which
products are summed, weights and biases that of the products. Without a cell the network reads rel alone behind the
features. Activations are always computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liif_fast.call import Kernels, Place, Switches, result_dtype, trains
from liif_fast.coord import place_gradients
from liif_fast.ops import define, in_turn, only, refuse_second_order, to_inputs, wide_in_turn


def _fake(
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ensemble: bool,
    place: Sequence[int],
    backend: str | None,
) -> Tensor:
    return p.new_empty(coord.shape[0], coord.shape[1], weights[-1].shape[0])


def _backward_fake(
    grad: Tensor,
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ensemble: bool,
    wanted: Sequence[bool],
    backend: str | None,
) -> list[Tensor]:
    at = p.new_empty(*coord.shape[:2], 4 if ensemble else 1, 3 if cell is None else 5)
    return only(wanted, [p.new_empty(p.shape), *wide_in_turn(weights, biases), at])


_modulated = define(
    "modulated_decode",
    "(Tensor p, Tensor coord, Tensor? cell, Tensor[] weights, Tensor[] biases, bool ensemble, SymInt[] place,"
    " str? backend) -> Tensor",
    _fake,
)
# Return the gradients of p, of the layers' weights and biases in turn, and of rel, cell and weight at each corner,
# [B, Q, K, 5] or, without a cell, [B, Q, K, 3].
_modulated_backward = define(
    "modulated_decode_backward",
    "(Tensor grad, Tensor p, Tensor coord, Tensor? cell, Tensor[] weights, Tensor[] biases, bool ensemble,"
    " bool[] wanted, str? backend) -> Tensor[]",
    _backward_fake,
)


def _parts(feat: Tensor, params: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return p, weights and biases as the operator takes them."""
    layers = len(params) // 2
    narrow = [t.to(dtype) for t in params]
    p = feat.permute(0, 2, 3, 1).to(torch.promote_types(dtype, torch.float32)).contiguous()
    return p, narrow[:layers], narrow[layers:]


class _Modulated(torch.autograd.Function):
    """Decode on the map, without keeping a copy of it in rows."""

    @staticmethod
    def forward(
        ctx: Any,
        dtype: torch.dtype,
        ensemble: bool,
        place: Place,
        backend: str | None,
        coord: Tensor,
        cell: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.options = dtype, ensemble, backend
        ctx.save_for_backward(coord, cell, *inputs)
        p, *layers = _parts(inputs[0], inputs[1:], dtype)
        return _modulated(p, coord, cell, *layers, ensemble, place, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        dtype, ensemble, backend = ctx.options
        coord, cell, *inputs = ctx.saved_tensors
        p, *layers = _parts(inputs[0], inputs[1:], dtype)
        places, wanted = any(ctx.needs_input_grad[4:6]), ctx.needs_input_grad[6:]
        flags = [wanted[0], *in_turn(wanted[1:]), places]
        p_grad, *sums, at = _modulated_backward(grad.to(p.dtype), p, coord, cell, *layers, ensemble, flags, backend)
        coord_grad = cell_grad = None
        if places:
            size = p.shape[1], p.shape[2], ensemble
            coord_grad, cell_grad = place_gradients(at[..., :-1], at[..., -1], coord, ctx.needs_input_grad[4:6], *size)
        feat_grad = p_grad.permute(0, 3, 1, 2) if wanted[0] else None
        grads = [feat_grad, *sums[0::2], *sums[1::2]]
        return *(None,) * 4, coord_grad, cell_grad, *to_inputs(grads, inputs, wanted)


def modulated_decode(
    kernels: Kernels,
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
    place: Place | None,
) -> Tensor:
    """Return the output [B, Q, out] of queries of maps feat [B, 2 L K + C, H, W] of modulations and features."""
    spot, params = place or (0, 0, feat.shape[2], feat.shape[3]), (*weights, *biases)
    cell = cell if switches.cell_decode else None
    dtype, backend = kernels.dtype(feat), kernels.backend
    if trains(feat, coord, cell, *params):
        out = _Modulated.apply(dtype, switches.local_ensemble, spot, backend, coord, cell, feat, *params)
    else:
        p, *layers = _parts(feat, params, dtype)
        out = _modulated(p, coord, cell, *layers, switches.local_ensemble, spot, backend)
    return out.to(result_dtype(feat))
