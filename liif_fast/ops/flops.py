"""Count the floating-point operations of our operators, for `torch.utils.flop_counter.FlopCounterMode`.

The formulas count the factorised form as the counter counts PyTorch's own operators: two for each multiply-add of a
matrix product or convolution, and nothing else. A backward pass that computes rows again counts them again, as
recomputation in PyTorch does. It counts the products of the gradients that are wanted, and those on the way to them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch

import liif_fast.ops.conv3x3  # noqa: F401  # it defines the operator
from liif_fast.ops.sm90 import HIDDEN, PRODUCT_BYTES, TABLE_BYTES

Shape = Sequence[int]


def _layers(weights: Sequence[Shape]) -> int:
    """Return the number of operations of one row in all layers."""
    return sum(2 * prod(weight) for weight in weights)


def _rows(queries: int, ensemble: bool) -> int:
    return queries * (4 if ensemble else 1)


def _shapes(weights: Sequence[Shape]) -> Sequence[Shape]:
    """Return the shapes of an MLP's weights behind P, even if the backend `cuda` has packed them."""
    if len(weights[0]) > 1:
        return weights
    products = (weights[0][0] - TABLE_BYTES) // PRODUCT_BYTES
    return [*[(HIDDEN, HIDDEN)] * (products + 1), weights[1]]


def _tail(queries: int, cell: Shape | None, weights: Sequence[Shape], ensemble: bool) -> tuple[int, int]:
    """Return the numbers of operations behind P: in the hidden layers, and in the blend with the last layer."""
    rows, weights = _rows(queries, ensemble), _shapes(weights)
    affine = 2 * (2 if cell is None else 4) * weights[0][0]
    blend = 2 * rows * weights[-2 if len(weights) > 1 else -1][0] if ensemble else 0
    return rows * (affine + _layers(weights[1:-1])), blend + (queries * _layers(weights[1:][-1:]))


def _decode(p: Shape, coord: Shape, cell: Shape | None, weights: Any, biases: Any, ensemble: bool, *_: Any) -> int:
    return sum(_tail(prod(coord[:2]), cell, weights, ensemble))


def _render(p: Shape, cell: Shape | None, weights: Any, biases: Any, ensemble: bool, grid: Shape, *_: Any) -> int:
    return sum(_tail(p[0] * prod(grid[8:]), cell, weights, ensemble))


def _decode_direct(
    feat: Shape, coord: Shape, cell: Shape | None, weights: Any, biases: Any, unfold: bool, ensemble: bool
) -> int:
    queries, latent = prod(coord[:2]), feat[1] * (9 if unfold else 1)
    return 2 * _rows(queries, ensemble) * latent * weights[0][0] + sum(_tail(queries, cell, weights, ensemble))


def _backward(layers: Sequence[int], wanted: Sequence[bool], first: bool) -> int:
    """Return the operations of the gradients of layers that take so many forward.

    `wanted` is of their weight, bias, weight, ..., and `first` of the first one's input.
    """
    return sum((wanted[2 * place] + (first or any(wanted[: 2 * place]))) * layer for place, layer in enumerate(layers))


def _tail_backward(
    queries: int,
    cell: Shape | None,
    weights: Sequence[Shape],
    saved: Shape,
    ensemble: bool,
    wanted: Sequence[bool],
    places: bool,
) -> int:
    of_p, of_affine, *of_layers = wanted
    rows, forward = _rows(queries, ensemble), sum(_tail(queries, cell, weights, ensemble))
    layers = [
        *(rows * _layers([weight]) for weight in weights[1:-1]),
        *(queries * _layers([w]) for w in weights[1:][-1:]),
    ]
    affine = 2 * (2 if cell is None else 4) * weights[0][0] * rows
    blend = 2 * rows * weights[-2 if len(weights) > 1 else -1][0] if ensemble else 0
    blended = (of_p or of_affine or places or any(of_layers[:-2])) + places
    again = forward * max(rows - saved[-2], 0) // max(rows, 1)
    back = _backward(layers, of_layers, of_p or of_affine or places)
    return back + affine * (of_affine + places) + blend * blended + again


def _decode_backward(
    grad: Shape,
    p: Shape,
    coord: Shape,
    cell: Shape | None,
    weights: Any,
    biases: Any,
    saved: Shape,
    ensemble: bool,
    wanted: Sequence[bool],
    *_: Any,
) -> int:
    return _tail_backward(prod(coord[:2]), cell, weights, saved, ensemble, wanted[:-1], wanted[-1])


def _render_backward(
    grad: Shape,
    p: Shape,
    cell: Shape | None,
    weights: Any,
    biases: Any,
    saved: Shape,
    ensemble: bool,
    grid: Shape,
    wanted: Sequence[bool],
    *_: Any,
) -> int:
    return _tail_backward(p[0] * prod(grid[8:]), cell, weights, saved, ensemble, wanted, False)


def _project(feat: Shape, weight: Shape, bias: Shape, unfold: bool, window: Shape, backend: str | None) -> int:
    return 2 * feat[0] * prod(window[2:]) * feat[1] * (9 if unfold else 1) * weight[0]


def _project_backward(
    grad: Shape,
    feat: Shape,
    weight: Shape,
    unfold: bool,
    top: int,
    left: int,
    wanted: Sequence[bool],
    backend: str | None,
) -> int:
    return 2 * sum(wanted[:2]) * prod(grad) * feat[1] * (9 if unfold else 1)


def _fused_mlp(x: Shape, weights: Any, biases: Any, saved: Shape, backend: str | None) -> int:
    return x[0] * _layers(weights)


