"""Decode a call's queries chunk by chunk in plain PyTorch; keep what the backward pass needs, or recompute it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from liif_fast.call import Place, Switches, without_autocast
from liif_fast.coord import centres_at, on_lattice, plan_corners, scaled

CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 8 << 20, 64 << 20  # size of one hidden activation of one chunk
PIECE_ROWS = 512  # average number of gradients per latent that are added in one chain


class Grid(NamedTuple):
    """Describe the queries of a rendered window, in the place of a coord tensor."""

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


def gather_latents(feat: Tensor, image: Tensor, index: Tensor, feat_unfold: bool) -> Tensor:
    """Return z [..., C] or, unfolded, [..., 9C] at `index` [..., 2] of the maps `image` [...]."""
    maps = feat.permute(0, 2, 3, 1)
    if not feat_unfold:
        return maps[image, index[..., 0], index[..., 1]]
    where, outside = _neighbours(feat, image, index)
    return maps[where].masked_fill(outside.unsqueeze(-1), 0).transpose(-1, -2).flatten(-2)


def _scatter_latents(grad_feat: Tensor, image: Tensor, index: Tensor, feat_unfold: bool, grad: Tensor) -> None:
    """Add `grad`, the gradient of gather_latents' result, to `grad_feat` [B, C, H, W] in place."""
    maps = grad_feat.permute(0, 2, 3, 1)
    if not feat_unfold:
        maps.index_put_((image, index[..., 0], index[..., 1]), grad, accumulate=True)
        return
    where, outside = _neighbours(grad_feat, image, index)
    grad = grad.unflatten(-1, (-1, 9)).transpose(-1, -2).masked_fill(outside.unsqueeze(-1), 0)
    maps.index_put_(where, grad, accumulate=True)


def chunk_slices(batch: int, queries: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of images and of queries with about `size` queries each: whole images, or a part of one."""
    size = max(1, size)
    if queries < size:
        images = size // max(queries, 1)
        for first in range(0, batch, images):
            yield slice(first, min(first + images, batch)), slice(0, queries)
    else:
        for image in range(batch):
            for first in range(0, queries, size):
                yield slice(image, image + 1), slice(first, min(first + size, queries))


class Decoder(NamedTuple):
    """Decode chunks of one call's queries; it holds the call's options, not its tensors."""

    shape: tuple[int, int, int]  # B, H, W of feat
    place: Place | None  # the position of feat in a larger map
    switches: Switches
    factorised: bool  # source is P as rows [B*H*W, h]; else it is feat
    grid: Grid | None  # queries of a render; otherwise coord is given
    queries: int
    out_dim: int
    chunk_rows: int
    dtype: torch.dtype  # of the hidden layers

    def chunks(self) -> Iterator[tuple[slice, slice]]:
        """Yield the slices (of images, of queries) of every chunk."""
        return chunk_slices(self.shape[0], self.queries, self.chunk_rows // self.switches.corners)

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
        return gather_latents(source, self.image(images, index), index, self.switches.feat_unfold).flatten(0, 2)

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
            extra = scaled(cell, height, width).to(affine.dtype).unsqueeze(2)
            parts = torch.cat((parts, extra.expand(parts.shape)), -1)
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


class Recomputed(torch.autograd.Function):
    """Run Decoder.run_all, and recompute each chunk in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, decoder: Decoder, source: Tensor, coord: Tensor | None, cell: Tensor | None, *params: Tensor
    ) -> Tensor:
        ctx.decoder = decoder
        ctx.save_for_backward(source, coord, cell, *params)
        return decoder.run_all(source, coord, cell, params)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("a recomputed call has no second derivative: use recompute=False or backend='reference'")
        decoder: Decoder = ctx.decoder
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
    decoder: Decoder,
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
    """Recompute one chunk and add its gradients to `totals` (source, coord, cell, *params)."""
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


def chunk_bytes(tensor: Tensor) -> int:
    return CPU_CHUNK_BYTES if tensor.device.type == "cpu" else GPU_CHUNK_BYTES


def any_requires_grad(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
