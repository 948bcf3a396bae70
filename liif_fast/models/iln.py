"""ILN, the Implicit LiDAR Network (Kwon et al., arXiv 2203.06413), and its authors' LIIF for range images."""

import copy
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from liif_fast import functional
from liif_fast.attention import Block, Corners, CornerTransformer
from liif_fast.checks import check_queries
from liif_fast.convolution import RangeConv, fast_convolutions, residual
from liif_fast.models.base import FeatureModel
from liif_fast.models.liif import LIIF
from liif_fast.models.registry import make, register

ENCODER = {"name": "edsr-lidar", "args": {}}


LIDAR_IN = ("max_r", "min_r", "norm_r", "max_v", "min_v", "max_h", "min_h", "channels", "points_per_ring")


def check_lidar_in(lidar_in: Any) -> None:
    """Check the sensor description in an ILN's file.

    Raises:
        ValueError: a key is missing or unknown, or a value is not finite or out of its range.
    """
    if not isinstance(lidar_in, Mapping) or set(lidar_in) != set(LIDAR_IN):
        got = ", ".join(map(str, lidar_in)) if isinstance(lidar_in, Mapping) else type(lidar_in).__name__
        raise ValueError(f"lidar_in must hold {', '.join(LIDAR_IN)}, got {got:.200}")
    for key, value in lidar_in.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"lidar_in[{key!r}] must be a finite number, got {value!r:.80}")
    if not 0 <= lidar_in["min_r"] < lidar_in["max_r"] <= lidar_in["norm_r"]:
        raise ValueError(f"lidar_in must have 0 <= min_r < max_r <= norm_r, got {dict(lidar_in)}")


class _Block(nn.Module):
    def __init__(self, n_feats: int) -> None:
        super().__init__()
        self.body = nn.Sequential(RangeConv(n_feats, n_feats), nn.ReLU(inplace=True), RangeConv(n_feats, n_feats))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return residual(x, self.body)
        return x + self.body(x)


@register("edsr-lidar")
class EDSRLiDAR(nn.Module):
    """EDSR for range images: one channel, no mean shift, no upsampling, circular columns.

    Args:
        n_resblocks: number of residual blocks.
        n_feats: channels of every hidden feature map.

    Attributes:
        wraps_columns: True; tiles need the true neighbours across the seam (`liif_fast.models.tiles`).
    """

    channels_in, enlargement, wraps_columns = 1, 1, True

    def __init__(self, n_resblocks: int = 16, n_feats: int = 64) -> None:
        super().__init__()
        self.head = nn.Sequential(RangeConv(1, n_feats))
        self.body = nn.Sequential(*(_Block(n_feats) for _ in range(n_resblocks)), RangeConv(n_feats, n_feats))
        self.out_dim, self.receptive_radius = n_feats, 2 * n_resblocks + 2

    def forward(self, inp: Tensor) -> Tensor:
        """Return the features `[B, n_feats, H, W]` of range images `[B, 1, H, W]`, normalised as in training."""
        x = self.head(inp)
        return self.body(x) + x


class _Held(nn.Module):
    """Hold a norm and the layers after it under the names of the authors' checkpoints."""

    def __init__(self, width: int, **parts: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = nn.ModuleDict(parts)


class CornerAttention(nn.Module):
    """The parameters of the transformer over a query's corners, named as in the authors' checkpoints.

    Args:
        width: channels of a latent.
        depth: number of blocks.
        heads: heads of every block; a divisor of width.
    """

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if depth < 0 or heads < 1 or width % heads:
            raise ValueError(f"d must be at least 0 and h a divisor of {width}, got d = {depth} and h = {heads}")
        self.heads = heads
        self.pos_embedding = nn.Linear(2, width)
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList()})
        for _ in range(depth):
            attention: dict[str, nn.Module] = {"to_qkv": nn.Linear(width, 3 * width, bias=False)}
            if heads > 1:
                attention["to_out"] = nn.ModuleList([nn.Linear(width, width)])
            mlp = nn.ModuleDict({"0": nn.Linear(width, width), "3": nn.Linear(width, width)})
            self.transformer["layers"].append(  # type: ignore[operator]
                nn.ModuleList([_Held(width, **attention), _Held(width, net=mlp)])
            )
        self.mlp_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def transformer_of(self) -> CornerTransformer:
        """Return the parameters for `functional.attend_corners`."""
        blocks = []
        layers: Any = self.transformer["layers"]
        for attention, mlp in layers:
            up, down = mlp.fn["net"]["0"], mlp.fn["net"]["3"]
            out = attention.fn["to_out"][0] if "to_out" in attention.fn else None
            blocks.append(
                Block(
                    attention.norm.weight,
                    attention.norm.bias,
                    attention.fn["to_qkv"].weight,
                    None if out is None else out.weight,
                    None if out is None else out.bias,
                    mlp.norm.weight,
                    mlp.norm.bias,
                    up.weight,
                    up.bias,
                    down.weight,
                    down.bias,
                )
            )
        norm, head = cast(Any, self.mlp_head)
        position = self.pos_embedding
        return CornerTransformer(
            position.weight, position.bias, tuple(blocks), norm.weight, norm.bias, head.weight, head.bias, self.heads
        )


