"""Define the modules of LIIF: the multilayer perceptron and the decoder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from liif_fast import functional
from liif_fast.checks import check_integers, check_queries
from liif_fast.family import render_by_query

GATHER_QUERIES = 1 << 13  # queries of a batch that a network of any kind decodes at a time, in inference

Chain = tuple[list[Tensor], list[Tensor]]


def _perceptron(in_dim: int, out_dim: int, hidden_list: Sequence[int]) -> nn.Sequential:
    """Build Linear and ReLU in turn, then a Linear, whose indices 0, 2, 4, ... give the checkpoint's keys."""
    form = "a list of positive integers"
    widths = check_integers("hidden_list", hidden_list, form)
    if any(isinstance(width, bool) or width < 1 for width in widths):
        raise ValueError(f"hidden_list must be {form}, got {hidden_list!r:.80}")
    for name, width in (("in_dim", in_dim), ("out_dim", out_dim)):
        if width < 1:
            raise ValueError(f"{name} must be positive, got {width}")
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(in_dim, width), nn.ReLU()]
        in_dim = width
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim))


def linear_chain(layers: Any, kind: type[nn.Linear | nn.Conv2d] = nn.Linear) -> Chain | None:
    """Return (weights, biases) of layers that are Linear, ReLU, ..., Linear and do nothing else when called.

    `kind` nn.Conv2d takes 1x1 convolutions in the place of Linear. Return None if the modules themselves must run, for
    another layer, one without bias, a parametrization or a hook. Ask at every call, because a user may change the
    layers or add hooks.
    """
    if type(layers) is not nn.Sequential or len(layers) % 2 == 0 or altered(layers):
        return None
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for position, layer in enumerate(layers):
        if type(layer) is not (nn.ReLU if position % 2 else kind) or altered(layer):
            return None
        if isinstance(layer, nn.Linear | nn.Conv2d):
            # Read from the modules, not from parameters(), because DataParallel's replicas have no parameters.
            weight, bias = layer.weight, layer.bias
            if bias is None or (isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)):
                return None
            weights.append(weight if kind is nn.Linear else weight.flatten(1))
            biases.append(bias)
    return weights, biases


def altered(module: nn.Module) -> bool:
    """Say whether a call does more than the class's `forward`, because the module has hooks or its own `forward`."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def decode_by_module(
    network: nn.Module, feat: Tensor, coord: Tensor, cell: Tensor | None, backend: str, switches: dict[str, Any]
) -> Tensor:
    """Decode queries through a network [N, in_dim] to [N, out], in chunks if gradients are off.

    Returns [B, Q, out] in the network's dtype; under autocast at least float32.
    """

    def decode(coord: Tensor, cell: Tensor | None) -> Tensor:
        x, weight = functional.gather_corners(feat, coord, cell, backend=backend, **switches)
        pred = network(x.flatten(0, 2)).unflatten(0, x.shape[:3])
        out = (pred * weight[..., None]).sum(2)
        return out if torch.is_autocast_enabled(feat.device.type) else out.to(pred.dtype)

    if torch.is_grad_enabled() or coord.shape[1] <= GATHER_QUERIES:
        return decode(coord, cell)
    cell = check_queries(feat, coord, cell, switches["cell_decode"])
    chunks = [slice(i, i + GATHER_QUERIES) for i in range(0, coord.shape[1], GATHER_QUERIES)]
    return torch.cat([decode(coord[:, chunk], None if cell is None else cell[:, chunk]) for chunk in chunks], 1)


class MLP(nn.Module):
    """Apply LIIF's multilayer perceptron, Linear and ReLU in turn.

    Its parameters are `layers.{0,2,...}.{weight,bias}`. You may change, hook or parametrize `layers`; it then runs as
    it is instead of fused. Global hooks (`torch.nn.modules.module.register_module_forward_hook`) see the fused module
    as one: PyTorch's FLOP counter and profiler set such hooks, and must measure the fused call.

    Args:
        in_dim: width of the input.
        out_dim: width of the output.
        hidden_list: widths of the hidden layers.

    Raises:
        TypeError, ValueError: hidden_list is not a list of positive integers, or another width is below 1.

    Source: LIIF (arXiv 2012.09161), section 4.1.
    """

    def __init__(self, in_dim: int, out_dim: int, hidden_list: Sequence[int]) -> None:
        super().__init__()
        self.layers = _perceptron(in_dim, out_dim, hidden_list)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_dim] to [..., out_dim]."""
        chain = linear_chain(self.layers)
        return self.layers(x) if chain is None else functional.fused_mlp(x, *chain)


def chain_of(module: nn.Module) -> Chain | None:
    """Return `linear_chain` of `module.layers`; None if the module is altered."""
    return None if altered(module) else linear_chain(getattr(module, "layers", None))


def fusable(network: nn.Module | None) -> Chain | None:
    """Return weights and biases of an `MLP` or a Sequential if its call runs only that chain, else None."""
    if isinstance(network, MLP):
        return chain_of(network) if type(network).forward is MLP.forward else None
    return linear_chain(network)


