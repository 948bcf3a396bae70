"""LTE and LTE+ (Lee and Jin, arXiv 2111.08918): LIIF's corners, read through waves that the features choose."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from liif_fast import functional
from liif_fast.call import without_autocast
from liif_fast.checks import check_grid, check_queries
from liif_fast.family import render_by_query
from liif_fast.layers import Chain, fusable, linear_chain
from liif_fast.models.base import FeatureModel, render_in_strips
from liif_fast.models.interpolation import add_input
from liif_fast.models.registry import make, register


class _Fourier(FeatureModel):
    """Base of LTE and LTE+, which differ in the order of frequencies and in the modules of the network.

    A latent has hidden_dim amplitudes and hidden_dim / 2 frequencies, by two 3x3 convolutions of the features. The
    network reads amplitude * [cos, sin](pi * (frequency . rel + phase(cell))); the outputs of four corners are blended
    by area, and the input's bilinear interpolation is added.
    """

    reads_input = True
    clips_cell_above = 4.0  # of every published model, and of the authors' demo and test
    recompute: bool | None = None

    def __init__(self, encoder_spec: Mapping[str, Any], hidden_dim: int) -> None:
        super().__init__()
        if hidden_dim < 2 or hidden_dim % 2:
            raise ValueError(f"hidden_dim must be even and at least 2, got {hidden_dim}")
        self.encoder = make(encoder_spec, place="spec.args.encoder_spec")
        self.coef = nn.Conv2d(self.encoder.out_dim, hidden_dim, 3, padding=1)
        self.freq = nn.Conv2d(self.encoder.out_dim, hidden_dim, 3, padding=1)
        self.phase = nn.Linear(2, hidden_dim // 2, bias=False)

    def network(self) -> tuple[nn.Module, Chain | None]:
        """Return the network from [N, hidden_dim] to [N, out], and its weights if it can run fused."""
        raise NotImplementedError

    def waves(self, feat: Tensor) -> Tensor:
        """Return amplitudes and frequencies [B, 2 hidden_dim, H, W] as `functional.fourier_decode` takes them.

        They are in the parameters' dtype also under autocast, because a rounded frequency moves the wave.
        """
        with without_autocast(feat):
            feat = feat.to(self.coef.weight.dtype)
            return torch.cat((self.coef(feat), self._in_pairs(self.freq(feat))), 1)

    def _in_pairs(self, frequencies: Tensor) -> Tensor:
        """Return frequencies [B, hidden_dim, H, W] with each row's part before its column's."""
        return frequencies

    @property
    def renders_parts(self) -> bool:
        return self.network()[1] is not None

    @property
    def channels_out(self) -> int | None:
        _, chain = self.network()
        return None if chain is None else len(chain[1][-1])

    def query_rgb(self, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        feat = self.features()
        check_queries(feat, coord, cell, cell_decode=True)
        assert cell is not None
        network, chain = self.network()
        waves = self._waves_of(feat)
        if chain is None:
            pred = self._by_module(network, waves, coord, cell)
        else:
            options: dict[str, Any] = {"backend": self.backend, "recompute": self.recompute}
            pred = functional.fourier_decode(waves, coord, cell, self.phase.weight, *chain, **options)
        return add_input(pred, self.interpolate(coord), channel=2)

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

        Amplitudes and frequencies, 8 times as large as features of 64 channels, are made strip by strip.
        """
        feat, extent = self.features(), self._in_latents(extent)
        chain = self.network()[1]
        if chain is None:
            if place is not None:
                raise ValueError("place needs a network that runs fused (Linear and ReLU in turn)")
            return render_by_query(self.query_rgb, feat, size, region, cell, extent)
        height, width, window = check_grid(size, region)

        def strip(part: Tensor, window: Sequence[int], spot: Sequence[int]) -> Tensor:
            options: dict[str, Any] = {"backend": self.backend, "recompute": self.recompute}
            waves, phase = self.waves(part), self.phase.weight
            return functional.fourier_render(
                waves, size, phase, *chain, region=window, cell=cell, place=spot, extent=extent, **options
            )

        pred = render_in_strips(strip, feat, (height, width), window, place, extent, len(chain[1][-1]))
        shape = feat.shape[2:] if place is None else place[2:]
        return add_input(pred, self.interpolate_grid(size, region, extent, shape), channel=1)

    def _by_module(self, network: nn.Module, waves: Tensor, coord: Tensor, cell: Tensor) -> Tensor:
        x, weight = functional.gather_corners(waves, coord, cell, feat_unfold=False, backend=self.backend)
        pred = network(functional.fourier_features(x, self.phase.weight).flatten(0, 2)).unflatten(0, weight.shape)
        return (weight.unsqueeze(-1) * pred).sum(2)

    def _waves_of(self, feat: Tensor) -> Tensor:
        """Return the waves of the whole map; without gradients they are kept as long as the features live."""
        if torch.is_grad_enabled():
            return self.waves(feat)
        kept = self._kept()
        if feat not in kept:
            kept[feat] = self.waves(feat)
        return kept[feat]

    def _kept(self) -> WeakTensorKeyDictionary:
        return self.__dict__.setdefault("_waves_kept", WeakTensorKeyDictionary())

    def keep(self, feat: Tensor, inp: Tensor) -> None:
        self._kept().pop(feat, None)  # of other weights, maybe
        super().keep(feat, inp)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_waves_kept", None)
        return state


