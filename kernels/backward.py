"""Compute the gradient of the fused network: one kernel for the chain through the layers, matrix products for weights.

Rows are processed in chunks. The activations of a chunk are saved ones or recomputed. Then `chain_kernel` goes from the
output's gradient down to the gradient before the first ReLU, and writes the gradient of every layer. Finally one matrix
product per layer gives its weight's gradient. docs/triton.md derives the formulas.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import host
from .host import FEW, dot
from .network import backward_layers, columns, keep, layer_of, masked
from .plan import corners, located

CHUNK_BYTES = 512 << 20  # size of a chunk of rows: activations, gradients, and what `receive` allocates
SIZES = ["first", "limit", "queries", "height", "width", "p_top", "p_left", "p_height", "p_width",
         "coord_image", "coord_query", "coord_axis", "cell_image", "cell_query", "cell_axis",
         "saved_rows", "grads_rows"]  # fmt: skip


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["coord", "cell", "grad"])
def chain_kernel(
    grad, coord, cell, weights, last, saved, grads, shares, parts, latents,
    first, limit, queries,
    coord_image, coord_query, coord_axis, cell_image, cell_query, cell_axis,
    height, row_step, row_origin, row_minus, row_plus,
    width, column_step, column_origin, column_minus, column_plus,
    p_top, p_left, p_height, p_width, saved_rows, grads_rows,
    OUT: tl.constexpr, OUT_PADDED: tl.constexpr,
    LAYERS: tl.constexpr, LOWEST: tl.constexpr, KEEP: tl.constexpr, WIDEST: tl.constexpr,
    PLAN: tl.constexpr, ENSEMBLE: tl.constexpr, CELL: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute queries first..limit of [B * queries]; all arguments except coord and cell are indexed from first.

    grad float32 [count, OUT]; last [OUT_PADDED, padded] -> grads [LAYERS + 1, rows, WIDEST], shares (grad times the
    corner's weight) [rows, OUT_PADDED], parts (rel and cell) float32 [rows, PARTS], latents (rows of P) int64 [rows].
    Layers LOWEST to LAYERS of grads are computed; without KEEP only LOWEST is written.
    Without PLAN the rows are those of an MLP: no coordinates, weights of 1, and neither shares nor parts nor latents.
    """
    CORNERS: tl.constexpr = 4 if ENSEMBLE else 1
    QUERIES: tl.constexpr = ROWS // CORNERS
    PARTS: tl.constexpr = 4 if CELL else 2
    PADDED: tl.constexpr = BLOCK * BLOCKS
    start = tl.program_id(0).to(tl.int64) * QUERIES
    tile_row = tl.arange(0, ROWS)
    counted = start + tile_row // CORNERS
    query = first + counted
    valid = query < limit
    row = start * CORNERS + tile_row
    if PLAN:
        image, inside = located(first + start, tile_row // CORNERS, queries)
        at = coord + image * coord_image + inside * coord_query
        coord_y = tl.load(at, mask=valid, other=0.0)
        coord_x = tl.load(at + coord_axis, mask=valid, other=0.0)
        y, x, rel_y, rel_x, weight = corners(
            coord_y, coord_x, tile_row % CORNERS,
            height, row_step, row_origin, row_minus, row_plus,
            width, column_step, column_origin, column_minus, column_plus,
            ENSEMBLE,
        )  # fmt: skip
        tl.store(latents + row, (image * p_height + (y - p_top)) * p_width + (x - p_left), mask=valid)
        tl.store(parts + row * PARTS, rel_y, mask=valid)
        tl.store(parts + row * PARTS + 1, rel_x, mask=valid)
        if CELL:
            at = cell + image * cell_image + inside * cell_query
            cell_y = tl.load(at, mask=valid, other=0.0) * height.to(tl.float32)
            cell_x = tl.load(at + cell_axis, mask=valid, other=0.0) * width.to(tl.float32)
            tl.store(parts + row * PARTS + 2, cell_y, mask=valid)
            tl.store(parts + row * PARTS + 3, cell_x, mask=valid)
    else:
        weight = tl.full((ROWS,), 1.0, tl.float32)
    out = tl.arange(0, OUT_PADDED)
    mask = valid[:, None] & (out < OUT)[None, :]
    g = tl.load(grad + counted[:, None] * OUT + out[None, :], mask=mask, other=0.0) * weight[:, None]
    g = g.to(saved.dtype.element_ty)
    if PLAN:
        tl.store(shares + row[:, None] * OUT_PADDED + out[None, :], g, mask=valid[:, None])
    if LOWEST > LAYERS:
        return
    few = ()
    if OUT <= FEW:
        for o in tl.static_range(OUT):
            few = few + (tl.load(grad + counted * OUT + o, mask=valid, other=0.0) * weight,)
    count = tl.minimum(limit - first - start, QUERIES).to(tl.int32) * CORNERS
    saved += start * (CORNERS * WIDEST)
    grads += start * (CORNERS * WIDEST)
    dz = ()
    for k in tl.static_range(BLOCKS):
        column = columns(k, BLOCK)
        dh = tl.zeros((ROWS, BLOCK), tl.float32)
        if OUT <= FEW:
            for o in tl.static_range(OUT):
                dh = tl.fma(few[o][:, None], tl.load(last + o * PADDED + column).to(tl.float32)[None, :], dh)
        else:
            dh = dot(g, tl.load(last + out[:, None] * PADDED + column[None, :]), dh, PRECISION)
        value = masked(dh, layer_of(saved, LAYERS, saved_rows, WIDEST), count, column, ROWS, WIDEST)
        if KEEP or LOWEST == LAYERS:
            keep(layer_of(grads, LAYERS, grads_rows, WIDEST), count, column, value, ROWS, WIDEST)
        dz = dz + (value,)
    backward_layers(
        dz, weights, saved, saved_rows, grads, grads_rows, count,
        LAYERS, LOWEST, KEEP, WIDEST, ROWS, BLOCK, BLOCKS, PRECISION,
    )  # fmt: skip


class Plan(NamedTuple):
    """Hold P, a window of a map, and the queries on it."""

    p: Tensor  # [B, h, w, hidden], with waves [B, h, w, 4 K]
    coord: Tensor
    cell: Tensor | None
    shape: tuple[int, int]  # of the map
    origin: tuple[int, int]  # of P in it
    corners: int
    waves: bool = False  # rel and cell go into waves, not into a first layer

    @property
    def terms(self) -> int:
        """Return the number of values of rel and the cell."""
        return 2 if self.cell is None else 4

    @property
    def affine(self) -> int:
        """Return how many columns of the first layer are added at the query."""
        return 0 if self.waves else self.terms


def steps(bounds: Sequence[int], size: int) -> Iterator[slice]:
    """Yield runs of at most `size` from the first bound to the last; runs do not cross a bound."""
    for begin, end in itertools.pairwise(bounds):
        for start in range(begin, end, size):
            yield slice(start, min(start + size, end))


def chunk_rows(saved: Tensor, more: int = 0) -> int:
    """Return the number of rows of a chunk, a power of two, so that views of chunks stay aligned.

    A row takes its activations ([layers, _, widest] as in `saved`), their gradients, and `more` bytes.
    """
    layers, _, widest = saved.shape
    return 1 << (CHUNK_BYTES // (2 * layers * widest * saved.dtype.itemsize + more)).bit_length() - 1


class Totals:
    """Sum the wanted gradients of an MLP's parameters over chunks, in float32.

    The first is that of the first layer's last columns, or of its bias for an MLP. Then follow weight, bias, ... of the
    later layers. An unwanted one is empty.
    """

    def __init__(self, weights: Sequence[Tensor], affine: int, wanted: Sequence[bool]) -> None:
        self.shapes, self.like, self.affine = [weight.shape for weight in weights], weights[0], affine
        self.wanted, self.sums = wanted, list[Tensor]()

    def levels(self) -> set[int]:
        """Return the layers before the last whose output's gradient is read."""
        layers = {(place + 1) // 2 for place, want in enumerate(self.wanted) if want}
        return layers - {len(self.shapes) - 1}

    def result(self) -> list[Tensor]:
        """Return the sums, which are zeros without a chunk."""
        if self.sums:
            return self.sums
        zeros = functools.partial(torch.zeros, dtype=torch.float32, device=self.like.device)
        (hidden, _), *later = self.shapes
        shapes = [(self.affine, hidden) if self.affine else (hidden,)]
        shapes += [shape for outs, ins in later for shape in ((outs, ins), (outs,))]
        return [zeros(shape if want else 0) for shape, want in zip(shapes, self.wanted, strict=True)]

    def add(self, activations: Tensor, grads: Tensor, grad: Tensor, shares: Tensor, parts: Tensor) -> None:
        """Add a chunk: activations and grads [layers, rows, widest], grad [queries, out], shares of it [rows, out]."""
        (hidden, _), *later = self.shapes
        total = functools.partial(torch.sum, dim=0, dtype=torch.float32)
        first = grads[0, :, :hidden]
        if self.affine:  # P includes the bias, so P's gradient includes its gradient
            terms = [lambda: host.product(parts.t().to(first.dtype), first)]
        else:
            terms = [lambda: total(first)]
        for layer, (outs, ins) in enumerate(later):
            last = layer == len(later) - 1
            dz = shares if last else grads[layer + 1, :, :outs]
            terms.append(functools.partial(host.product, dz.t(), activations[layer, :, :ins]))
            terms.append(functools.partial(total, grad if last else dz))
        found = [term() if want else grad.new_empty(0) for term, want in zip(terms, self.wanted, strict=True)]
        for sums, more, want in zip(self.sums, found, self.wanted, strict=False):
            if want:
                sums += more
        self.sums = self.sums or found


def place_gradients(
    activations: Tensor, grads: Tensor, grad: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], to: Tensor
) -> None:
    """Write a chunk's gradients of rel, of the cell and of the corners' weights to [rows, affine + 1]."""
    (hidden, first), affine = weights[0].shape, to.shape[1] - 1
    to[:, :affine] = host.product(grads[0, :, :hidden], weights[0][:, first - affine :])
    out = host.product(activations[-1, :, : weights[-1].shape[1]], weights[-1].t()) + biases[-1]
    to[:, affine] = (out.view(len(grad), -1, out.shape[1]) * grad.unsqueeze(1)).sum(-1).flatten()


def backward(
    recompute: Callable[[slice, Tensor], None],
    receive: Callable[[slice, Tensor, Tensor, Tensor], None] | None,
    grad: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Tensor,
    wanted: Sequence[bool],
    plan: Plan | None = None,
    places: Tensor | None = None,
    row_bytes: int = 0,
) -> list[Tensor]:
    """Return the gradients of the parameters (`Totals`), and hand those of the first layer's rows to `receive`.

    Args:
        recompute: computes the activations of a run of queries (for an MLP, of rows) into [layers, rows, widest].
        receive: gets a run, the gradient of its rows before the first ReLU [rows, width], their latents [rows], and
            their rel and cell, float32 [rows, terms]. None if no gradient at or before the first layer is wanted.
        grad: float32 [queries, out], contiguous.
        saved: [layers, rows, widest], the activations of the first queries.
        wanted: for each returned gradient, whether to compute it; the others are empty.
        plan: None for an MLP.
        places: float32 [rows, affine + 1], receives the gradients of the values that multiply the first layer's last
            columns, and of the weight.
        row_bytes: bytes that `receive` allocates for a row.
    """
    corners, affine, terms = (plan.corners, plan.affine, plan.terms) if plan else (1, 0, 0)
    layers, _, widest = saved.shape
    form = host.form("backward", widest, saved)
    network = host.network(weights, biases, form, 0, transposed=True)
    totals = Totals(weights, affine, wanted)
    levels = totals.levels() | (set() if receive is None and places is None else {0})
    lowest = min(levels, default=layers)
    scratch: dict[str, Tensor] = {}
    coord = plan.coord if plan else grad
    cell = coord if plan is None or plan.cell is None else plan.cell
    strides = (*coord.stride(), *cell.stride()) if plan else (0,) * 6
    map_shape, origin, p_shape = (plan.shape, plan.origin, plan.p.shape[1:3]) if plan else ((1, 1),) * 3

    def memory(name: str, rows: int) -> Tensor:
        if name not in scratch or scratch[name].shape[1] < rows:
            scratch[name] = saved.new_empty(layers, rows, widest)
        return scratch[name][:, :rows]

    for run in steps((0, saved.shape[1] // corners, len(grad)), chunk_rows(saved, row_bytes) // corners):
        here, some = slice(run.start * corners, run.stop * corners), grad[run]
        rows = here.stop - here.start
        if here.stop <= saved.shape[1]:
            activations = saved[:, here]
        else:
            activations = memory("activations", rows)
            recompute(run, activations)
        grads = memory("grads", rows)
        shares = saved.new_empty(rows, network.last.shape[0]) if plan else some.to(saved.dtype)
        parts = grad.new_empty(rows, terms) if plan else grad
        latents = torch.empty(rows if plan else 0, dtype=torch.int64, device=grad.device)
        with host.on(saved):
            chain_kernel[(triton.cdiv(rows, form.rows),)](
                some, coord, cell, network.weights, network.last, activations, grads, shares, parts, latents,
                run.start, run.stop, coord.shape[1], *strides,
                *host.axis(map_shape[0]), *host.axis(map_shape[1]), *origin, *p_shape,
                host.layer_rows(activations), host.layer_rows(grads),
                OUT=grad.shape[1], OUT_PADDED=network.last.shape[0], LAYERS=layers - 1, LOWEST=lowest,
                KEEP=len(levels) > 1, WIDEST=widest, PLAN=plan is not None, ENSEMBLE=corners == 4, CELL=terms == 4,
                **host.tile(form, saved.dtype),
            )  # fmt: skip
        totals.add(activations, grads, some, shares[:, : grad.shape[1]], parts)
        if places is not None:
            place_gradients(activations, grads, some, weights, biases, places[here])
        if receive is not None:
            receive(run, grads[0, :, : weights[0].shape[0]], latents, parts)
    return totals.result()