class Decoding:
    """Share the switches and the decoding between `LIIF` and `LIIFDecoder`; the network runs fused if possible."""

    local_ensemble: bool
    feat_unfold: bool
    cell_decode: bool
    backend: str = "auto"
    recompute: bool | None = None

    def _in_dim(self, channels: int) -> int:
        return channels * (9 if self.feat_unfold else 1) + (4 if self.cell_decode else 2)

    def _switches(self) -> dict[str, Any]:
        return {
            "feat_unfold": self.feat_unfold,
            "local_ensemble": self.local_ensemble,
            "cell_decode": self.cell_decode,
        }

    def _decode(self, network: Any, feat: Tensor, coord: Tensor, cell: Tensor | None) -> Tensor:
        """Decode queries; arguments and result as of `functional.liif_decode`."""
        chain = fusable(network)
        if chain is None:
            return decode_by_module(network, feat, coord, cell, self.backend, self._switches())
        options = self._switches() | {"backend": self.backend, "recompute": self.recompute}
        return functional.liif_decode(feat, coord, cell, *chain, **options)

    def _decode_grid(
        self,
        network: Any,
        feat: Tensor,
        size: Sequence[int],
        region: Sequence[int] | None,
        cell: Tensor | Sequence[float] | None,
        place: Sequence[int] | None = None,
        extent: Sequence[float] | None = None,
    ) -> Tensor:
        """Decode a window of a grid; arguments and result as of `functional.liif_render`."""
        chain = fusable(network)
        if chain is None:
            if place is not None:
                raise ValueError("place needs an imnet that runs fused (Linear and ReLU in turn)")
            return render_by_query(lambda *query: self._decode(network, feat, *query), feat, size, region, cell, extent)
        options = self._switches() | {"backend": self.backend, "recompute": self.recompute}
        options |= {"place": place, "extent": extent}
        return functional.liif_render(feat, size, *chain, region=region, cell=cell, **options)


class LIIFDecoder(Decoding, nn.Module):
    """Decode a continuous image from a feature map: LIIF's decoder, for your own network.

    Its parameters are `layers.{0,2,...}.{weight,bias}`. `load_state_dict` also takes the state_dict of a whole LIIF,
    such as `load_model("edsr-baseline-liif.pth").state_dict()`, and loads its `imnet.*`. You may change, hook or
    parametrize `layers`; it then runs as it is, on gathered latents, instead of fused. Global hooks see the decoder as
    one module (see `MLP`).

    It trains like any module:

        decoder = LIIFDecoder(in_channels=64)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-4)
        for inp, coord, cell, target in batches:
            optimizer.zero_grad()
            (decoder(encoder(inp), coord, cell) - target).abs().mean().backward()
            optimizer.step()

    `torch.utils.checkpoint` is not needed, because `recompute` bounds the memory kept for the backward pass. Under
    autocast compile only the encoder (`torch.compile`), because the decoder is one operator or a few large products.

    Args:
        in_channels: C, channels of the feature map.
        out_channels: channels of the image.
        hidden_list: widths of the MLP's hidden layers.
        local_ensemble: blend the predictions from the four nearest latents; otherwise use the nearest one's.
        feat_unfold: concatenate the 3x3 neighbourhood of each latent.
        cell_decode: give the network the size of the query's pixel.
        backend: "auto" or the name of a backend; see `liif_fast.explain`.
        recompute: in training, compute hidden activations again in the backward pass instead of keeping them. None
            keeps them up to a limit.

    Raises:
        TypeError, ValueError: hidden_list is not a list of positive integers, or another width is below 1.

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
        recompute: bool | None = None,
    ) -> None:
        super().__init__()
        self.local_ensemble = local_ensemble
        self.feat_unfold = feat_unfold
        self.cell_decode = cell_decode
        self.backend = backend
        self.recompute = recompute
        self.layers = _perceptron(self._in_dim(in_channels), out_channels, hidden_list)

    def forward(self, feat: Tensor, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        """Decode queries at any coordinates; differentiable with respect to feat and the parameters.

        Args:
            feat: [B, C, H, W] floating point, the feature map, in the dtype of the parameters (any under autocast).
            coord: [B, Q, 2] float32, (row, column) of each query in [-1, 1], as `make_coord` returns them.
            cell: [B, Q, 2] float32, the pixel's (row, column) size, (2/H_out, 2/W_out), as `make_cell` returns it;
                None only without cell_decode.

        Returns:
            [B, Q, out_channels], not clamped; dtype of feat, float32 under autocast.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape, dtype or device.
            RuntimeError: the named backend cannot run this call.
        """
        return self._decode(self.layers, feat, coord, cell)

    def render(
        self,
        feat: Tensor,
        size: Sequence[int],
        region: Sequence[int] | None = None,
        cell: Tensor | Sequence[float] | None = None,
        extent: Sequence[float] | None = None,
    ) -> Tensor:
        """Decode a regular grid or a window of it, as `forward` on make_coord and make_cell, but without their tensors.

        Args:
            feat: [B, C, H, W] floating point, the feature map, in the dtype of the parameters (any under autocast).
            size: (H_out, W_out) of the whole grid, (row, column) order.
            region: (top, left, height, width), the window to decode, in pixels of the grid; None is the whole grid.
            cell: the pixel's (row, column) size, a pair of floats or float32 [2] or [B, 2]; None is (2/H_out, 2/W_out).
            extent: (top, left, height, width) in latents, fractions allowed: the part of the map that the grid covers;
                None is all of it.

        Returns:
            [B, out_channels, height, width], not clamped; dtype of feat, float32 under autocast.

        Raises:
            TypeError, ValueError, RuntimeError: as `forward`.
        """
        return self._decode_grid(self.layers, feat, size, region, cell, None, extent)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load `imnet.*` from a whole LIIF's tensors, and ignore the others."""
        if f"{prefix}imnet.layers.0.weight" in state_dict:
            for key in [key for key in state_dict if key.startswith(prefix)]:
                value, name = state_dict.pop(key), key.removeprefix(prefix)
                if name.startswith("imnet."):
                    state_dict[prefix + name.removeprefix("imnet.")] = value
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """Return the options that the layers do not show."""
        return (
            f"local_ensemble={self.local_ensemble}, feat_unfold={self.feat_unfold}, "
            f"cell_decode={self.cell_decode}, backend={self.backend!r}"
        )
