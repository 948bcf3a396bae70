"""Define the operators of the Hopper kernel: packing and decoding, for hidden layers of 256, forward only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from liif_fast.ops import define

# Packed weights hold 16-bit weights and a float32 bias for each product of 256 x 256, then float32 tables for the first
# and the last layer (csrc/cuda/layout.h).
HIDDEN, MAX_OUT = 256, 4
PRODUCT_BYTES = HIDDEN * HIDDEN * 2 + HIDDEN * 4
TABLE_BYTES = 4 * HIDDEN * 4 + MAX_OUT * HIDDEN * 2 + MAX_OUT * 4


def _fake(weights: Sequence[Tensor], biases: Sequence[Tensor], terms: int, bfloat: bool) -> Tensor:
    size = (len(weights) - 2) * PRODUCT_BYTES + TABLE_BYTES
    return weights[0].new_empty(size, dtype=torch.uint8)


pack = define("pack_sm90", "(Tensor[] weights, Tensor[] biases, int terms, bool bfloat) -> Tensor", _fake)
# `decode` and `render` call the kernel through these, which are not traced. cluster: 1, or 2 blocks that share the
# copying of the weights (csrc/cuda/decode_sm90.cu), with the same bits.
decode = define(
    "decode_sm90",
    "(Tensor p, Tensor coord, Tensor? cell, Tensor packed, int out_dim, bool ensemble, int cluster) -> Tensor",
)
render = define(
    "render_sm90",
    "(Tensor p, Tensor? cell, Tensor packed, int out_dim, bool ensemble, int cluster, int[] grid) -> Tensor",
)
