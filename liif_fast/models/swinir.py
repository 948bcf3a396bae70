"""SwinIR (Liang et al., arXiv 2108.10257) as an encoder, as LTE's code base trains it: attention in shifted windows."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liif_fast.models.registry import register

SIDE = 48  # of the images whose masks are in the authors' files
CHUNK_WINDOWS = 1 << 10  # windows whose attention is computed at a time: bounds the memory of their products
APART = -100.0  # added to the logits of pixels that only the shift has put into one window


def regions(height: int, width: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """Return for each window [N, window * window] of a map the regions that its pixels, shifted around, come from."""
    rows, columns = (
        (torch.arange(side, device=device) >= side - window).int()
        + (torch.arange(side, device=device) >= side - shift).int()
        for side in (height, width)
    )
    return _windows((3 * rows[:, None] + columns)[None, :, :, None], window)[..., 0]


def _windows(x: Tensor, window: int) -> Tensor:
    """Cut [B, H, W, C] into windows, [B * N, window * window, C]."""
    x = x.unflatten(1, (-1, window)).unflatten(3, (-1, window))  # [B, h, window, w, window, C]
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def _mask(region: Tensor) -> Tensor:
    """Return the summand for the logits [N, P, P] of windows whose pixels are in the regions [N, P]."""
    return torch.where(region.unsqueeze(1) == region.unsqueeze(2), 0.0, APART)


class WindowAttention(nn.Module):
    """Attention among the pixels of a window, with a learned bias for every difference of places."""

    relative_position_index: Tensor

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        side = torch.arange(window, device="cpu")  # not on the meta device, see MeanShift in blocks.py
        place = torch.cartesian_prod(side, side)
        apart = place[:, None] - place + window - 1
        self.register_buffer("relative_position_index", apart[..., 0] * (2 * window - 1) + apart[..., 1])
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, region: Tensor | None) -> Tensor:
        """Attend in windows x [B * N, P, width]; region [N, P], or None if all pixels belong together."""
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # [heads, P, P]
        parts = []
        if region is not None:
            region = region.repeat(len(x) // len(region), 1)
        for first in range(0, len(x), CHUNK_WINDOWS):
            chunk = slice(first, first + CHUNK_WINDOWS)
            q, k, v = self.qkv(x[chunk]).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            added = bias.to(q.dtype) if region is None else (bias + _mask(region[chunk]).unsqueeze(1)).to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, added.expand(len(q), -1, -1, -1))
            parts.append(self.proj(out.transpose(1, 2).flatten(2)))
        return torch.cat(parts)


class SwinBlock(nn.Module):
    """Attention in windows, every other time shifted by half a window, and a perceptron, each with a norm before it."""

    attn_mask: Tensor | None

    def __init__(self, width: int, window: int, heads: int, shift: int, ratio: float, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, window, heads)
        hidden = int(width * ratio)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        # Of the images of training; kept for the authors' files, and made anew for every size.
        side = SIDE // window * window
        mask = _mask(regions(side, side, window, shift, torch.device("cpu"))) if shift else None  # as the index above
        self.register_buffer("attn_mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, width] to the same shape; sides are multiples of the window."""
        _, height, width, _ = x.shape
        y, region = self.norm1(x), None
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
            region = regions(height, width, self.window, self.shift, x.device)
        y = self.attn(_windows(y, self.window), region)
        y = y.unflatten(0, (len(x), height // self.window, width // self.window))
        y = y.unflatten(3, (self.window, self.window)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
        x = x + self._dropped(y.roll((self.shift, self.shift), (1, 2)) if self.shift else y)
        return x + self._dropped(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))

    def _dropped(self, x: Tensor) -> Tensor:
        """Leave the branch out in training, for each image independently, with the probability `drop_path`."""
        if not self.training or not self.drop_path:
            return x
        kept = x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.drop_path)
        return x * (kept / (1 - self.drop_path))


class SwinGroup(nn.Module):
    """Blocks, a convolution, and the input added."""

    def __init__(self, width: int, blocks: Sequence[SwinBlock]) -> None:
        super().__init__()
        self.residual_group = nn.ModuleDict({"blocks": nn.Sequential(*blocks)})
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, width] to the same shape."""
        y = self.residual_group["blocks"](x)
        return x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@register("swinir")
class SwinIR(nn.Module):
    """SwinIR without an upsampler; its features are at the input's resolution.

    The image is padded by reflection to multiples of the window, and the features are cut to its size again. (The
    authors' class leaves them larger than the image, so that coordinates spread over the padding.)

    Args:
        no_upsampling: True.
        embed_dim: channels of the transformer's features; a multiple of every number of heads.
        depths: blocks of each group.
        num_heads: heads of each group's blocks.
        window_size: side of a window, even.
        mlp_ratio: width of a perceptron's hidden layer, in units of embed_dim.
        drop_path_rate: in training, the probability that the last block's branch is left out; earlier ones less.
        n_feats: channels of the features.
        n_colors: channels of the input.

    Raises:
        ValueError: an argument is out of its range, or asks for an upsampler.
    """

    enlargement = 1
    receptive_radius: int | None = None  # windows of a tile would lie elsewhere than those of the whole image

    def __init__(
        self,
        no_upsampling: bool = True,
        embed_dim: int = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        drop_path_rate: float = 0.1,
        n_feats: int = 64,
        n_colors: int = 3,
    ) -> None:
        super().__init__()
        if not no_upsampling:
            raise ValueError("no_upsampling must be true: SwinIR's upsamplers are not supported")
        if len(depths) != len(num_heads) or min(num_heads, default=0) < 1 or any(embed_dim % n for n in num_heads):
            raise ValueError(
                f"depths and num_heads must have the same length, and embed_dim must be a multiple of each number of "
                f"heads, got {list(depths)}, {list(num_heads)} and {embed_dim}"
            )
        if window_size < 2 or window_size % 2 or window_size > SIDE:
            raise ValueError(f"window_size must be even and from 2 to {SIDE}, got {window_size}")
        self.window, self.out_dim, self.channels_in = window_size, n_feats, n_colors
        self.conv_first = nn.Conv2d(n_colors, embed_dim, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(embed_dim)})
        self.layers, done = nn.Sequential(), 0
        for depth, heads in zip(depths, num_heads, strict=True):
            rates = [drop_path_rate * number / max(sum(depths) - 1, 1) for number in range(done, done + depth)]
            blocks = [
                SwinBlock(embed_dim, window_size, heads, window_size // 2 * (number % 2), mlp_ratio, rate)
                for number, rate in enumerate(rates)
            ]
            self.layers.append(SwinGroup(embed_dim, blocks))
            done += depth
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, n_feats, 3, padding=1), nn.LeakyReLU())
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, inp: Tensor) -> Tensor:
        """Map an image `[B, n_colors, H, W]`, normalised as in training, to `[B, n_feats, H, W]`."""
        height, width = inp.shape[2:]
        missing = [-side % self.window for side in (height, width)]
        # A reflection is shorter than the image.
        mode: Any = "reflect" if missing[0] < height and missing[1] < width else "replicate"
        x = self.conv_first(F.pad(inp, (0, missing[1], 0, missing[0]), mode) if any(missing) else inp)
        y = self.norm(self.layers(self.patch_embed["norm"](x.permute(0, 2, 3, 1))))
        x = self.conv_after_body(y.permute(0, 3, 1, 2)) + x
        return self.conv_before_upsample(x)[:, :, :height, :width]
