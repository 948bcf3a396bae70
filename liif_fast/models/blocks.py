"""Layers shared by the EDSR family of encoders."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, relative to rgb_range


def conv(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Conv2d:
    """Return a convolution that keeps the image's size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


class MeanShift(nn.Conv2d):
    """Add sign * rgb_range * RGB_MEAN; frozen. LIIF's encoders never apply it, but checkpoints hold its tensors."""

    def __init__(self, rgb_range: float, sign: int) -> None:
        super().__init__(3, 3, 1)
        # On the CPU, because on the meta device, where checkpoints are checked, PyTorch imports its compiler (150 MiB).
        with torch.no_grad(), torch.device("cpu"):
            self.weight.copy_(torch.eye(3)[:, :, None, None])
            self.bias.copy_(torch.tensor(RGB_MEAN) * (sign * rgb_range))  # type: ignore[union-attr]
        self.requires_grad_(False)


def upsampler(scale: int, n_feats: int) -> nn.Sequential:
    """Return convolutions and pixel shuffles that enlarge by `scale`, 3 or a power of two."""
    if scale == 3:
        steps = [3]
    elif scale >= 1 and scale & (scale - 1) == 0:
        steps = [2] * (scale.bit_length() - 1)
    else:
        raise ValueError(f"scale must be 3 or a power of two, got {scale}")
    layers: list[nn.Module] = []
    for step in steps:
        layers += [conv(n_feats, n_feats * step**2), nn.PixelShuffle(step)]
    return nn.Sequential(*layers)


class Trunk(nn.Module):
    """A head, a body with a skip connection, and an enlarging tail; EDSR and RCAN document the other arguments.

    Args:
        blocks: the body's blocks, made after the head, so that a seed gives the original's weights.
        receptive_radius: of head and body together; None means the whole image.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        receptive_radius: int | None,
        n_feats: int,
        scale: int,
        no_upsampling: bool,
        rgb_range: float,
        n_colors: int,
    ) -> None:
        super().__init__()
        self.sub_mean = MeanShift(rgb_range, -1)
        self.add_mean = MeanShift(rgb_range, 1)
        self.head = nn.Sequential(conv(n_colors, n_feats))
        self.body = nn.Sequential(*blocks, conv(n_feats, n_feats))
        self.receptive_radius = receptive_radius
        self.channels_in, self.out_dim, self.enlargement = n_colors, n_feats, 1
        if not no_upsampling:
            enlarge = upsampler(scale, n_feats)
            self.tail = nn.Sequential(enlarge, conv(n_feats, n_colors))
            self.out_dim, self.enlargement = n_colors, scale
            if receptive_radius is not None:
                self.receptive_radius = receptive_radius + len(enlarge) // 2 + 1

    def forward(self, inp: Tensor) -> Tensor:
        """Map an image `[B, n_colors, H, W]`, normalised as in training, to `[B, out_dim, s*H, s*W]`.

        s is 1 without upsampling, else `scale`.
        """
        x = self.head(inp)
        x = self.body(x) + x
        return self.tail(x) if hasattr(self, "tail") else x
