"""Layers that the EDSR family of encoders shares."""

import torch
from torch import nn

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, in units of rgb_range


def conv(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Conv2d:
    """A convolution that keeps the image's size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


class MeanShift(nn.Conv2d):
    """Adds sign * rgb_range * RGB_MEAN; frozen. Only its tensors matter here: no encoder of LIIF applies it."""

    def __init__(self, rgb_range: float, sign: int) -> None:
        super().__init__(3, 3, 1)
        with torch.no_grad():
            self.weight.copy_(torch.eye(3)[:, :, None, None])
            self.bias.copy_(torch.tensor(RGB_MEAN) * (sign * rgb_range))  # type: ignore[union-attr]
        self.requires_grad_(False)


def upsampler(scale: int, n_feats: int) -> nn.Sequential:
    """Convolutions and pixel shuffles that enlarge by 3, or by 2 once for each power of two in `scale`."""
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
