"""LIIF (Chen et al., arXiv 2012.09161): an encoder, and a decoder queried at continuous coordinates."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from liif_fast.checks import check_queries
from liif_fast.layers import Decoding, fusable
from liif_fast.models.base import FeatureModel
from liif_fast.models.interpolation import add_input
from liif_fast.models.registry import make, register


@register("liif")
class LIIF(Decoding, FeatureModel):
    """LIIF with the constructor, methods and parameter names of the original, decoding through our kernels.

    Args:
        encoder_spec: spec of the encoder, a module with `out_dim`.
        imnet_spec: spec of the decoding network without its in_dim, e.g. `{'name': 'mlp', 'args': {'out_dim': 3,
            'hidden_list': [256] * 4}}`. Any registered module `[N, in_dim] -> [N, out]` works. An `mlp`, or an
            nn.Sequential of alternating Linear and ReLU, runs fused.
            None: a query reads its nearest feature, and 0 outside [-1, 1].
        local_ensemble: blend the predictions of four corners by area (paper section 3, eq. 4).
        feat_unfold: concatenate each feature's 3x3 neighbourhood (eq. 3).
        cell_decode: give the network the query's cell (eq. 5).
        residual: None, or "bilinear" to add the input's bilinear interpolation (clamped at the border), as LTE does;
            not in the original.

    Attributes:
        recompute: as for `LIIFDecoder`, initially None.

    Raises:
        ValueError: residual is neither None nor "bilinear".
    """

    def __init__(
        self,
        encoder_spec: Mapping[str, Any],
        imnet_spec: Mapping[str, Any] | None = None,
        local_ensemble: bool = True,
        feat_unfold: bool = True,
        cell_decode: bool = True,
        residual: str | None = None,
    ) -> None:
        super().__init__()
        if residual not in (None, "bilinear"):
            raise ValueError(f"residual must be None or 'bilinear', got {residual!r}")
        self.local_ensemble = local_ensemble
        self.feat_unfold = feat_unfold
        self.cell_decode = cell_decode
        self.residual = residual
        self.encoder = make(encoder_spec, place="spec.args.encoder_spec")
        self.imnet: nn.Module | None = None
        if imnet_spec is not None:
            self.imnet = make(
                imnet_spec, args={"in_dim": self._in_dim(self.encoder.out_dim)}, place="spec.args.imnet_spec"
            )
        args: dict[str, Any] = {"encoder_spec": encoder_spec, "imnet_spec": imnet_spec}
        args |= {"local_ensemble": local_ensemble, "feat_unfold": feat_unfold, "cell_decode": cell_decode}
        if residual is not None:  # the original's constructor does not have it
            args["residual"] = residual
        self.spec = {"name": "liif", "args": copy.deepcopy(args)}

    @property
    def channels_out(self) -> int | None:
        if self.imnet is None:
            return getattr(self.encoder, "out_dim", None)
        chain = fusable(self.imnet)
        return None if chain is None else len(chain[1][-1])

    @property
    def reads_input(self) -> bool:
        return self.residual is not None

    @property
    def renders_parts(self) -> bool:
        return fusable(self.imnet) is not None

    def query_rgb(self, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        feat = self.features()
        pred = self._decode(self.imnet, feat, coord, cell)
        return pred if self.residual is None else add_input(pred, self.interpolate(coord), channel=2)

    def render_rgb(
        self,
        size: Sequence[int],
        region: Sequence[int] | None = None,
        cell: Tensor | Sequence[float] | None = None,
        place: Sequence[int] | None = None,
        *,
        extent: Sequence[float] | None = None,
    ) -> Tensor:
        """Decode a grid as `FeatureModel.render_rgb`; if fused, `place` works as in `functional.liif_render`."""
        feat, extent = self.features(), self._in_latents(extent)
        pred = self._decode_grid(self.imnet, feat, size, region, cell, place, extent)
        if self.residual is None:
            return pred
        shape = feat.shape[2:] if place is None else place[2:]
        return add_input(pred, self.interpolate_grid(size, region, extent, shape), channel=1)

    def _decode(self, network: Any, feat: Tensor, coord: Tensor, cell: Tensor | None) -> Tensor:
        if network is not None:
            return super()._decode(network, feat, coord, cell)
        check_queries(feat, coord, None, cell_decode=False)
        return nearest_feature(feat, coord)


def nearest_feature(feat: Tensor, coord: Tensor) -> Tensor:
    """Return the nearest latent of each query, `[B, Q, C]` in feat's dtype; 0 outside the map."""
    height, width = feat.shape[2:]
    n = torch.tensor([height, width], device=coord.device)
    index = (((coord + 1) * n - 1) / 2).round()
    inside = ((index >= 0) & (index < n)).all(-1, keepdim=True)
    row, col = torch.where(inside, index, 0).long().unbind(-1)
    flat = (row * width + col)[:, None].expand(-1, feat.shape[1], -1)
    return torch.where(inside, feat.flatten(2).gather(2, flat).transpose(1, 2), 0)
