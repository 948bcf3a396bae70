"""MetaSR (Hu et al., arXiv 1903.00875) as LIIF's code base trains it: a weight matrix for every query."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from liif_fast import functional
from liif_fast.checks import check_queries
from liif_fast.coord import centres
from liif_fast.models.base import FeatureModel
from liif_fast.models.registry import make, register

CHUNK_QUERIES = 1 << 12  # of the whole batch in inference; 4096 matrices of 576 x 3 take 27 MiB


@register("metasr")
class MetaSR(FeatureModel):
    """MetaSR with the constructor, methods and parameter names of the original.

    An MLP `3 -> 256 -> C*9 * 3` predicts the matrix that maps a latent's 3x3 neighbourhood to a colour. Its input is
    the query's position inside the latent's pixel and the height of its cell.

    Args:
        encoder_spec: spec of the encoder, a module with `out_dim`.

    Attributes:
        backend: the backend that gathers the features, initially "auto".
        feat: features of the last image, `[B, C, H, W]`; None before `gen_feat`.
    """

    def __init__(self, encoder_spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder = make(encoder_spec, place="spec.args.encoder_spec")
        args = {"in_dim": 3, "out_dim": self.encoder.out_dim * 9 * self.channels_in, "hidden_list": [256]}
        self.imnet = make({"name": "mlp", "args": args})
        self.spec = {"name": "metasr", "args": {"encoder_spec": copy.deepcopy(dict(encoder_spec))}}

    @property
    def channels_out(self) -> int:
        return self.channels_in

    def query_rgb(self, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        return query(self.features(), coord, cell, self.imnet, self.backend)


def query(feat: Tensor, coord: Tensor, cell: Tensor | None, imnet: nn.Module, backend: str) -> Tensor:
    """Decode `[B, C, H, W]` at coord and cell `[B, Q, 2]` to `[B, Q, out]`; without gradients in chunks.

    `imnet` predicts `[N, C*9 * out]` from `[N, 3]`.
    """
    cell = check_queries(feat, coord, cell, cell_decode=True)
    assert cell is not None
    if torch.is_grad_enabled():
        return _query(feat, coord, cell, imnet, backend)
    chunk = max(1, CHUNK_QUERIES // max(1, len(feat)))
    parts = zip(coord.split(chunk, 1), cell.split(chunk, 1), strict=True)
    return torch.cat([_query(feat, *part, imnet, backend) for part in parts], 1)


def _query(feat: Tensor, coord: Tensor, cell: Tensor, imnet: nn.Module, backend: str) -> Tensor:
    shape = feat.shape[2:]
    n = torch.tensor(shape, dtype=torch.float32, device=coord.device)
    q = coord - cell / 2
    index, _, _ = functional.corner_plan(q + 1e-6, shape, local_ensemble=False)
    rows, cols = (centres(size, device=coord.device) - 1 / size for size in shape)
    row, col = index[:, :, 0].unbind(-1)
    corner = torch.stack((rows[row], cols[col]), -1)
    rel = (q - corner) * (n / 2)
    scale = cell[..., :1] * (n[0] / 2)
    inp = torch.cat((rel, scale), -1)

    z, _ = functional.gather_corners(feat, q + 1e-6, None, local_ensemble=False, cell_decode=False, backend=backend)
    z = z[:, :, :, : feat.shape[1] * 9]  # [B, Q, 1, C*9]: without rel
    dtype = next(imnet.parameters()).dtype
    weights = imnet(inp.to(dtype).flatten(0, 1)).unflatten(0, coord.shape[:2])
    return (z @ weights.unflatten(-1, (z.shape[-1], -1)))[:, :, 0]
