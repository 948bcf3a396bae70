"""Compute `attend_corners` in plain PyTorch: in the plain form, and in the form whose first block is factorised.

The first LayerNorm and the linear map L behind it (the first block's qkv; without blocks the head) split by latent.
With C the centring, g and b of the norm, z' = z + bp and P = Wp, per latent

    A = L diag(g) C z'      n0 = |C z'|^2 / D      n1 = 2 (C P)' C z' / D

and per corner, with R = L diag(g) C P and S = (C P)' C P / D,

    L norm(z' + P rel) = (A + R rel) / sqrt(n0 + rel . (n1 + S rel) + epsilon) + L b

so a query gathers A, n1, n0 (and z' if there are blocks) and adds R rel, S rel, 0 (and P rel). It needs no product of
D x 3D.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from liif_fast.attention import EPSILON, Block, Coordinates, Corners, CornerTransformer
from liif_fast.call import autocast_dtype, trains, without_autocast
from liif_fast.coord import plan_corners
from liif_fast.frozen import pack_once
from liif_fast.ops.attend import attend_corners as operator

Packed = TypeVar("Packed")

CHUNK_QUERIES = 1 << 12
KEEP_BYTES = 1 << 28  # limit of hidden activations kept for the backward pass; above it they are recomputed


def plan(coord: Tensor, height: int, width: int, wrap: bool) -> Corners:
    """Return the corners of every query, coord [B, Q, 2].

    With `wrap` the columns form a circle: the plan is that of a map with one more column at either side, which repeats
    the latents of the other end.
    """
    if not wrap:
        index, rel, _ = plan_corners(coord, height, width, True)
        return Corners(index[..., 0] * width + index[..., 1], rel, (height, width))
    wider = torch.stack((coord[..., 0], coord[..., 1] * (width / (width + 2))), -1)
    index, rel, _ = plan_corners(wider, height, width + 2, True)
    return Corners(index[..., 0] * width + (index[..., 1] - 1) % width, rel, (height, width))


def run(
    form: Callable[..., tuple[Tensor, Tensor]],
    feat: Tensor,
    values: Tensor,
    queries: Corners | Coordinates,
    net: CornerTransformer,
    dropout: float,
    packs: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run one of the forms in float32 or wider, also under autocast: a softmax over only four logits passes errors on.

    Within `frozen_weights`, `packs` keeps the parts that depend only on the parameters.
    """
    dtype = torch.promote_types(feat.dtype, torch.float32)
    with without_autocast(feat):
        wide = _once(packs, lambda: net.to(dtype), (run, dtype), feat, values, net)
        parts = form(feat.to(dtype), values.to(dtype), queries, wide, dropout)
    out, weight = (part if autocast_dtype(feat) is not None else part.to(feat.dtype) for part in parts)
    return out, weight


def _once(
    packs: bool, pack: Callable[[], Packed], how: Hashable, feat: Tensor, values: Tensor, net: CornerTransformer
) -> Packed:
    """Return what `pack` makes of the parameters; outside training, `frozen_weights` reuses an earlier result."""
    params = [tensor for _, tensor in net.tensors()]
    return pack_once(params, how, pack) if packs and not trains(feat, values, *params) else pack()


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPSILON)


def _attention(qkv: Tensor, heads: int) -> Tensor:
    """Attend from each of the 4 tokens [..., 4, 3 D] to all of them; [..., 4, D]."""
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in qkv.chunk(3, -1))
    # Many products of 4 x D/h matrices are faster as element-wise operations than as matrix products.
    logits = (q.unsqueeze(-3) * k.unsqueeze(-4)).sum(-1) * q.shape[-1] ** -0.5
    return (logits.softmax(-2).unsqueeze(-1) * v.unsqueeze(-4)).sum(-3).flatten(-2)


def _finish(block: Block, x: Tensor, qkv: Tensor, heads: int, dropout: float) -> Tensor:
    """Return the block's output for its input x [..., 4, D] and the products qkv [..., 4, 3 D] of its norm."""
    mixed = _attention(qkv, heads)
    if block.out_weight is not None:
        mixed = F.dropout(F.linear(mixed, block.out_weight, block.out_bias), dropout)
    x = x + mixed
    hidden = F.gelu(F.linear(_norm(x, block.mlp_norm_weight, block.mlp_norm_bias), block.up_weight, block.up_bias))
    return x + F.dropout(F.linear(F.dropout(hidden, dropout), block.down_weight, block.down_bias), dropout)


def _logits(net: CornerTransformer, x: Tensor, first: int, dropout: float) -> Tensor:
    """Return the logits [..., 4] from the input of block `first`."""
    for block in net.blocks[first:]:
        qkv = F.linear(_norm(x, block.norm_weight, block.norm_bias), block.qkv)
        x = _finish(block, x, qkv, net.heads, dropout)
    return F.linear(_norm(x, net.norm_weight, net.norm_bias), net.head_weight, net.head_bias)[..., 0]