@register("iln")
class ILN(FeatureModel):
    """The Implicit LiDAR Network: attention over a query's four corners gives the weights of their ranges.

    Args:
        d: number of transformer blocks, at least 0.
        h: heads of each block; a divisor of the encoder's channels.
        lidar_in: the sensor that the model was trained for, as in the authors' files: `max_r`, `min_r` and `norm_r` in
            metres, `max_v`, `min_v`, `max_h` and `min_h` in radians, `channels`, `points_per_ring`.
        encoder_spec: spec of the encoder; None means the authors', EDSR-baseline for range images.
        wrap: treat the columns as circular also in the decoder. The authors' decoder clamps them, so at a seam of one
            column behind the sensor two corners are equal instead of neighbours.
        dropout: probability in training, after every linear map of a block and after gelu.

    Attributes:
        backend: the backend of the attention, initially "auto".
        feat, inp: features of the last range image, and the image; None before `gen_feat`.

    Raises:
        ValueError: h does not divide the encoder's channels, d is negative, or lidar_in or dropout is out of range.
    """

    def __init__(
        self,
        d: int = 1,
        h: int = 8,
        lidar_in: dict[str, Any] | None = None,
        encoder_spec: Mapping[str, Any] | None = None,
        wrap: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if lidar_in is not None:
            check_lidar_in(lidar_in)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.lidar_in, self.wrap, self.dropout = lidar_in, wrap, dropout
        self.encoder = make(encoder_spec or ENCODER, place="spec.args.encoder_spec")
        self.attention = CornerAttention(self.encoder.out_dim, d, h)
        args: dict[str, Any] = {"d": d, "h": h, "lidar_in": lidar_in, "encoder_spec": encoder_spec}
        self.spec = {"name": "iln", "args": copy.deepcopy({**args, "wrap": wrap, "dropout": dropout})}

    @property
    def channels_out(self) -> int:
        return 1

    @property
    def reads_input(self) -> bool:
        return True

    def gen_feat(self, inp: Tensor) -> Tensor:
        """Encode a range image with fast convolutions (`liif_fast.convolution`); otherwise as every model.

        A part of the encoder that you give to `torch.utils.checkpoint` must enter `fast_convolutions` itself.
        """
        with fast_convolutions():
            return super().gen_feat(inp)

    def attend(self, coord: Tensor | Corners, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Blend values at any coordinates by the network's weights of the four corners.

        Args:
            coord: float32 `[B, Q, 2]`, (row, column) in [-1, 1], or a plan (`functional.plan_attention`).
            values: `[B, V, H, W]` of the input's size, such as intensities; None blends the input itself.

        Returns:
            The blended values `[B, Q, V]`, and the weights `[B, Q, 4]` of the corners 00, 01, 10, 11.

        Raises:
            ValueError, TypeError: a shape or dtype is wrong.
            RuntimeError: no features are kept yet.
        """
        feat = self.features()
        if values is None:
            assert self.inp is not None
            values = self.inp
        return functional.attend_corners(
            feat,
            values,
            coord,
            self.attention.transformer_of(),
            wrap=self.wrap,
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
        )

    def query(self, coord: Tensor) -> Tensor:
        """Return the normalised ranges `[B, Q, 1]` at `coord` `[B, Q, 2]`; errors as for `attend`."""
        return self.attend(coord)[0]

    def query_rgb(self, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        """Return `query(coord)`; the cell is ignored."""
        check_queries(self.features(), coord, None, cell_decode=False)
        return self.query(coord)


@register("liif_lidar")
class LidarLIIF(LIIF):
    """LIIF for range images, the baseline of ILN's authors: no unfolding, no cell, ILN's encoder.

    Args:
        local_ensemble, feat_unfold, cell_decode: as for LIIF. Unfolding pads with zeros, even across the seam.
        lidar_in: as for ILN.
        encoder_spec: as for ILN.
        hidden_list: widths of the decoding network.
    """

    def __init__(
        self,
        local_ensemble: bool = True,
        feat_unfold: bool = False,
        cell_decode: bool = False,
        lidar_in: dict[str, Any] | None = None,
        encoder_spec: Mapping[str, Any] | None = None,
        hidden_list: tuple[int, ...] = (256, 256, 256, 256),
    ) -> None:
        imnet = {"name": "mlp", "args": {"out_dim": 1, "hidden_list": list(hidden_list)}}
        if lidar_in is not None:
            check_lidar_in(lidar_in)
        super().__init__(encoder_spec or ENCODER, imnet, local_ensemble, feat_unfold, cell_decode)
        self.lidar_in = lidar_in
        args: dict[str, Any] = {"local_ensemble": local_ensemble, "feat_unfold": feat_unfold}
        args |= {"cell_decode": cell_decode, "lidar_in": lidar_in, "encoder_spec": encoder_spec}
        self.spec = {"name": "liif_lidar", "args": copy.deepcopy({**args, "hidden_list": list(hidden_list)})}

    def query(self, coord: Tensor) -> Tensor:
        """Return the normalised ranges `[B, Q, 1]` at `coord` `[B, Q, 2]`; errors as for `query_rgb`."""
        return self.query_rgb(coord, torch.zeros_like(coord) if self.cell_decode else None)
