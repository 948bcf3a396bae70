"""Samples: how they travel, and what a model is given.

A packed sample is `inp` uint8 [3, h, w], `gt` uint8 [Q, 3], `pixel` int32 [Q] and `size` int32 [2]: the queries are
pixels, row * width + column, of a target of that (height, width). It has a quarter of the bytes of the float sample,
which is made of it on the device of the model: `inp` [3, h, w] in [0, 1], `coord` and `cell` [Q, 2] (row, column),
`gt` [Q, 3] in [0, 1], all float32. A batch of either has a leading dimension.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

Packed = dict[str, Tensor]
Sample = dict[str, Tensor]


class Batches(Protocol):
    """Lists of indices, one a batch, as `torch.utils.data.BatchSampler` yields them."""

    def __iter__(self) -> Iterator[list[int]]: ...

    def __len__(self) -> int: ...


def unpack(packed: Packed) -> Sample:
    """Make the float sample of a packed one, or the batch of a packed batch, on its device.

    Args:
        packed: see the module.

    Returns:
        The sample or batch; coordinates are those of make_coord and cells those of make_cell, bit for bit.
    """
    size = packed["size"].unsqueeze(-2)  # [..., 1, 2]
    pixel = packed["pixel"]
    width = size[..., 1]
    row = torch.div(pixel, width, rounding_mode="floor")
    index = torch.stack([row, pixel - row * width], -1)
    # The operations of liif_fast.coord, one rounding each: fl(fl(fl(2/n) * i) + fl(-1 + 1/n)).
    cell, first = (value.float() for value in (2 / size.double(), -1 + 1 / size.double()))
    return {
        "inp": _unit(packed["inp"]),
        "coord": index.float() * cell + first,
        "cell": cell.expand(index.shape).contiguous(),
        "gt": _unit(packed["gt"]),
    }


def _unit(values: Tensor) -> Tensor:
    # By a tensor: by a number, a GPU would multiply with the rounded inverse.
    return values.float().div_(torch.full((), 255.0, device=values.device))


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack samples into a batch.

    Args:
        samples: samples of equal sizes, packed or not.

    Returns:
        The same keys, each tensor with a leading batch dimension.

    Raises:
        ValueError: if the sizes differ.
    """
    for key in samples[0]:
        shapes = {tuple(sample[key].shape) for sample in samples}
        if len(shapes) > 1:
            raise ValueError(f"{key}: samples of a batch differ in size ({sorted(shapes)}): set inp_size and sample_q")
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
