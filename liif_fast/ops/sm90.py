"""The operators of the Hopper kernel: weights packed for it."""

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
pack = torch.ops.liif_fast.pack_sm90.default


@torch.library.register_fake("liif_fast::pack_sm90")
def _(weights: Sequence[Tensor], biases: Sequence[Tensor], terms: int, bfloat: bool) -> Tensor:
    size = (len(weights) - 2) * PRODUCT_BYTES + TABLE_BYTES
    return weights[0].new_empty(size, dtype=torch.uint8)
