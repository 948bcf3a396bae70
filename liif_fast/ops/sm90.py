"""The operators of the Hopper kernel: weights packed for it, decode and render. Hidden layers of 256, forward only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from liif_fast.ops import define

# Packed weights: per product of 256 x 256 its 16-bit weights and float32 bias; float32 tables for the first and the
# last layer (csrc/cuda/layout.h).
HIDDEN, MAX_OUT = 256, 4
PRODUCT_BYTES = HIDDEN * HIDDEN * 2 + HIDDEN * 4
TABLE_BYTES = (4 * HIDDEN + MAX_OUT * HIDDEN + MAX_OUT) * 4

define("pack_sm90", "(Tensor[] weights, Tensor[] biases, int terms, bool bfloat) -> Tensor")
define(
    "decode_sm90",
    "(Tensor p, Tensor coord, Tensor? cell, Tensor packed, int out_dim, bool ensemble, bool wide, int cluster)"
    " -> Tensor",
)
define(
    "render_sm90",
    "(Tensor p, Tensor? cell, Tensor packed, int out_dim, bool ensemble, bool wide, int cluster,"
    " SymInt map_height, SymInt map_width, SymInt p_top, SymInt p_left, SymInt grid_height, SymInt grid_width,"
    " SymInt top, SymInt left, SymInt height, SymInt width) -> Tensor",
)
# cluster: 1, or 2 blocks that share the copying of the weights (csrc/cuda/decode_sm90.cu); the same bits either way.
pack = torch.ops.liif_fast.pack_sm90.default
decode = torch.ops.liif_fast.decode_sm90.default
render = torch.ops.liif_fast.render_sm90.default


@torch.library.register_fake("liif_fast::pack_sm90")
def _(weights: Sequence[Tensor], biases: Sequence[Tensor], terms: int, bfloat: bool) -> Tensor:
    size = (len(weights) - 2) * PRODUCT_BYTES + TABLE_BYTES
    return weights[0].new_empty(size, dtype=torch.uint8)


@torch.library.register_fake("liif_fast::decode_sm90")
def _(
    p: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    packed: Tensor,
    out_dim: int,
    ensemble: bool,
    wide: bool,
    cluster: int,
) -> Tensor:
    dtype = torch.float32 if wide else p.dtype
    return p.new_empty(coord.shape[0], coord.shape[1], out_dim, dtype=dtype)


@torch.library.register_fake("liif_fast::render_sm90")
def _(
    p: Tensor,
    cell: Tensor | None,
    packed: Tensor,
    out_dim: int,
    ensemble: bool,
    wide: bool,
    cluster: int,
    map_height: int,
    map_width: int,
    p_top: int,
    p_left: int,
    grid_height: int,
    grid_width: int,
    top: int,
    left: int,
    height: int,
    width: int,
) -> Tensor:
    return p.new_empty(p.shape[0], out_dim, height, width, dtype=torch.float32 if wide else p.dtype)
