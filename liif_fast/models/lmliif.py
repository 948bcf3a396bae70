"""LM-LIIF (He and Jin, arXiv 2404.16451): a large network per latent, a tiny one per query that it modulates."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liif_fast import functional
from liif_fast.checks import check_extent, check_grid, check_queries, grid_cell
from liif_fast.coord import lattice
from liif_fast.family import render_by_query
from liif_fast.layers import MLP, Chain, chain_of, fusable
from liif_fast.models.base import FeatureModel, render_in_strips
from liif_fast.models.registry import make, register


@register("lmmlp")
class ModulatedMLP(nn.Module):
    """The network of a query: hidden layers relu((W h + b) * (1 + scale) + shift), and a linear one.

    Args:
        in_dim, out_dim: widths of the input and of the output.
        hidden_dim, hidden_depth: width and number of the hidden layers.
        mod_scale, mod_shift: whether the latent modulates by a factor and by a summand.

    Raises:
        ValueError: hidden_depth is below 1.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int,
        hidden_depth: int,
        mod_scale: bool = True,
        mod_shift: bool = True,
    ) -> None:
        super().__init__()
        if hidden_depth < 1:
            raise ValueError(f"hidden_depth must be at least 1, got {hidden_depth}")
        self.layers = MLP(in_dim, out_dim, [hidden_dim] * hidden_depth).layers
        self.hidden_dim, self.hidden_depth = hidden_dim, hidden_depth
        self.mod_scale, self.mod_shift = mod_scale, mod_shift

    def forward(self, x: Tensor, scales: Tensor, shifts: Tensor) -> Tensor:
        """Map [N, in_dim] and modulations [N, hidden_depth * hidden_dim] each to [N, out_dim]."""
        parts = zip(scales.split(self.hidden_dim, -1), shifts.split(self.hidden_dim, -1), strict=True)
        *hidden, last = self.layers
        for linear, relu, (scale, shift) in zip(hidden[::2], hidden[1::2], parts, strict=True):
            x = relu(linear(x) * (scale + 1) + shift)
        return last(x)