def _rows(maps: Tensor) -> Tensor:
    """Return [B, C, H, W] as rows [B * H * W, C]."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _planned(queries: Corners | Coordinates, feat: Tensor) -> tuple[Tensor, Tensor]:
    """Return index [B, Q, 4] and rel [B, Q, 4, 2]; a plan that all images share is expanded."""
    height, width = feat.shape[2:]
    corners = queries if isinstance(queries, Corners) else plan(queries.coord, height, width, queries.wrap)
    return corners.at.expand(len(feat), -1, -1), corners.rel.expand(len(feat), -1, -1, -1)


def _flat(index: Tensor, latents: int) -> Tensor:
    """Return the rows of `_rows` that the corners [B, Q, 4] read, as one list."""
    image = torch.arange(index.shape[0], device=index.device).view(-1, 1, 1)
    return (index + image * latents).flatten()


def plain(
    feat: Tensor, values: Tensor, queries: Corners | Coordinates, net: CornerTransformer, dropout: float
) -> tuple[Tensor, Tensor]:
    """Return out [B, Q, V] and the weights [B, Q, 4] as the formula reads."""
    index, rel = _planned(queries, feat)
    at = _flat(index, feat.shape[2] * feat.shape[3])
    z = _rows(feat)[at].unflatten(0, index.shape)
    x = z + F.linear(rel.to(z.dtype), net.position_weight, net.position_bias)
    weight = _logits(net, x, 0, dropout).softmax(-1)
    corner_values = _rows(values)[at].unflatten(0, index.shape)
    return (weight.unsqueeze(-1) * corner_values).sum(-2), weight


class Shares(NamedTuple):
    """Hold the parts of a split that depend only on the parameters."""

    product: Tensor  # [A's columns + 2, D], multiplies a centred latent
    by_rel: Tensor  # as in Split
    linear: int  # columns of A


class Split(NamedTuple):
    """Hold the first LayerNorm and the linear map behind it, split by latent.

    Columns are A, n1, n0, z' if there are blocks, and the values to blend.
    """

    table: Tensor  # [B * H * W, T], per latent
    by_rel: Tensor  # [3, T]: the factors of rel's row and column, and L b, which is added after the norm
    linear: int  # columns of A
    values: int  # columns of the values


def shares(net: CornerTransformer, values: int) -> Shares:
    """Return the parameters' part of a split with this number of values."""
    if net.blocks:
        norm_weight, norm_bias, linear = net.blocks[0][:3]
        bias = linear @ norm_bias
    else:
        norm_weight, norm_bias, linear = net.norm_weight, net.norm_bias, net.head_weight
        bias = linear @ norm_bias + net.head_bias
    place = net.position_weight - net.position_weight.mean(0)  # C P
    scaled, share = linear * norm_weight, 1 / place.shape[0]
    moved = (net.position_weight.T,) if net.blocks else ()
    by_rel = torch.cat(((scaled @ place).T, share * place.T @ place, place.new_zeros(2, 1), *moved), 1)
    columns = by_rel.shape[1] + values
    rows = F.pad(by_rel, (0, values)), F.pad(bias, (0, columns - len(bias)))
    product = torch.cat((scaled, 2 * share * place.T))
    return Shares(product, torch.cat((rows[0], rows[1].unsqueeze(0))), len(linear))


def split(
    feat: Tensor,
    values: Tensor,
    net: CornerTransformer,
    product: Callable[[Tensor, Tensor], Tensor] = F.linear,
    of: Shares | None = None,
) -> Split:
    """Compute each latent's part of the first block once; `product` multiplies rows by a weight [out, in].

    `of` gives the parameters' shares if they are known.
    """
    of = of or shares(net, values.shape[1])
    z = _rows(feat) + net.position_bias
    centred = z - z.mean(-1, keepdim=True)
    n0 = centred.square().sum(-1, keepdim=True) / z.shape[-1]
    latent = (z,) if net.blocks else ()
    table = torch.cat((product(centred, of.product), n0, *latent, _rows(values)), 1)
    return Split(table, of.by_rel, of.linear, values.shape[1])


