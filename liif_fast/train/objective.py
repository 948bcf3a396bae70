"""The L1 error of a model on a batch whose samples may differ in size.

With a teacher, a part of the error is the distance to its predictions. They lack the details that nothing in the input
tells, so a small model learns from fewer samples.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from liif_fast.coord import make_cell, make_coord
from liif_fast.data.samples import Sample
from liif_fast.models.base import FeatureModel
from liif_fast.models.norm import DataNorm, Norm


class Objective(nn.Module):
    """Compute the errors of a batch's samples under a model, any module of (inp, coord, cell).

    `autocast` is the dtype of the forward pass; None means float32. `weight`, from 0 to 1, is the part of the error
    that is the distance to the predictions of the `teacher`, a model of the same normalisation.
    """

    def __init__(
        self,
        model: nn.Module,
        data_norm: DataNorm,
        autocast: torch.dtype | None = None,
        channels_last: bool = True,
        teacher: nn.Module | None = None,
        weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.autocast, self.weight = model, autocast, weight
        self.teacher = None if teacher is None else teacher.requires_grad_(False)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.norm = Norm(data_norm)

    def forward(self, batch: Sequence[Sample]) -> Tensor:
        """Sum the absolute normalised errors of each sample; groups (`samples.group`) are in [0, 1]. float32 [B]."""
        preds = self._predict(self.model, batch, self.autocast)
        errors = [_error(pred, self.norm.target(group["gt"])) for pred, group in zip(preds, batch, strict=True)]
        if self.teacher is not None:
            with torch.no_grad():
                taught = self._predict(self.teacher, batch, self.autocast)
            distances = [_error(pred, lesson) for pred, lesson in zip(preds, taught, strict=True)]
            errors = [torch.lerp(*each, self.weight) for each in zip(errors, distances, strict=True)]
        return torch.cat(errors)

    def images(self, model: nn.Module, batch: Sequence[Sample]) -> list[Tensor]:
        """Predict each group's targets in float32, [b, Q, C] or [b, H, W, C], clamped to [0, 1] and not rounded."""
        preds = self._predict(model, batch, None)
        return [self.norm.values(pred).clamp(0, 1) for pred in preds]

    def _predict(self, model: nn.Module, batch: Sequence[Sample], autocast: torch.dtype | None) -> list[Tensor]:
        """Predict the normalised targets of each group."""
        groups = []
        for group in batch:
            inp = self.norm.inp(group["inp"]).contiguous(memory_format=self.format)
            groups.append({**group, "inp": inp})
        device = groups[0]["inp"].device.type
        with torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None):
            preds = _decode(model, groups)
        for pred, group in zip(preds, groups, strict=True):
            if pred.shape != group["gt"].shape:  # a loss would broadcast them
                raise ValueError(
                    "model: its output must have the shape of the targets "
                    f"{list(group['gt'].shape)} (batch, queries, channels), got {list(pred.shape)}"
                )
        return preds


def _error(pred: Tensor, target: Tensor) -> Tensor:
    """Sum the absolute errors of each sample, float32 [b]."""
    return (pred.float() - target.float()).abs().flatten(1).sum(1)


def _decode(model: Any, groups: Sequence[Sample]) -> list[Tensor]:
    """Encode inputs of equal size together, then decode each group separately."""
    if not isinstance(model, FeatureModel):
        return [_call(model, group) for group in groups]
    if len(groups) == 1 and "coord" in groups[0]:
        return [model(groups[0]["inp"], groups[0]["coord"], groups[0]["cell"])]
    together: dict[torch.Size, list[int]] = {}
    for number, group in enumerate(groups):
        together.setdefault(group["inp"].shape[1:], []).append(number)
    preds: dict[int, Tensor] = {}
    for numbers in together.values():
        inp = torch.cat([groups[number]["inp"] for number in numbers])
        sizes = [len(groups[number]["inp"]) for number in numbers]
        parts = zip(numbers, model.gen_feat(inp).split(sizes), inp.split(sizes), strict=True)
        for number, feat, part in parts:
            model.keep(feat, part)
            preds[number] = _query(model, groups[number])
    model.feat = model.inp = None  # they would keep the graph alive
    return [preds[number] for number in range(len(groups))]


def _query(model: FeatureModel, group: Sample) -> Tensor:
    if "coord" in group:
        return model.query_rgb(group["coord"], group["cell"])
    return model.render_rgb(group["gt"].shape[1:3]).permute(0, 2, 3, 1)


def _call(model: nn.Module, group: Sample) -> Tensor:
    """Call a user's model, which takes coordinates only, no grids."""
    if "coord" in group:
        return model(group["inp"], group["coord"], group["cell"])
    size, device = group["gt"].shape[1:3], group["inp"].device
    coord, cell = (grid.to(device).expand(len(group["inp"]), -1, -1) for grid in (make_coord(size), make_cell(size)))
    return model(group["inp"], coord, cell).unflatten(1, size)
