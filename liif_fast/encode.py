"""Features of an image of any size: whole if it is small, else in overlapping tiles with the same result."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

TILE = 512  # pixels a side without the overlap; 64 float32 channels of a tile with EDSR's are 86 MB


def encode(
    encoder: nn.Module, inp: Tensor, report: Callable[[int, int], None] = lambda done, total: None, tile: int = TILE
) -> Tensor:
    """Encode an image, tile by tile if it is larger than a tile.

    Neighbouring tiles overlap by the encoder's receptive radius, so each feature sees the pixels that it would see in
    the whole image, with the same zero padding at the image's border and nowhere else. An encoder whose
    `receptive_radius` is None or absent (RCAN pools over the whole image) is run on the whole image.

    Args:
        encoder: `[B, C, h, w]` to `[B, D, s*h, s*w]` with an integer s (1 without upsampling).
        inp: `[B, C, H, W]`, normalised as in training.
        report: called as `report(done, total)` in tiles.
        tile: largest side of a tile without its overlap, pixels.

    Returns:
        `[B, D, s*H, s*W]`, equal to `encoder(inp)` up to the rounding of float sums.
    """
    radius = getattr(encoder, "receptive_radius", None)
    height, width = inp.shape[2:]
    if radius is None or max(height, width) <= tile:
        report(0, 1)
        feat = encoder(inp)
        report(1, 1)
        return feat
    windows = [(rows, cols) for rows in _spans(height, tile) for cols in _spans(width, tile)]
    out: Tensor | None = None
    for done, ((top, bottom), (left, right)) in enumerate(windows):
        report(done, len(windows))
        y, x = max(0, top - radius), max(0, left - radius)
        part = inp[:, :, y : bottom + radius, x : right + radius]
        feat = encoder(part)
        s = feat.shape[2] // part.shape[2]
        if out is None:
            out = feat.new_empty(*feat.shape[:2], s * height, s * width)
        inner = feat[:, :, s * (top - y) : s * (bottom - y), s * (left - x) : s * (right - x)]
        out[:, :, s * top : s * bottom, s * left : s * right] = inner
    report(len(windows), len(windows))
    assert out is not None
    return out


def _spans(n: int, tile: int) -> list[tuple[int, int]]:
    """Cut range(n) into the fewest spans of at most `tile`, as equal as can be."""
    edges = torch.linspace(0, n, -(-n // tile) + 1, dtype=torch.float64).round().long().tolist()
    return list(pairwise(edges))
