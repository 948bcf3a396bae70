"""Modules: the multilayer perceptron of LIIF and its decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from liif_fast import functional


def _perceptron(in_dim: int, out_dim: int, hidden_list: Sequence[int]) -> nn.Sequential:
    """Linear and ReLU in turn, then a Linear; the indices of the Linears, 0, 2, 4, ..., name the checkpoint's keys."""
    layers: list[nn.Module] = []
    for width in hidden_list:
        layers += [nn.Linear(in_dim, width), nn.ReLU()]
        in_dim = width
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim))


def linear_parameters(layers: nn.Sequential) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights and the biases of the Linears among `layers`, in order."""
    # Read from the modules, not from parameters(): the replicas of DataParallel have no parameters.
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return [linear.weight for linear in linears], [linear.bias for linear in linears]


class MLP(nn.Module):
    """LIIF's multilayer perceptron, Linear and ReLU in turn, with parameters `layers.{0,2,...}.{weight,bias}`.

    Args:
        in_dim: width of the input.
        out_dim: width of the output.
        hidden_list: widths of the hidden layers.

    Source: LIIF (arXiv 2012.09161), section 4.1.
    """

    def __init__(self, in_dim: int, out_dim: int, hidden_list: Sequence[int]) -> None:
        super().__init__()
        self.layers = _perceptron(in_dim, out_dim, hidden_list)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_dim] to [..., out_dim]."""
        return functional.fused_mlp(x, *linear_parameters(self.layers))


class LIIFDecoder(nn.Module):
    """LIIF's decoder: a continuous image from a feature map, with parameters `layers.{0,2,...}.{weight,bias}`.

    Args:
        in_channels: C, channels of the feature map.
        out_channels: channels of the image.
        hidden_list: widths of the MLP's hidden layers.
        local_ensemble: blend the predictions from the four nearest latents; else the nearest one's.
        feat_unfold: concatenate the 3x3 neighbourhood of each latent.
        cell_decode: give the network the size of the query's pixel.
        backend: "auto" or the name of a backend; see `liif_fast.explain`.

    Source: LIIF (arXiv 2012.09161), section 3.
    """

    def __init__(
        self,
        in_channels: int = 64,
        out_channels: int = 3,
        hidden_list: Sequence[int] = (256, 256, 256, 256),
        local_ensemble: bool = True,
        feat_unfold: bool = True,
        cell_decode: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.local_ensemble = local_ensemble
        self.feat_unfold = feat_unfold
        self.cell_decode = cell_decode
        self.backend = backend
        in_dim = in_channels * (9 if feat_unfold else 1) + (4 if cell_decode else 2)
        self.layers = _perceptron(in_dim, out_channels, hidden_list)

    def forward(self, feat: Tensor, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        """Decode queries; arguments and result as `functional.liif_decode`."""
        weights, biases = linear_parameters(self.layers)
        return functional.liif_decode(
            feat,
            coord,
            cell,
            weights,
            biases,
            feat_unfold=self.feat_unfold,
            local_ensemble=self.local_ensemble,
            cell_decode=self.cell_decode,
            backend=self.backend,
        )

    def render(
        self,
        feat: Tensor,
        size: Sequence[int],
        region: Sequence[int] | None = None,
        cell: Tensor | Sequence[float] | None = None,
    ) -> Tensor:
        """Decode a regular grid or a window of it; arguments and result as `functional.liif_render`."""
        weights, biases = linear_parameters(self.layers)
        return functional.liif_render(
            feat,
            size,
            weights,
            biases,
            region=region,
            cell=cell,
            feat_unfold=self.feat_unfold,
            local_ensemble=self.local_ensemble,
            cell_decode=self.cell_decode,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Say the options that the layers do not show."""
        return (
            f"local_ensemble={self.local_ensemble}, feat_unfold={self.feat_unfold}, "
            f"cell_decode={self.cell_decode}, backend={self.backend!r}"
        )
