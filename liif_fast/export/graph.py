"""LIIF in operators that every runtime has, as modules for torch.onnx.export.

The corner plan of a grid is a product of its axes, so h + w values describe it. They are inputs of the graph, because
runtimes round differently, and at odd scales rounding decides which latents are read.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liif_fast.coord import AREA_FLOOR, EPSILON
from liif_fast.layers import fusable
from liif_fast.models.liif import LIIF
from liif_fast.models.norm import Norm


class Encoder(nn.Module):
    """Encode an image [1, C, H, W] in [0, 1] to projected latents [s*H, s*W, hidden] in `dtype`."""

    def __init__(self, model: LIIF, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.dtype = Norm(model.data_norm), dtype
        self.encoder = copy.deepcopy(model.encoder).to("cpu", dtype)
        weight, bias = _layers(model)[0]
        side = 3 if model.feat_unfold else 1
        latent = model.encoder.out_dim * side**2
        self.kernel = nn.Parameter(weight[:, :latent].unflatten(1, (-1, side, side)).to(dtype))
        self.bias = nn.Parameter(bias.to(dtype))

    def forward(self, image: Tensor) -> Tensor:
        feat = self.encoder(self.norm.inp(image).to(self.dtype))
        return F.conv2d(feat, self.kernel, self.bias, padding=self.kernel.shape[2] // 2)[0].permute(1, 2, 0)


class Decoder(nn.Module):
    """Decode projected latents at the grid of a plan to an image [1, C, h, w] in [0, 1].

    The plan is index int64 and rel float32, [2, h] and [2, w] (without local ensemble [1, ...]). Places, areas and the
    last layer are float32; the hidden layers are in `dtype`.
    """

    floor: Tensor

    def __init__(self, model: LIIF, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.dtype = Norm(model.data_norm), dtype
        self.cell_decode, self.residual, self.enlargement = model.cell_decode, model.reads_input, model.enlargement
        (first, _), *rest = _layers(model)
        latent = first.shape[1] - (4 if model.cell_decode else 2)
        self.place = nn.Parameter(first[:, latent:].t().contiguous())  # of rel_row, rel_column and the cell's two
        self.weights = nn.ParameterList(weight.t().contiguous().to(dtype) for weight, _ in rest[:-1])
        self.biases = nn.ParameterList(bias.to(dtype) for _, bias in rest[:-1])
        self.last = nn.ParameterList([rest[-1][0].t().contiguous(), rest[-1][1]] if rest else [])
        # Of shape [1], because the exporter's optimiser treats a scalar below 1e-8 as zero.
        self.register_buffer("floor", torch.tensor([AREA_FLOOR]), persistent=False)

    def forward(
        self,
        image: Tensor,
        latents: Tensor,
        row_index: Tensor,
        column_index: Tensor,
        row_rel: Tensor,
        column_rel: Tensor,
        cell: Tensor,
    ) -> Tensor:
        corners, height = row_index.shape
        width = column_index.shape[1]
        index = row_index[:, None, :, None] * latents.shape[1] + column_index[None, :, None, :]  # [k, k, h, w]
        rows = row_rel[:, None, :, None, None] * self.place[0]  # [k, 1, h, 1, hidden]
        if self.cell_decode:
            rows = rows + cell @ self.place[2:]
        columns = column_rel[None, :, None, :, None] * self.place[1]
        place = (rows + columns).reshape(corners * corners * height * width, -1)
        x = latents.flatten(0, 1).index_select(0, index.flatten()).float() + place
        if self.last:
            x = F.relu(x).to(self.dtype)
            for weight, bias in zip(self.weights, self.biases, strict=True):
                x = F.relu(x @ weight + bias)
            x = x.float() @ self.last[0] + self.last[1]
        x = x.reshape(corners * corners, height, width, -1)
        if corners == 2:
            area = (row_rel[:, None, :, None] * column_rel[None, :, None, :]).abs() + self.floor
            first, second, third, fourth = area[0, 0], area[0, 1], area[1, 0], area[1, 1]
            swapped = torch.stack((fourth, third, second, first)) / (((first + second) + third) + fourth)
            x = x * swapped[..., None]
        out = x.sum(0).permute(2, 0, 1)[None]
        if self.residual:
            base = self._between(self.norm.inp(image), 2, row_index[0], row_rel[0])
            out = out + self._between(base, 3, column_index[0], column_rel[0])
        return self.norm.image(out).clamp(0, 1)

    def _between(self, image: Tensor, axis: int, index: Tensor, rel: Tensor) -> Tensor:
        """Interpolate linearly along an axis at a plan's places, clamped at the border.

        rel is in halves of a latent's width; a pixel of the image has `enlargement` latents.
        """
        pixel = torch.div(index, self.enlargement, rounding_mode="trunc")
        offset = ((index - pixel * self.enlargement) + 0.5 + rel / 2) / self.enlargement - 0.5
        whole = offset.floor()
        part = (offset - whole)[:, None] if axis == 2 else offset - whole
        low = pixel + whole.long()
        last = image.shape[axis] - 1
        one, other = (image.index_select(axis, each.clamp(min=0).clamp(max=last)) for each in (low, low + 1))
        return one * (1 - part) + other * part


class Whole(nn.Module):
    """Encoder and decoder in one graph, with the plan as inputs."""

    def __init__(self, model: LIIF, dtype: torch.dtype) -> None:
        super().__init__()
        self.encode, self.decode = Encoder(model, dtype), Decoder(model, dtype)

    def forward(
        self,
        image: Tensor,
        row_index: Tensor,
        column_index: Tensor,
        row_rel: Tensor,
        column_rel: Tensor,
        cell: Tensor,
    ) -> Tensor:
        return self.decode(image, self.encode(image), row_index, column_index, row_rel, column_rel, cell)


class Planned(nn.Module):
    """Encoder and decoder in one graph that makes the plan itself, from the output's size int64 [2]."""

    def __init__(self, model: LIIF, dtype: torch.dtype) -> None:
        super().__init__()
        self.encode, self.decode = Encoder(model, dtype), Decoder(model, dtype)
        self.corners = 2 if model.local_ensemble else 1

    def forward(self, image: Tensor, size: Tensor) -> Tensor:
        latents = self.encode(image)
        axes = []
        cell = []
        for queries, n in zip(size.unbind(), latents.shape[:2], strict=True):
            latents_n = torch.scalar_tensor(n, dtype=torch.float64)
            axes.append(self._axis(queries, latents_n))
            cell.append((2 / queries.double()).float() * latents_n.float())
        (row_index, row_rel), (column_index, column_rel) = axes
        return self.decode(image, latents, row_index, column_index, row_rel, column_rel, torch.stack(cell))

    def _axis(self, queries: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """Return index and rel of an axis; scalars are double and rounded once, as in `liif_fast.coord`."""
        count = queries.item()
        torch._check(count >= 1)
        coord = _centres(torch.arange(count), queries.double())
        if self.corners == 2:
            shifted = torch.stack([coord + (v / n + EPSILON).float() for v in (-1, 1)])
        else:
            shifted = coord[None]
        single = n.float()
        index = (((shifted.clamp(-1 + EPSILON, 1 - EPSILON) + 1) * single - 1) * 0.5).round().clamp(min=0)
        index = torch.minimum(index, single - 1).long()
        return index, (coord - _centres(index, n)) * single


def _centres(index: Tensor, n: Tensor) -> Tensor:
    return index.float() * (2 / n).float() + (-1 + 1 / n).float()


def _layers(model: LIIF) -> list[tuple[Tensor, Tensor]]:
    chain: Any = fusable(model.imnet)
    return [(weight.detach().cpu().float(), bias.detach().cpu().float()) for weight, bias in zip(*chain, strict=True)]
