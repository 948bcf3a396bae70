"""The bilinear interpolation of an input image, which LTE and LIIF with a residual add to their output."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear(inp: Tensor, coord: Tensor, place: Sequence[int] | None = None) -> Tensor:
    """Interpolate `[B, C, H, W]` at `coord` `[B, Q, 2]`, clamped to the border, in at least float32; `[B, Q, C]`.

    `place` is (top, left, H, W) if `inp` is a part: where it begins, and the size of the whole, for which coord is.
    """
    if place is not None:
        first, whole, own = (torch.tensor(pair, device=coord.device) for pair in (place[:2], place[2:], inp.shape[2:]))
        pixels = (coord.double() + 1) * whole / 2 - first
        coord = (2 * pixels / own - 1).to(coord.dtype)
    return _sample(inp, coord.flip(-1)[:, None])[:, :, 0].transpose(1, 2)


def bilinear_grid(inp: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Interpolate as `bilinear` at all pairs of rows and columns, positions in [-1, 1]; `[B, C, rows, columns]`."""
    shape = len(inp), len(rows), len(columns)
    grid = torch.stack((columns.expand(shape), rows[:, None].expand(shape)), -1)
    return _sample(inp, grid)


def _sample(inp: Tensor, grid: Tensor) -> Tensor:
    """Interpolate at (x, y) of a grid `[B, h, w, 2]`, in at least float32."""
    inp = inp.to(torch.promote_types(inp.dtype, torch.float32))
    return F.grid_sample(inp, grid.to(inp.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def interpolate_part(inp: Tensor, place: Sequence[int], rows: Tensor, columns: Tensor) -> Tensor:
    """Interpolate an image, of which `inp` `[B, C, h, w]` is a part, bilinearly with clamped border.

    The result has the bits that `F.grid_sample` computes from the whole, which multiplies and adds with one rounding.
    Here float64 holds the product.

    Args:
        inp: the part; it holds every pixel that is read.
        place: (top, left, H, W): where it begins, and the size of the whole.
        rows, columns: positions in the whole, in [-1, 1].

    Returns:
        float32 `[B, C, rows, columns]`.
    """

    def axis(at: Tensor, first: int, n: int, held: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        at = ((at + 1).double() * (n / 2) - 0.5).float().clamp(0, n - 1)
        low = at.floor()
        index = low.long() - first
        return index, (index + 1).clamp(max=held - 1), 1 - (at - low), at - low

    y0, y1, above, below = axis(rows, place[0], place[2], inp.shape[2])
    x0, x1, before, after = axis(columns, place[1], place[3], inp.shape[3])
    inp = inp.float()
    upper, lower = inp[:, :, y0], inp[:, :, y1]
    out = upper[..., x0] * (above[:, None] * before)
    for line, at, weight in ((upper, x1, above[:, None] * after), (lower, x0, below[:, None] * before),
                             (lower, x1, below[:, None] * after)):  # fmt: skip
        out = (line[..., at].double() * weight + out).float()
    return out


def add_input(pred: Tensor, base: Tensor, channel: int) -> Tensor:
    """Add the interpolated input to a network's output; `channel` is the axis of the channels."""
    if pred.shape[channel] != base.shape[channel]:
        raise ValueError(
            "a model that adds its input (residual) needs as many output channels as the input has, "
            f"{base.shape[channel]}, got {pred.shape[channel]}"
        )
    return (pred + base).to(pred.dtype)