@register("lte")
class LTE(_Fourier):
    """LTE with the constructor, methods and parameter names of the authors' code.

    Args:
        encoder_spec: spec of the encoder, a module with `out_dim`.
        imnet_spec: spec of the network without its in_dim, `{'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list':
            [256] * 3}}` in the paper.
        hidden_dim: amplitudes per latent, even.

    Attributes:
        recompute: as `LIIFDecoder`'s, None at first.

    Raises:
        ValueError: hidden_dim is odd or below 2.
    """

    def __init__(self, encoder_spec: Mapping[str, Any], imnet_spec: Mapping[str, Any], hidden_dim: int = 256) -> None:
        super().__init__(encoder_spec, hidden_dim)
        self.imnet = make(imnet_spec, args={"in_dim": hidden_dim}, place="spec.args.imnet_spec")
        args = {"encoder_spec": encoder_spec, "imnet_spec": imnet_spec, "hidden_dim": hidden_dim}
        self.spec = {"name": "lte", "args": copy.deepcopy(args)}

    def network(self) -> tuple[nn.Module, Chain | None]:
        return self.imnet, fusable(self.imnet)


@register("lte-fast")
class LTEPlus(_Fourier):
    """LTE+, the same function with other names: 1x1 convolutions, and frequencies whose row parts all come first.

    Args:
        encoder_spec: as for `LTE`.
        num_layer: hidden layers of the network.
        hidden_dim: amplitudes per latent, and width of every hidden layer; even.
        out_dim: channels of the output.

    Attributes:
        recompute: as `LIIFDecoder`'s, None at first.

    Raises:
        ValueError: hidden_dim is odd or below 2, or num_layer below 0.
    """

    def __init__(
        self, encoder_spec: Mapping[str, Any], num_layer: int = 3, hidden_dim: int = 256, out_dim: int = 3
    ) -> None:
        super().__init__(encoder_spec, hidden_dim)
        if num_layer < 0:
            raise ValueError(f"num_layer must be at least 0, got {num_layer}")
        layers: list[nn.Module] = []
        for _ in range(num_layer):
            layers += [nn.Conv2d(hidden_dim, hidden_dim, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden_dim, out_dim, 1))
        args = {"encoder_spec": encoder_spec, "num_layer": num_layer, "hidden_dim": hidden_dim, "out_dim": out_dim}
        self.spec = {"name": "lte-fast", "args": copy.deepcopy(args)}

    def _in_pairs(self, frequencies: Tensor) -> Tensor:
        return by_pairs(frequencies)

    def network(self) -> tuple[nn.Module, Chain | None]:
        return _Rows(self.layers), linear_chain(self.layers, nn.Conv2d)


def by_pairs(frequencies: Tensor) -> Tensor:
    """Turn LTE+'s frequencies [B, 2 K, H, W], all row parts first, into LTE's, each row's part before its column's."""
    return frequencies.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class _Rows(nn.Module):
    """1x1 convolutions as a network of rows [N, in] to [N, out]."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x[:, :, None, None]).flatten(1)