@register("lm-liif")
@register("lmliif")  # the name in files and configurations of the authors
class LMLIIF(FeatureModel):
    """LM-LIIF with the parameter names of the authors' code, without its multi-scale rendering (CMSR).

    `hypernet` turns a latent's 3x3 neighbourhood and the image's cell into scales, shifts and features; `imnet` decodes
    a corner's features, rel and cell with them. The corners are blended by area.

    Args:
        encoder_spec: spec of the encoder, a module with `out_dim`.
        imnet_spec: `{'name': 'lmmlp', 'args': {'out_dim', 'hidden_dim', 'hidden_depth', 'mod_scale', 'mod_shift'}}`.
        hypernet_spec: spec of the network of a latent without its in_dim and out_dim, e.g. `{'name': 'mlp', 'args':
            {'hidden_list': [208]}}`; an out_dim in it is overwritten, as in the authors' code.
        local_ensemble, feat_unfold, cell_decode: as for LIIF.
        mod_input: `hypernet` also makes the features, hidden_dim of them; otherwise they are the encoder's.
        cmsr_spec: None.

    Raises:
        ValueError: cmsr_spec is given, or the hidden_depth is below 1.
    """

    clips_cell_above = 4.0  # of the published models, and of the authors' demo and test
    recompute: bool | None = None

    def __init__(
        self,
        encoder_spec: Mapping[str, Any],
        imnet_spec: Mapping[str, Any],
        hypernet_spec: Mapping[str, Any],
        local_ensemble: bool = True,
        feat_unfold: bool = True,
        cell_decode: bool = True,
        mod_input: bool = False,
        cmsr_spec: None = None,
    ) -> None:
        super().__init__()
        if cmsr_spec is not None:
            raise ValueError("cmsr_spec must be None: multi-scale rendering is not supported")
        self.local_ensemble, self.feat_unfold = local_ensemble, feat_unfold
        self.cell_decode, self.mod_input = cell_decode, mod_input
        self.encoder = make(encoder_spec, place="spec.args.encoder_spec")
        own, places = dict(imnet_spec.get("args") or {}), 4 if cell_decode else 2
        features = own.get("hidden_dim", 0) if mod_input else self.encoder.out_dim
        imnet: Any = make(imnet_spec, args={"in_dim": features + places}, place="spec.args.imnet_spec")
        count = imnet.hidden_depth * imnet.hidden_dim
        outs = count * (imnet.mod_scale + imnet.mod_shift) + features * mod_input
        ins = self.encoder.out_dim * (9 if feat_unfold else 1) + places - 2
        self.hypernet = make(hypernet_spec, args={"in_dim": ins, "out_dim": outs}, place="spec.args.hypernet_spec")
        self.imnet = imnet
        args: dict[str, Any] = {"encoder_spec": encoder_spec, "imnet_spec": imnet_spec, "hypernet_spec": hypernet_spec}
        args |= {"local_ensemble": local_ensemble, "feat_unfold": feat_unfold, "cell_decode": cell_decode}
        self.spec = {"name": "lmliif", "args": copy.deepcopy(args | {"mod_input": mod_input})}

    @property
    def renders_parts(self) -> bool:
        return self._chain() is not None

    @property
    def channels_out(self) -> int | None:
        chain = self._chain()
        return None if chain is None else len(chain[1][-1])

    def _chain(self) -> Chain | None:
        """Return the weights of `imnet`, if it can run fused."""
        return chain_of(self.imnet) if type(self.imnet).forward is ModulatedMLP.forward else None

    def _switches(self) -> dict[str, Any]:
        return {"local_ensemble": self.local_ensemble, "cell_decode": self.cell_decode}

    def modulations(self, feat: Tensor, cell: Tensor | None, shape: Sequence[int]) -> Tensor:
        """Return scales, shifts and features as `functional.modulated_decode` takes them.

        Args:
            feat: [B, C, H, W].
            cell: [B, 2], of each image; None without cell_decode.
            shape: (H, W) of the map of which feat may be a part.
        """
        x = (F.unfold(feat, 3, padding=1) if self.feat_unfold else feat.flatten(2)).transpose(1, 2)  # [B, H W, C']
        if cell is not None:
            scaled = torch.stack((cell[:, 0] * shape[0], cell[:, 1] * shape[1]), -1).to(x.dtype)
            x = torch.cat((x, scaled.unsqueeze(1).expand(-1, x.shape[1], -1)), -1)
        chain = fusable(self.hypernet)
        if chain is None:
            made = self.hypernet(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        else:
            made = functional.fused_mlp(x, *chain, backend=self.backend)
        made = made.transpose(1, 2).unflatten(2, feat.shape[2:])
        count = self.imnet.hidden_depth * self.imnet.hidden_dim
        none = made.new_zeros(len(made), count, *made.shape[2:])
        if self.imnet.mod_scale and self.imnet.mod_shift and self.mod_input:
            return made  # in this order already
        scales = made[:, :count] if self.imnet.mod_scale else none
        first = count if self.imnet.mod_scale else 0
        shifts = made[:, first : first + count] if self.imnet.mod_shift else none
        features = made[:, first + count * self.imnet.mod_shift :] if self.mod_input else feat.to(made.dtype)
        return torch.cat((scales, shifts, features), 1)

    def query_rgb(self, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        """Decode as `FeatureModel.query_rgb`; latents are modulated for the cell of each image's first query."""
        feat = self.features()
        cell = check_queries(feat, coord, cell, self.cell_decode)
        if not coord.shape[1]:
            return feat.new_zeros(*coord.shape[:2], self.imnet.layers[-1].out_features)
        modulated = self.modulations(feat, None if cell is None else cell[:, 0], feat.shape[2:])
        chain = self._chain()
        if chain is not None:
            options = self._switches() | {"backend": self.backend, "recompute": self.recompute}
            return functional.modulated_decode(modulated, coord, cell, *chain, **options)
        x, weight = functional.gather_corners(
            modulated, coord, cell, feat_unfold=False, backend=self.backend, **self._switches()
        )
        count = self.imnet.hidden_depth * self.imnet.hidden_dim
        scales, shifts, x = x.flatten(0, 2).split([count, count, x.shape[-1] - 2 * count], -1)
        pred = self.imnet(x, scales, shifts).unflatten(0, weight.shape)
        return (weight.unsqueeze(-1) * pred).sum(2)

    def render_rgb(
        self,
        size: Sequence[int],
        region: Sequence[int] | None = None,
        cell: Tensor | Sequence[float] | None = None,
        place: Sequence[int] | None = None,
        *,
        extent: Sequence[float] | None = None,
    ) -> Tensor:
        """Decode a grid as `FeatureModel.render_rgb`; if fused, `place` works as in `functional.liif_render`.

        Modulations, which take 3 times as much as features of 64 channels, are made strip by strip.
        """
        feat, chain, extent = self.features(), self._chain(), self._in_latents(extent)
        if chain is None:
            if place is not None:
                raise ValueError("place needs an imnet that runs fused (without hooks)")
            return render_by_query(self.query_rgb, feat, size, region, cell, extent)
        height, width, window = check_grid(size, region)
        if cell is None and extent is not None:
            whole = feat.shape[2:] if place is None else place[2:]
            cell = lattice((height, width), check_extent(extent, whole), whole)[::2]
        cells = grid_cell(feat, height, width, cell) if self.cell_decode else None

        def strip(part: Tensor, window: Sequence[int], spot: Sequence[int]) -> Tensor:
            options = self._switches() | {"backend": self.backend, "recompute": self.recompute}
            modulated = self.modulations(part, cells, spot[2:])
            return functional.modulated_render(
                modulated, size, *chain, region=window, cell=cells, place=spot, extent=extent, **options
            )

        return render_in_strips(strip, feat, (height, width), window, place, extent, len(chain[1][-1]))
