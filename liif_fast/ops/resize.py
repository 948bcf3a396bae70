"""Define `bicubic_resize`: Pillow's resizing of 8-bit images, from the coefficients of `liif_fast.data.resize`."""

from __future__ import annotations

from torch import Tensor

from liif_fast.ops import define


def _fake(image: Tensor, first_row: Tensor, row_weight: Tensor, first_column: Tensor, column_weight: Tensor) -> Tensor:
    return image.new_empty(first_row.shape[0], first_column.shape[0], image.shape[2])


bicubic_resize = define(
    "bicubic_resize",
    "(Tensor image, Tensor first_row, Tensor row_weight, Tensor first_column, Tensor column_weight) -> Tensor",
    _fake,
)
