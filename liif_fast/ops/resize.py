"""`bicubic_resize`: Pillow's resizing of 8-bit images, from its table of coefficients (`liif_fast.data.resize`)."""

from __future__ import annotations

import torch
from torch import Tensor

from liif_fast.ops import define

define(
    "bicubic_resize",
    "(Tensor image, Tensor first_row, Tensor row_weight, Tensor first_column, Tensor column_weight) -> Tensor",
)
bicubic_resize = torch.ops.liif_fast.bicubic_resize.default


@torch.library.register_fake("liif_fast::bicubic_resize")
def _(image: Tensor, first_row: Tensor, row_weight: Tensor, first_column: Tensor, column_weight: Tensor) -> Tensor:
    return image.new_empty(first_row.shape[0], first_column.shape[0], image.shape[2])
