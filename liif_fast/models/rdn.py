"""RDN (Zhang et al., arXiv 1802.08797) as an encoder: densely connected residual blocks."""

import torch
from torch import Tensor, nn

from liif_fast.models.blocks import conv
from liif_fast.models.registry import register

# name -> (blocks D, layers of a block C, growth G)
CONFIGS = {"A": (20, 6, 32), "B": (16, 8, 64)}


class DenseLayer(nn.Module):
    """Append relu(conv(x)) to the channels of x."""

    def __init__(self, in_channels: int, growth: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(in_channels, growth, kernel_size), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(x)), 1)


class ResidualDenseBlock(nn.Module):
    """Add the fusion of a chain of dense layers to x."""

    def __init__(self, n_feats: int, n_layers: int, growth: int, kernel_size: int) -> None:
        super().__init__()
        widths = [n_feats + i * growth for i in range(n_layers + 1)]
        self.convs = nn.Sequential(*(DenseLayer(width, growth, kernel_size) for width in widths[:-1]))
        self.LFF = conv(widths[-1], n_feats, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.LFF(self.convs(x)) + x


@register("rdn")
class RDN(nn.Module):
    """RDN; without upsampling its features have the input's resolution.

    Args:
        G0: channels of the features.
        RDNkSize: kernel size, odd.
        RDNconfig: 'A' (20 blocks of 6 layers, growth 32) or 'B' (16 of 8, growth 64).
        scale: factor of the upsampler, 2, 3 or 4; unused without upsampling.
        no_upsampling: leave the upsampler out, so that out_dim is G0, not n_colors.
        n_colors: channels of the input.
    """

    def __init__(
        self,
        G0: int = 64,
        RDNkSize: int = 3,
        RDNconfig: str = "B",
        scale: int = 2,
        no_upsampling: bool = False,
        n_colors: int = 3,
    ) -> None:
        super().__init__()
        if RDNconfig not in CONFIGS:
            raise ValueError(f"RDNconfig must be one of {', '.join(CONFIGS)}, got {RDNconfig!r}")
        n_blocks, n_layers, growth = CONFIGS[RDNconfig]
        self.SFENet1 = conv(n_colors, G0, RDNkSize)
        self.SFENet2 = conv(G0, G0, RDNkSize)
        self.RDBs = nn.ModuleList(ResidualDenseBlock(G0, n_layers, growth, RDNkSize) for _ in range(n_blocks))
        self.GFF = nn.Sequential(conv(n_blocks * G0, G0, 1), conv(G0, G0, RDNkSize))
        self.channels_in, self.out_dim, self.enlargement = n_colors, G0, 1
        n_convs = 3 + n_blocks * n_layers
        if not no_upsampling:
            self.UPNet = _upsampler(G0, growth, RDNkSize, scale, n_colors)
            self.out_dim, self.enlargement = n_colors, scale
            n_convs += len(self.UPNet) // 2 + 1
        self.receptive_radius: int | None = n_convs * (RDNkSize // 2)

    def forward(self, inp: Tensor) -> Tensor:
        """Map `[B, n_colors, H, W]`, normalised as in training, to `[B, out_dim, s*H, s*W]`, s the enlargement."""
        shallow = self.SFENet1(inp)
        x = self.SFENet2(shallow)
        blocks = []
        for block in self.RDBs:
            x = block(x)
            blocks.append(x)
        x = self.GFF(torch.cat(blocks, 1)) + shallow
        return self.UPNet(x) if hasattr(self, "UPNet") else x


def _upsampler(n_feats: int, growth: int, kernel_size: int, scale: int, n_colors: int) -> nn.Sequential:
    steps = {2: (2,), 3: (3,), 4: (2, 2)}.get(scale)
    if steps is None:
        raise ValueError(f"scale must be 2, 3 or 4, got {scale}")
    layers: list[nn.Module] = []
    for step in steps:
        layers += [conv(n_feats, growth * step**2, kernel_size), nn.PixelShuffle(step)]
        n_feats = growth
    return nn.Sequential(*layers, conv(growth, n_colors, kernel_size))