def folded(net: CornerTransformer) -> list[Tensor]:
    """Return the linear maps behind the first one, with norms folded in, each [out, in + 1] with its bias last.

    They are out, up, down of the first block; qkv, out, up, down of each other block; and the head. Without blocks
    there are none.
    """

    def fold(weight: Tensor, bias: Tensor | float, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
        return torch.cat((weight * norm_weight, (weight @ norm_bias + bias).unsqueeze(1)), 1)

    layers: list[Tensor] = []
    width = net.position_bias.shape[0]
    for block in net.blocks:
        if layers:
            layers.append(fold(block.qkv, 0.0, block.norm_weight, block.norm_bias))
        if block.out_weight is None or block.out_bias is None:
            layers.append(torch.eye(width, width + 1, dtype=block.qkv.dtype, device=block.qkv.device))
        else:
            layers.append(torch.cat((block.out_weight, block.out_bias.unsqueeze(1)), 1))
        layers.append(fold(block.up_weight, block.up_bias, block.mlp_norm_weight, block.mlp_norm_bias))
        layers.append(torch.cat((block.down_weight, block.down_bias.unsqueeze(1)), 1))
    if layers:
        layers.append(fold(net.head_weight, net.head_bias, net.norm_weight, net.norm_bias))
    return layers


def _chunk(first: Split, net: CornerTransformer, at: Tensor, rel: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """Return out [N, V] and the weights [N, 4] of the queries whose corners are the rows `at` [4 N]; rel [4 N, 2]."""
    end, last = first.linear, first.table.shape[1] - first.values
    row = torch.addmm(first.table.index_select(0, at), rel, first.by_rel[:2])
    variance = row[:, end + 2] + (rel * row[:, end : end + 2]).sum(-1)
    scale = (variance.clamp(min=0) + EPSILON).rsqrt().unsqueeze(-1)
    normed = row[:, :end] * scale + first.by_rel[2, :end]
    if net.blocks:
        x = row[:, end + 3 : last].unflatten(0, (-1, 4))
        x = _finish(net.blocks[0], x, normed.view(-1, 4, end), net.heads, dropout)
        logits = _logits(net, x, 1, dropout)
    else:
        logits = normed.view(-1, 4)
    weight = logits.softmax(-1)
    return (weight.unsqueeze(-1) * row[:, last:].unflatten(0, (-1, 4))).sum(-2), weight


def factorised(
    feat: Tensor,
    values: Tensor,
    queries: Corners | Coordinates,
    net: CornerTransformer,
    dropout: float,
    recompute: bool | None,
) -> tuple[Tensor, Tensor]:
    """Return what `plain` returns, chunk by chunk; in training, recompute chunks if activations exceed KEEP_BYTES."""
    index, rel = _planned(queries, feat)
    at, rel = _flat(index, feat.shape[2] * feat.shape[3]), rel.flatten(0, 2).to(feat.dtype)
    first = split(feat, values, net)
    step = 4 * (max(len(at) // 4, 1) if torch.compiler.is_compiling() else CHUNK_QUERIES)
    if torch.is_grad_enabled() and recompute is None:
        kept = len(at) * feat.shape[1] * (10 * len(net.blocks) + 4) * feat.dtype.itemsize
        recompute = not torch.compiler.is_compiling() and kept > KEEP_BYTES

    def run(at: Tensor, rel: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and recompute:
            return checkpoint(_chunk, first, net, at, rel, dropout, use_reentrant=False)
        return _chunk(first, net, at, rel, dropout)

    parts = [run(*each) for each in zip(at.split(step), rel.split(step), strict=True)]
    out, weight = (torch.cat(part).unflatten(0, index.shape[:2]) for part in zip(*parts, strict=True))
    return out, weight


def bind(
    backend: str | None, product: Callable[[Tensor, Tensor], Tensor], packs: bool
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a backend's `attend_corners` by the operator of `liif_fast.ops.attend`, without dropout.

    Args:
        backend: the operator's last argument.
        product: multiplies rows by a weight [out, in].
        packs: as for `run`.
    """

    def form(
        feat: Tensor, values: Tensor, queries: Corners | Coordinates, net: CornerTransformer, dropout: float
    ) -> tuple[Tensor, Tensor]:
        count = values.shape[1]
        of, layers = _once(packs, lambda: (shares(net, count), folded(net)), (bind, count), feat, values, net)
        first, shape = split(feat, values, net, product, of), (len(feat), *feat.shape[2:])
        if isinstance(queries, Corners):
            at, rel, _ = queries  # all images may share one of them but not the other
            images = len(at) if len(rel) == 1 else len(rel)
            plan = [at.expand(images, -1, -1).contiguous(), rel.expand(images, -1, -1, -1).contiguous()]
            wrap = False
        else:
            plan, wrap = [queries.coord], queries.wrap
        return operator(first.table, first.by_rel, layers, plan, shape, wrap, net.heads, backend)

    def attend_corners(
        feat: Tensor,
        values: Tensor,
        queries: Corners | Coordinates,
        transformer: CornerTransformer,
        dropout: float,
        recompute: bool | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the values blended by the transformer's weights, [B, Q, V], and the weights [B, Q, 4]."""
        return run(form, feat, values, queries, transformer, dropout, packs)

    return attend_corners
