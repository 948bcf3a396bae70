"""RCAN (Zhang et al., arXiv 1807.02758) as an encoder: residual groups with channel attention."""

from torch import Tensor, nn

from liif_fast.models.blocks import Trunk, conv
from liif_fast.models.registry import register


class ChannelAttention(nn.Module):
    """Scale each channel of x by a factor computed from the channels' means over the whole image."""

    def __init__(self, n_feats: int, reduction: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_du = nn.Sequential(
            conv(n_feats, n_feats // reduction, 1),
            nn.ReLU(inplace=True),
            conv(n_feats // reduction, n_feats, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_du(self.avg_pool(x))


class Residual(nn.Module):
    """Compute x + body(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def attention_block(n_feats: int, reduction: int) -> Residual:
    """Return two convolutions and a channel attention with a skip connection."""
    return Residual(
        conv(n_feats, n_feats),
        nn.ReLU(inplace=True),
        conv(n_feats, n_feats),
        ChannelAttention(n_feats, reduction),
    )


@register("rcan")
class RCAN(Trunk):
    """RCAN; without upsampling its features have the input's resolution.

    Args:
        n_resgroups: number of residual groups.
        n_resblocks: attention blocks per group.
        n_feats: channels of every hidden feature map.
        reduction: the attention's inner width is n_feats // reduction.
        scale: factor of the upsampler, 3 or a power of two; unused without upsampling.
        no_upsampling: leave the tail out, so that out_dim is n_feats, not n_colors.
        rgb_range: largest pixel value; only sets the mean tensors, which are frozen because nothing uses them.
        n_colors: channels of the input.
    """

    def __init__(
        self,
        n_resgroups: int = 10,
        n_resblocks: int = 20,
        n_feats: int = 64,
        reduction: int = 16,
        scale: int = 2,
        no_upsampling: bool = False,
        rgb_range: float = 1,
        n_colors: int = 3,
    ) -> None:
        def group() -> Residual:
            blocks = [attention_block(n_feats, reduction) for _ in range(n_resblocks)]
            return Residual(*blocks, conv(n_feats, n_feats))

        groups = (group() for _ in range(n_resgroups))
        super().__init__(groups, None, n_feats, scale, no_upsampling, rgb_range, n_colors)
