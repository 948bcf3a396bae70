"""Packed samples for transfer, and float samples for models.

* A packed sample has `inp` uint8 [3, h, w], `gt` uint8 [Q, 3], `pixel` int32 [Q] and `size` int32 [2]. The queries are
  pixels, row * width + column, of a target of that (height, width).
* The float sample has `inp` [3, h, w] in [0, 1], `coord` and `cell` [Q, 2] (row, column), and `gt` [Q, 3] in [0, 1],
  all float32. It takes four times the bytes, so it is made on the model's device.
* A batch of either has a leading dimension.
* In training a batch is a list of groups, each a batch of samples of equal sizes (`group`). If the queries are all
  pixels of the target in order, `gt` is that image, [b, H, W, 3], and `pixel`, `coord` and `cell` are left out, because
  a grid needs none. `place` [b] gives the positions of a group's samples in the batch.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

Packed = dict[str, Tensor]
Sample = dict[str, Tensor]


class Batches(Protocol):
    """Lists of indices, one per batch, as `torch.utils.data.BatchSampler` yields them."""

    def __iter__(self) -> Iterator[list[int]]: ...

    def __len__(self) -> int: ...


def unpack(packed: Packed) -> Sample:
    """Return the float sample of a packed one, or the batch of a packed batch, on its device.

    Coordinates and cells equal those of make_coord and make_cell bit for bit.
    """
    if "pixel" not in packed:
        return {**packed, "inp": _unit(packed["inp"]), "gt": _unit(packed["gt"])}
    size, width = packed["size"].double(), packed["size"][..., 1:]
    pixel = packed["pixel"]
    row = pixel.double().add_(0.5).div_(width).floor_().int()  # exact, and much faster than an integer division
    column = pixel - row * width
    # The operations of liif_fast.coord, one rounding each: fl(fl(fl(2/n) * i) + fl(-1 + 1/n)).
    cell, first = (value.float().unsqueeze(-1) for value in (2 / size, -1 + 1 / size))
    axes = [index.float().mul_(cell[..., k, :]).add_(first[..., k, :]) for k, index in enumerate((row, column))]
    return {
        **{key: value for key, value in packed.items() if key not in ("pixel", "size")},
        "inp": _unit(packed["inp"]),
        "coord": torch.stack(axes, -1),
        "cell": cell.mT.expand(*pixel.shape, 2),
        "gt": _unit(packed["gt"]),
    }


def _unit(values: Tensor) -> Tensor:
    # By a tensor, because for a number a GPU multiplies by the rounded inverse.
    return values.float().div_(torch.full((), 255.0, device=values.device))


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack samples into a batch."""
    for key in samples[0]:
        shapes = {tuple(sample[key].shape) for sample in samples}
        if len(shapes) > 1:
            raise ValueError(f"{key}: samples of a batch differ in size ({sorted(shapes)}): set inp_size and sample_q")
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def group(samples: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Stack samples of any sizes, packed or not, into a training batch (see the module)."""
    groups: dict[Any, list[dict[str, Tensor]]] = {}
    for place, sample in enumerate(samples):
        sample = whole(sample) | {"place": torch.tensor(place)}
        groups.setdefault(tuple(value.shape for value in sample.values()), []).append(sample)
    return [collate(members) for members in groups.values()]


def whole(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop a packed sample's queries if they are all pixels in order; return other samples unchanged."""
    if "pixel" not in packed:
        return packed
    height, width = packed["size"].tolist()
    pixel = packed["pixel"]
    if len(pixel) != height * width or not torch.equal(pixel, torch.arange(len(pixel), dtype=pixel.dtype)):
        return packed
    return {"inp": packed["inp"], "gt": packed["gt"].view(height, width, 3)}
