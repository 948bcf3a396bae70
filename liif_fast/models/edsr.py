"""EDSR (Lim et al., arXiv 1707.02921) as an encoder: residual blocks without normalisation."""

from functools import partial

import torch
from torch import Tensor, nn

from liif_fast.convolution import residual
from liif_fast.models.blocks import Trunk, conv
from liif_fast.models.registry import register


class ResBlock(nn.Module):
    """Compute x + res_scale * conv(relu(conv(x)))."""

    def __init__(self, n_feats: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(n_feats, n_feats), nn.ReLU(inplace=True), conv(n_feats, n_feats))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and self.res_scale == 1:
            return residual(x, self.body)
        return x + self.body(x) * self.res_scale


@register("edsr-baseline")
class EDSR(Trunk):
    """EDSR, by default the baseline; "edsr" is the large configuration of the paper.

    Without upsampling its features have the input's resolution.

    Args:
        n_resblocks: number of residual blocks.
        n_feats: channels of every hidden feature map.
        res_scale: factor on each block's residual.
        scale: factor of the upsampler, 3 or a power of two; unused without upsampling.
        no_upsampling: leave the tail out, so that out_dim is n_feats, not n_colors.
        rgb_range: largest pixel value; only sets the frozen mean tensors.
        n_colors: channels of the input.
    """

    def __init__(
        self,
        n_resblocks: int = 16,
        n_feats: int = 64,
        res_scale: float = 1,
        scale: int = 2,
        no_upsampling: bool = False,
        rgb_range: float = 1,
        n_colors: int = 3,
    ) -> None:
        blocks = (ResBlock(n_feats, res_scale) for _ in range(n_resblocks))
        super().__init__(blocks, 2 * n_resblocks + 2, n_feats, scale, no_upsampling, rgb_range, n_colors)


register("edsr")(partial(EDSR, n_resblocks=32, n_feats=256, res_scale=0.1))
