"""Compute the factorised form in plain PyTorch, the fallback that runs every call.

The first layer splits by columns, W1 x + b1 = (W1z z + b1) + W1r rel + W1c cell'. Its first part is one convolution of
the whole map, P [B, H, W, h]; queries gather rows of P and add the rest. The corners are summed before the last layer,
because that is linear and the weights sum to one. For few queries and a large map, the first part is applied to
gathered rows instead (the direct form, see `factorises`).

Queries are computed in chunks, so memory beyond inputs, outputs and P does not grow with their number. In training the
same holds once the hidden activations exceed KEEP_BYTES (or with recompute=True): the backward pass computes each chunk
again. A traced call (torch.compile, torch.export) is one chunk, so that the compiler can fuse it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from liif_fast.attention import Coordinates, Corners, CornerTransformer
from liif_fast.backends import attention, corners, factorises
from liif_fast.backends.projection import project
from liif_fast.call import Call, Extent, Place, Switches, Window, autocast_dtype, without_autocast
from liif_fast.coord import centres_at, latent_window, lattice, on_lattice, plan_corners

NAME = "torch"
PLACES = EXTENTS = True
KEEP_BYTES = 1 << 30  # limit of hidden activations kept for the backward pass; above it they are computed again
CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 8 << 20, 64 << 20  # size of one hidden activation of one chunk
PIECE_ROWS = 512  # so many gradients of the rows that read one latent are added in one chain, on average


def can_run(call: Call) -> tuple[bool, str]:
    """Accept every call."""
    if call.op in ("decode", "render"):
        latents = call.shape[2] * call.shape[3]
        factorised = factorises(latents, call.switches.corners * call.queries)
        return True, "factorised form in plain PyTorch" if factorised else "direct form (few queries) in plain PyTorch"
    return True, "plain PyTorch"


class _Grid(NamedTuple):
    """Hold the queries of a rendered window, instead of a coord tensor."""

    size: tuple[int, int]
    top: int
    left: int
    width: int
    steps: tuple[float, ...] = ()  # `lattice` of a grid over a part of the map

    def coord(self, queries: slice, device: torch.device) -> Tensor:
        position = torch.arange(queries.start, queries.stop, device=device)
        row, column = position // max(self.width, 1) + self.top, position % max(self.width, 1) + self.left
        if self.steps:
            rows, columns = on_lattice(row, *self.steps[:2]), on_lattice(column, *self.steps[2:])
        else:
            rows, columns = centres_at(row, self.size[0]), centres_at(column, self.size[1])
        return torch.stack((rows, columns), -1)


def _neighbours(feat: Tensor, image: Tensor, index: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Return the positions (image, row, column), each [..., 9], of the 3x3 neighbourhoods, and which lie outside."""
    offset = torch.arange(9, device=feat.device)
    row = index[..., 0, None] + (offset // 3 - 1)
    column = index[..., 1, None] + (offset % 3 - 1)
    height, width = feat.shape[2:]
    outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
    return (image.unsqueeze(-1), row.clamp(0, height - 1), column.clamp(0, width - 1)), outside


def _gather_latents(feat: Tensor, image: Tensor, index: Tensor, feat_unfold: bool) -> Tensor:
    """Return z [..., C] or, unfolded, [..., 9C] at `index` [..., 2] of the maps `image` [...]."""
    maps = feat.permute(0, 2, 3, 1)
    if not feat_unfold:
        return maps[image, index[..., 0], index[..., 1]]
    where, outside = _neighbours(feat, image, index)
    return maps[where].masked_fill(outside.unsqueeze(-1), 0).transpose(-1, -2).flatten(-2)


def _scatter_latents(grad_feat: Tensor, image: Tensor, index: Tensor, feat_unfold: bool, grad: Tensor) -> None:
    """Add `grad`, the gradient of _gather_latents' result, to `grad_feat` [B, C, H, W] in place."""
    maps = grad_feat.permute(0, 2, 3, 1)
    if not feat_unfold:
        maps.index_put_((image, index[..., 0], index[..., 1]), grad, accumulate=True)
        return
    where, outside = _neighbours(grad_feat, image, index)
    grad = grad.unflatten(-1, (-1, 9)).transpose(-1, -2).masked_fill(outside.unsqueeze(-1), 0)
    maps.index_put_(where, grad, accumulate=True)


def _scaled(cell: Tensor, height: int, width: int) -> Tensor:
    return torch.stack((cell[..., 0] * height, cell[..., 1] * width), -1)


def _chunks(batch: int, queries: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of images and of queries, about `size` queries at a time, as whole images or a part of one."""
    size = max(1, size)
    if queries < size:
        images = size // max(queries, 1)
        for first in range(0, batch, images):
            yield slice(first, min(first + images, batch)), slice(0, queries)
    else:
        for image in range(batch):
            for first in range(0, queries, size):
                yield slice(image, image + 1), slice(first, min(first + size, queries))


class _Decoder(NamedTuple):
    """Decode chunks of one call's queries; it holds the call's options, not its tensors."""

    shape: tuple[int, int, int]  # B, H, W of feat
    place: Place | None  # the position of feat in a larger map
    switches: Switches
    factorised: bool  # source is P as rows [B*H*W, h]; else it is feat
    grid: _Grid | None  # queries of a render; otherwise coord is given
    queries: int
    out_dim: int
    chunk_rows: int
    dtype: torch.dtype  # of the hidden layers

    def chunks(self) -> Iterator[tuple[slice, slice]]:
        """Yield the slices (of images, of queries) of every chunk."""
        return _chunks(self.shape[0], self.queries, self.chunk_rows // self.switches.corners)

    def pick(
        self, coord: Tensor | None, cell: Tensor | None, images: slice, queries: slice, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """Return coord [b, q, 2] and cell [b, q, 2] of a chunk."""
        count = images.stop - images.start
        if self.grid is None:
            assert coord is not None
            return coord[images, queries], None if cell is None else cell[images, queries]
        coord = self.grid.coord(queries, device).expand(count, -1, 2)
        return coord, None if cell is None else cell[images].unsqueeze(1).expand(coord.shape)

    def map_shape(self) -> tuple[int, int]:
        """Return the height and the width of the map on which queries are planned."""
        return self.shape[1:] if self.place is None else self.place[2:]

    def plan(self, coord: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return index (in feat), rel and weight of every corner."""
        index, rel, weight = plan_corners(coord, *self.map_shape(), self.switches.local_ensemble)
        if self.place is not None:
            index = index - torch.tensor(self.place[:2], device=index.device)
        return index, rel, weight

    def image(self, images: slice, index: Tensor) -> Tensor:
        """Return the image that each (query, corner) of a chunk reads."""
        image = torch.arange(images.start, images.stop, device=index.device)
        return image.view(-1, 1, 1).expand(index.shape[:-1])

    def flat(self, images: slice, index: Tensor) -> Tensor:
        """Return the row of P that each (query, corner) of a chunk reads."""
        _, height, width = self.shape
        return ((self.image(images, index) * height + index[..., 0]) * width + index[..., 1]).flatten()

    def pieces(self, source: Tensor, flat: Tensor) -> tuple[int, Tensor]:
        """Distribute the rows over copies of P, so that no latent's gradient is one long chain of additions.

        Returns:
            The number of copies, and for each (query, corner) its row in the concatenated copies.
        """
        count = 1 if torch.compiler.is_compiling() else 1 + flat.shape[0] // max(PIECE_ROWS * source.shape[0], 1)
        if count > 1:
            flat = flat + torch.arange(flat.shape[0], device=flat.device) % count * source.shape[0]
        return count, flat

    def take(self, source: Tensor, images: slice, index: Tensor) -> Tensor:
        """Gather a chunk's rows, [rows, h] of P or [rows, 9C] of feat."""
        if self.factorised:
            flat = self.flat(images, index)
            if source.requires_grad and torch.is_grad_enabled():
                count, flat = self.pieces(source, flat)
                source = source.repeat(count, 1) if count > 1 else source
            return source.index_select(0, flat)
        return _gather_latents(source, self.image(images, index), index, self.switches.feat_unfold).flatten(0, 2)

    def give(self, grad_source: Tensor, images: slice, index: Tensor, grad: Tensor) -> None:
        """Add the gradient of a chunk's rows to that of the source, in place."""
        if self.factorised:
            count, flat = self.pieces(grad_source, self.flat(images, index))
            if flat.shape[0] < grad_source.shape[0]:  # a separate sum for the chunk would cost more than its rows
                grad_source.index_add_(0, flat, grad)
                return
            parts = grad_source.new_zeros(count * grad_source.shape[0], grad_source.shape[1])
            grad_source += parts.index_add_(0, flat, grad).unflatten(0, (count, -1)).sum(0)
        else:
            grad = grad.unflatten(0, index.shape[:-1])
            _scatter_latents(grad_source, self.image(images, index), index, self.switches.feat_unfold, grad)

    def tail(self, rows: Tensor, rel: Tensor, weight: Tensor, cell: Tensor | None, params: Sequence[Tensor]) -> Tensor:
        """Return the output [b, q, out] of gathered rows."""
        height, width = self.map_shape()
        affine, *params = params
        if not self.factorised:
            first, bias, *params = params
            rows = F.linear(rows, first, bias)
        parts = rel.to(affine.dtype)
        if cell is not None:
            scaled = _scaled(cell, height, width).to(affine.dtype).unsqueeze(2)
            parts = torch.cat((parts, scaled.expand(parts.shape)), -1)
        hidden = torch.addmm(rows.to(affine.dtype), parts.flatten(0, 2), affine.t())
        for layer in range(0, len(params) - 2, 2):
            hidden = F.linear(F.relu(hidden).to(self.dtype), params[layer], params[layer + 1])
        if params:
            hidden = F.relu(hidden)
        hidden = hidden.to(affine.dtype).unflatten(0, weight.shape)
        weight = weight.to(affine.dtype)
        if self.switches.local_ensemble:
            hidden = torch.einsum("bqk,bqkc->bqc", weight, hidden)
        else:
            hidden = hidden.squeeze(2)
        if not params:
            return hidden
        # The weights sum to 1 except for their rounding to float32, which is visible in float64.
        return F.linear(hidden, params[-2]) + weight.sum(2, keepdim=True) * params[-1]

    def run(
        self,
        source: Tensor,
        coord: Tensor | None,
        cell: Tensor | None,
        params: Sequence[Tensor],
        images: slice,
        queries: slice,
    ) -> Tensor:
        """Return the output [b, q, out] of one chunk."""
        coord, cell = self.pick(coord, cell, images, queries, source.device)
        index, rel, weight = self.plan(coord)
        return self.tail(self.take(source, images, index), rel, weight, cell, params)

    def run_all(self, source: Tensor, coord: Tensor | None, cell: Tensor | None, params: Sequence[Tensor]) -> Tensor:
        """Return the whole output, chunk by chunk, keeping nothing for a backward pass."""
        out = torch.empty((self.shape[0], self.queries, self.out_dim), dtype=params[0].dtype, device=source.device)
        with torch.no_grad():
            for images, queries in self.chunks():
                out[images, queries] = self.run(source, coord, cell, params, images, queries)
        return out


class _Recomputed(torch.autograd.Function):
    """Run _Decoder.run_all, and compute each chunk again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, decoder: _Decoder, source: Tensor, coord: Tensor | None, cell: Tensor | None, *params: Tensor
    ) -> Tensor:
        ctx.decoder = decoder
        ctx.save_for_backward(source, coord, cell, *params)
        return decoder.run_all(source, coord, cell, params)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("a recomputed call has no second derivative: use recompute=False or backend='reference'")
        decoder: _Decoder = ctx.decoder
        source, coord, cell, *params = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        inputs = (source, coord, cell, *params)
        totals = [torch.zeros_like(t) if want else None for t, want in zip(inputs, wanted, strict=True)]
        with torch.enable_grad(), without_autocast(source):
            params = [t.detach().requires_grad_(want) for t, want in zip(params, wanted[3:], strict=True)]
            for images, queries in decoder.chunks():
                _accumulate(decoder, source, coord, cell, params, images, queries, grad_out, wanted, totals)
        return None, *totals


def _accumulate(
    decoder: _Decoder,
    source: Tensor,
    coord: Tensor | None,
    cell: Tensor | None,
    params: Sequence[Tensor],
    images: slice,
    queries: slice,
    grad_out: Tensor,
    wanted: Sequence[bool],
    totals: Sequence[Tensor | None],
) -> None:
    """Compute one chunk again and add its gradients to `totals` (source, coord, cell, *params)."""
    coord, cell = decoder.pick(coord, cell, images, queries, source.device)
    assert coord is not None
    coord = coord.detach().requires_grad_(wanted[1])
    index, rel, weight = decoder.plan(coord)
    rows = decoder.take(source.detach(), images, index).requires_grad_(wanted[0])
    cell = None if cell is None else cell.detach().requires_grad_(wanted[2])
    out = decoder.tail(rows, rel, weight, cell, params)
    inputs = (rows, coord, cell, *params)
    leaves = [t for t, want in zip(inputs, wanted, strict=True) if want and t is not None]
    grads = iter(torch.autograd.grad(out, leaves, grad_out[images, queries]))
    for position, total in enumerate(totals):
        if total is None:
            continue
        grad = next(grads)
        if position == 0:
            decoder.give(total, images, index, grad)
        elif position > 2:
            total += grad
        elif decoder.grid is None:
            total[images, queries] = grad
        else:  # a render has one cell per image
            total[images] += grad.sum(1)


def _decode(
    feat: Tensor,
    coord: Tensor | None,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
    queries: int,
    grid: _Grid | None,
    place: Place | None = None,
) -> Tensor:
    low, traced = autocast_dtype(feat), torch.compiler.is_compiling()
    dtype = low or feat.dtype
    wide = torch.promote_types(dtype, torch.float32)  # for rel, cell, area, weights and the last layer
    batch, channels, height, width = feat.shape
    latent_dim = channels * 9 if switches.feat_unfold else channels
    rows = switches.corners * queries
    factorised = factorises(height * width, rows)
    widest = max(weight.shape[0] for weight in weights) * dtype.itemsize
    decoder = _Decoder(
        shape=(batch, height, width),
        place=place,
        switches=switches,
        factorised=factorised,
        grid=grid,
        queries=queries,
        out_dim=weights[-1].shape[0],
        chunk_rows=_chunk_bytes(feat) // widest,
        dtype=dtype,
    )
    with without_autocast(feat):
        feat = feat.to(dtype)
        first, bias = weights[0][:, :latent_dim].to(dtype), biases[0].to(dtype)
        params = [weights[0][:, latent_dim:].to(wide)]
        if not factorised:
            params += [first, bias]
        for layer in range(1, len(weights)):
            last = layer == len(weights) - 1
            params += [weights[layer].to(wide if last else dtype), biases[layer].to(wide if last else dtype)]
        source = project(feat, first, bias, switches.feat_unfold) if factorised else feat
        if traced:
            out = decoder.run(source, coord, cell, params, slice(0, batch), slice(0, queries))
        elif not (torch.is_grad_enabled() and _any_requires_grad(source, coord, cell, *params)):
            out = decoder.run_all(source, coord, cell, params)
        else:
            if recompute is None:
                hidden = sum(weight.shape[0] for weight in weights[:-1]) * dtype.itemsize
                recompute = batch * rows * hidden > KEEP_BYTES
            if recompute:
                out = _Recomputed.apply(decoder, source, coord, cell, *params)
            else:
                out = decoder.run(source, coord, cell, params, slice(0, batch), slice(0, queries))
        return out.to(feat.dtype if low is None else torch.float32)


def _chunk_bytes(tensor: Tensor) -> int:
    return CPU_CHUNK_BYTES if tensor.device.type == "cpu" else GPU_CHUNK_BYTES


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
) -> Tensor:
    """Return the decoded queries, [B, Q, out]."""
    cell = cell if switches.cell_decode else None
    return _decode(feat, coord, cell, weights, biases, switches, recompute, coord.shape[1], None)


def render(
    feat: Tensor,
    size: tuple[int, int],
    region: Window,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
    place: Place | None = None,
    extent: Extent | None = None,
) -> Tensor:
    """Return the window `region` of the grid `size`, [B, out, h, w], making coordinates chunk by chunk."""
    top, left, height, width = region
    whole = place or (0, 0, feat.shape[2], feat.shape[3])
    grid = _Grid(size, top, left, width, () if extent is None else lattice(size, extent, whole[2:]))
    if not torch.compiler.is_compiling():  # a traced call serves every region
        feat, place = under(feat, size, region, switches, whole, extent)
    out = _decode(feat, None, cell, weights, biases, switches, recompute, height * width, grid, place)
    return out.transpose(1, 2).reshape(feat.shape[0], weights[-1].shape[0], height, width)


def under(
    feat: Tensor,
    size: tuple[int, int],
    region: Window,
    switches: Switches,
    place: Place,
    extent: Extent | None = None,
) -> tuple[Tensor, Place | None]:
    """Return the part of feat that a region reads, and its place, so that only this part is projected."""
    at, shape = place[:2], place[2:]
    window, reach = latent_window(size, region, shape, extent), int(switches.feat_unfold)
    first = [max(window[axis] - reach, at[axis]) for axis in (0, 1)]
    last = [min(window[axis] + window[axis + 2] + reach, at[axis] + feat.shape[axis + 2]) for axis in (0, 1)]
    feat = feat[:, :, first[0] - at[0] : last[0] - at[0], first[1] - at[1] : last[1] - at[1]]
    return feat, None if tuple(feat.shape[2:]) == shape else (first[0], first[1], *shape)


def gather_corners(feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches) -> tuple[Tensor, Tensor]:
    """Return the network's input x [B, Q, K, in_dim] and the blending weight [B, Q, K], without unfolding the map."""
    dtype = feat.dtype if autocast_dtype(feat) is None else torch.promote_types(feat.dtype, torch.float32)
    cell = cell if switches.cell_decode else None
    (batch, queries), device, corners = coord.shape[:2], feat.device, switches.corners
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and _any_requires_grad(feat, coord, cell)):
        return _gather_corners(feat, coord, cell, switches, dtype, torch.arange(batch, device=device))
    in_dim = feat.shape[1] * (9 if switches.feat_unfold else 1) + (2 if cell is None else 4)
    x = torch.empty((batch, queries, corners, in_dim), dtype=dtype, device=device)
    weight = torch.empty((batch, queries, corners), dtype=coord.dtype, device=device)
    for i, q in _chunks(batch, queries, _chunk_bytes(feat) // (corners * in_dim * dtype.itemsize)):
        images = torch.arange(i.start, i.stop, device=device)
        some = None if cell is None else cell[i, q]
        x[i, q], weight[i, q] = _gather_corners(feat, coord[i, q], some, switches, dtype, images)
    return x, weight


def _gather_corners(
    feat: Tensor, coord: Tensor, cell: Tensor | None, switches: Switches, dtype: torch.dtype, images: Tensor
) -> tuple[Tensor, Tensor]:
    height, width = feat.shape[2:]
    index, rel, weight = plan_corners(coord, height, width, switches.local_ensemble)
    images = images.view(-1, 1, 1).expand(index.shape[:-1])
    parts = [_gather_latents(feat, images, index, switches.feat_unfold), rel]
    if cell is not None:
        parts.append(_scaled(cell, height, width).unsqueeze(2).expand(rel.shape))
    return torch.cat([part.to(dtype) for part in parts], -1), weight


def fused_mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], recompute: bool | None) -> Tensor:
    """Apply Linear, ReLU, ..., Linear to the last dimension of x, [..., out], some rows at a time."""
    low = autocast_dtype(x)
    dtype = low or x.dtype
    shape = (*x.shape[:-1], weights[-1].shape[0])
    hidden = sum(weight.shape[0] for weight in weights) * dtype.itemsize
    with without_autocast(x):
        x = x.reshape(math.prod(shape[:-1]), x.shape[-1])
        params = [t.to(dtype) for pair in zip(weights, biases, strict=True) for t in pair]
        training = torch.is_grad_enabled() and _any_requires_grad(x, *params)
        if training and recompute is None and not torch.compiler.is_compiling():
            recompute = x.shape[0] * hidden > KEEP_BYTES
        if torch.compiler.is_compiling() or (training and not recompute):
            out = _mlp(x.to(dtype), *params)
        else:
            parts = x.split(max(1, _chunk_bytes(x) // hidden))
            if training:
                outs = [checkpoint(_mlp, part.to(dtype), *params, use_reentrant=False) for part in parts]
                out = torch.cat(outs)
            else:
                out = torch.empty((x.shape[0], shape[-1]), dtype=dtype, device=x.device)
                for part, target in zip(parts, out.split(parts[0].shape[0] or 1), strict=True):
                    target.copy_(_mlp(part.to(dtype), *params))
        return (out if low is None else out.float()).reshape(shape)


def _mlp(x: Tensor, *params: Tensor) -> Tensor:
    for layer in range(0, len(params), 2):
        x = F.linear(F.relu(x) if layer else x, params[layer], params[layer + 1])
    return x


def attend_corners(
    feat: Tensor,
    values: Tensor,
    queries: Corners | Coordinates,
    transformer: CornerTransformer,
    dropout: float,
    recompute: bool | None,
) -> tuple[Tensor, Tensor]:
    """Return the values blended by the transformer's weights, [B, Q, V], and the weights [B, Q, 4]."""
    form = partial(attention.factorised, recompute=recompute)
    return attention.run(form, feat, values, queries, transformer, dropout)


def fourier_decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor,
    phase: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    recompute: bool | None,
    place: Place | None,
) -> Tensor:
    """Return the output [B, Q, out] of queries of maps of amplitudes and frequencies."""
    hidden = corners.fourier_hidden(phase, weights, biases, autocast_dtype(feat) or feat.dtype)
    width = 3 * feat.shape[1] + sum(weight.shape[0] for weight in weights)
    last = weights[-1], biases[-1]
    return corners.decode(feat, coord, cell, Switches(feat_unfold=False), hidden, last, recompute, place, width)


def modulated_decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    switches: Switches,
    recompute: bool | None,
    place: Place | None,
) -> Tensor:
    """Return the output [B, Q, out] of queries of maps of modulations and features."""
    hidden = corners.modulated_hidden(weights, biases, autocast_dtype(feat) or feat.dtype)
    width = feat.shape[1] + 3 * sum(weight.shape[0] for weight in weights)
    return corners.decode(feat, coord, cell, switches, hidden, (weights[-1], biases[-1]), recompute, place, width)
