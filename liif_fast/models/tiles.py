"""Encode images of any size, or parts of them, in overlapping tiles with the same result."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

TILE = 512  # pixels per side without the overlap; with EDSR's overlap, 64 float32 channels of a tile are 86 MB

# Of one image of at most so many values PyTorch's convolutions on a CPU take another algorithm, with other rounding.
FEW_VALUES = 20480

Span = tuple[int, int]
Read = Callable[[Span, Span], Tensor]


def encode(encoder: nn.Module, inp: Tensor, tile: int = TILE) -> Tensor:
    """Encode a whole image `[B, C, H, W]`; other arguments and result as for `encode_window`."""
    height, width = inp.shape[2:]

    def read(rows: Span, cols: Span) -> Tensor:
        return inp[:, :, slice(*rows), slice(*cols)]

    return encode_window(encoder, read, (height, width), (0, height), (0, width), tile)


def encode_window(
    encoder: nn.Module,
    read: Read,
    shape: tuple[int, int],
    rows: Span,
    cols: Span,
    tile: int = TILE,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """Encode a window of an image, tile by tile if it is larger than a tile.

    Neighbouring tiles overlap by the encoder's receptive radius, so each feature sees the pixels that it would see in
    the whole image, with padding only at the image's border. For an encoder with `wraps_columns` (range images) the
    last columns are the neighbours of the first. An encoder without `receptive_radius` (RCAN pools over the whole
    image) runs on the whole image.

    Args:
        encoder: maps `[B, C, h, w]` to `[B, D, s*h, s*w]` with an integer s (1 without upsampling).
        read: returns the pixels `[B, C, h, w]` of a window of rows and columns, normalised as in training.
        shape: (H, W) of the whole image.
        rows, cols: (first, last + 1) of the window.
        tile: largest side of a tile in pixels, without its overlap.
        report: receives the number of pixels of each finished tile.

    Returns:
        `[B, D, s*h, s*w]`, equal to that part of the whole image's features up to the rounding of float sums. On a CPU
        PyTorch's convolutions sum in the same order at every size, and the part has the bits of the whole.
    """
    radius = getattr(encoder, "receptive_radius", None)
    circle = getattr(encoder, "wraps_columns", False)
    height, width = shape
    if radius is None:
        rows_of, cols_of = [rows], [cols]
        radius = max(shape)
    else:
        rows_of, cols_of = spans(rows, tile), spans(cols, tile)
    out: Tensor | None = None
    for y0, y1 in rows_of:
        for x0, x1 in cols_of:
            top, bottom = max(0, y0 - radius), min(height, y1 + radius)
            pieces, left = _columns(x0 - radius, x1 + radius, width, circle)
            inp = torch.cat([read((top, bottom), piece) for piece in pieces], 3)
            if inp.numel() <= FEW_VALUES < inp.shape[1] * height * width:  # two images take the usual algorithm
                feat = encoder(torch.cat([inp, inp]))[:1]  # in the memory format of inp
            else:
                feat = encoder(inp)
            if report is not None:
                report((y1 - y0) * (x1 - x0))
            s = feat.shape[2] // (bottom - top)
            inner = feat[:, :, s * (y0 - top) : s * (y1 - top), s * (x0 - left) : s * (x1 - left)]
            if (y0, y1) == rows and (x0, x1) == cols:
                return inner
            if out is None:
                out = feat.new_empty(*feat.shape[:2], s * (rows[1] - rows[0]), s * (cols[1] - cols[0]))
            out[:, :, s * (y0 - rows[0]) : s * (y1 - rows[0]), s * (x0 - cols[0]) : s * (x1 - cols[0])] = inner
    assert out is not None
    return out


def _columns(left: int, right: int, width: int, circle: bool) -> tuple[list[Span], int]:
    """Return the pieces of columns that a tile reads, from left to right, and the number of the first column.

    A tile ends at the border, or on a circle continues at the other end. A tile longer than the circle is all of it.
    """
    if not circle or right - left >= width:
        left, right = max(0, left), min(width, right)
        return [(0, width) if circle else (left, right)], 0 if circle else left
    cut = [(left, min(right, 0)), (max(left, 0), min(right, width)), (max(left, width), right)]
    return [(first % width, first % width + last - first) for first, last in cut if first < last], left


def spans(span: Span, tile: int) -> list[Span]:
    """Cut a span into the fewest parts of at most `tile`, as equal as possible."""
    first, last = span
    count = -(-(last - first) // tile)
    return list(pairwise(first + (last - first) * i // count for i in range(count + 1)))