def _fused_mlp_backward(
    grad: Shape, x: Shape, weights: Any, biases: Any, saved: Shape, wanted: Sequence[bool], *_: Any
) -> int:
    layers = [x[0] * _layers([weight]) for weight in weights]
    return _backward(layers, wanted[1:], wanted[0]) + max(x[0] - saved[-2], 0) * _layers(weights[:-1])


def _attend(
    table: Shape, by_rel: Shape, layers: Sequence[Shape], queries: Sequence[Shape], shape: Shape, *_: Any
) -> int:
    return sum(_attend_parts(by_rel, layers, 4 * shape[0] * queries[0][1]))


def _attend_backward(
    grad: Shape,
    grad_weight: Shape,
    table: Shape,
    by_rel: Shape,
    layers: Sequence[Shape],
    queries: Sequence[Shape],
    shape: Shape,
    wrap: bool,
    heads: int,
    wanted: Sequence[bool],
    *_: Any,
) -> int:
    """Activations are computed again, and rel has no gradient."""
    rows, (of_rel, *of_layers) = 4 * shape[0] * queries[0][1], wanted[1:]
    moved, products = _attend_parts(by_rel, layers, rows)
    summed = _attend_parts(by_rel, [layer for layer, want in zip(layers, of_layers, strict=True) if want], rows)[1]
    return (1 + of_rel) * moved + 2 * products + summed


def _attend_parts(by_rel: Shape, layers: Sequence[Shape], rows: int) -> tuple[int, int]:
    """Return the operations of the part added for rel, and of the layers, whose last column is a bias."""
    return 4 * rows * by_rel[1], rows * sum(2 * out * (ins - 1) for out, ins in layers)


def _fourier(p: Shape, coord: Shape, cell: Shape, phase: Shape, weights: Sequence[Shape], *_: Any) -> int:
    rows, queries = 4 * prod(coord[:2]), prod(coord[:2])
    return 4 * (rows + queries) * phase[0] + rows * _layers(weights[:-1]) + queries * _layers(weights[-1:])


def _fourier_backward(
    grad: Shape,
    p: Shape,
    coord: Shape,
    cell: Shape,
    phase: Shape,
    weights: Sequence[Shape],
    biases: Any,
    saved: Shape,
    wanted: Sequence[bool],
    backend: str | None,
) -> int:
    rows, first = 4 * prod(coord[:2]), wanted[0] or wanted[1] or wanted[-1]
    lost = max(rows - saved[-2], 0)
    # The C++ kernels compute all angles. Triton's: those of rows computed again, all for gradients of inputs.
    angles = rows if backend is None else lost + rows * (first or wanted[2])
    again = lost * _layers(weights[:-1]) + 4 * angles * phase[0]
    layers = [rows * _layers([weight]) for weight in weights]
    return 8 * rows * phase[0] * first + _backward(layers, wanted[2:-1], first) + again


def _modulated(
    p: Shape, coord: Shape, cell: Shape | None, weights: Sequence[Shape], biases: Any, ensemble: bool, *_: Any
) -> int:
    queries = prod(coord[:2])
    blend = 2 * _rows(queries, ensemble) * weights[-1][1] if ensemble else 0
    return _rows(queries, ensemble) * _layers(weights[:-1]) + blend + queries * _layers(weights[-1:])


def _modulated_backward(
    grad: Shape,
    p: Shape,
    coord: Shape,
    cell: Shape | None,
    weights: Sequence[Shape],
    biases: Any,
    ensemble: bool,
    wanted: Sequence[bool],
    *_: Any,
) -> int:
    rows = _rows(prod(coord[:2]), ensemble)
    layers = [rows * _layers([weight]) for weight in weights]
    return sum(layers[:-1]) + _backward(layers, wanted[1:-1], wanted[0] or wanted[-1])


def _convolve(feat: Shape, kernel: Shape, bias: Shape) -> int:
    return 2 * feat[0] * prod(feat[2:]) * prod(kernel)


def _convolve_backward(grad: Shape, feat: Shape, kernel: Shape, wanted: Sequence[bool]) -> int:
    return sum(wanted[:2]) * _convolve(feat, kernel, ())


def _conv3x3(x: Shape, weight: Shape, *_: Any) -> int:
    return _convolve(x, weight, ())


def _conv3x3_backward(
    grad: Shape, x: Shape, weight: Shape, addend: Shape, wrap: bool, wanted: Sequence[bool], relu: bool
) -> int:
    return sum(wanted[:2]) * _convolve(x, weight, ())


FORMULAS: dict[str, Callable[..., int]] = {
    "decode": _decode,
    "decode_direct": _decode_direct,
    "render": _render,
    "decode_backward": _decode_backward,
    "render_backward": _render_backward,
    "project": _project,
    "project_backward": _project_backward,
    "fused_mlp": _fused_mlp,
    "fused_mlp_backward": _fused_mlp_backward,
    "attend_corners": _attend,
    "attend_corners_backward": _attend_backward,
    "fourier_decode": _fourier,
    "fourier_decode_backward": _fourier_backward,
    "modulated_decode": _modulated,
    "modulated_decode_backward": _modulated_backward,
    "convolve": _convolve,
    "convolve_backward": _convolve_backward,
    "conv3x3": _conv3x3,
    "conv3x3_backward": _conv3x3_backward,
}


def register() -> None:
    """Register the formulas with the counter, if it has been imported (importing it would import Triton)."""
    counter: Any = sys.modules.get("torch.utils.flop_counter")
    if counter is None:
        return
    for name, formula in FORMULAS.items():
        packet = getattr(torch.ops.liif_fast, name)
        if packet not in counter.flop_registry:
            counter.register_flop_formula(packet)(partial(_without_output, formula))


def _without_output(formula: Callable[..., int], *args: Any, out_shape: Any) -> int:
    return formula(*args)
