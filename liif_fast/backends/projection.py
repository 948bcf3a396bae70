"""Project the whole map by the latents' share of the first layer, P = W1z z + b1, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from liif_fast.call import exporting


def project(feat: Tensor, weight: Tensor, bias: Tensor, feat_unfold: bool) -> Tensor:
    """Return P = W1z z + b1 for every latent, as rows [B*H*W, h]."""
    side = 3 if feat_unfold else 1
    kernel = weight.reshape(weight.shape[0], feat.shape[1], side, side)
    if feat.device.type != "cpu":
        return project_by_taps(feat, kernel, bias)
    opaque = torch.compiler.is_compiling() and not exporting()
    maps = torch.ops.liif_fast.convolve(feat, kernel, bias) if opaque else _convolve(feat, kernel, bias)
    return maps.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])


def project_by_taps(feat: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Project by a sum of matrix products, one for each tap of the kernel.

    GPUs use this, because a convolution there rounds to TF32 unless told otherwise, and may use Winograd's algorithm,
    which spreads a NaN over a tile. A CPU uses the convolution, which is faster there.
    """
    batch, channels, height, width = feat.shape
    hidden, side = kernel.shape[0], kernel.shape[2]
    border = side // 2
    wide = width + 2 * border
    # In the flat, padded map a tap is a constant shift. Rows that wrap around are cut off at the end.
    rows = F.pad(feat.permute(0, 2, 3, 1), (0, 0, border, border, border, 2 * border)).flatten(1, 2)
    taps = kernel.permute(2, 3, 1, 0).flatten(0, 1)
    out = bias.expand(batch, height * wide, hidden)
    for tap in range(side * side):
        shift = tap // side * wide + tap % side
        part = rows[:, shift : shift + height * wide]
        out = torch.baddbmm(out, part, taps[tap].expand(batch, channels, hidden))
    return out.unflatten(1, (height, wide))[:, :, :width].reshape(-1, hidden)


# Inductor fixes the width of the map when it lowers the gradient of a convolution, so torch.compile would compile again
# for each new width. As an opaque operator the convolution serves every size.

torch.library.define("liif_fast::convolve", "(Tensor feat, Tensor kernel, Tensor bias) -> Tensor")
torch.library.define(
    "liif_fast::convolve_backward",
    "(Tensor grad, Tensor feat, Tensor kernel, bool[3] wanted) -> (Tensor, Tensor, Tensor)",
)


def _convolve(feat: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    feat = feat.contiguous(memory_format=torch.channels_last)
    maps = F.conv2d(feat, kernel, bias, padding=kernel.shape[2] // 2)
    return maps.contiguous(memory_format=torch.channels_last)


@torch.library.register_fake("liif_fast::convolve")
def _convolve_fake(feat: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    shape = (feat.shape[0], kernel.shape[0], *feat.shape[2:])
    return torch.empty(shape, dtype=feat.dtype, device=feat.device, memory_format=torch.channels_last)


def _convolve_backward(
    grad: Tensor, feat: Tensor, kernel: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    padding, feat = [kernel.shape[2] // 2] * 2, feat.contiguous(memory_format=torch.channels_last)
    grads = torch.ops.aten.convolution_backward(
        grad, feat, kernel, [kernel.shape[0]], [1, 1], padding, [1, 1], False, [0, 0], 1, wanted
    )
    likes = _convolve_backward_fake(grad, feat, kernel, wanted)
    # Some of PyTorch's kernels also return gradients that were not requested.
    return tuple([made.contiguous() if want else like for made, like, want in zip(grads, likes, wanted, strict=True)])


@torch.library.register_fake("liif_fast::convolve_backward")
def _convolve_backward_fake(
    grad: Tensor, feat: Tensor, kernel: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (feat.shape, kernel.shape, kernel.shape[:1])
    likes = [grad.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted, strict=True)]
    return likes[0], likes[1], likes[2]


def _convolve_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _convolve_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad)
    grads = torch.ops.liif_fast.convolve_backward(grad, *ctx.saved_tensors, wanted)
    return tuple([made if want else None for made, want in zip(grads, wanted, strict=True)])


torch.library.impl("liif_fast::convolve", "CompositeExplicitAutograd", _convolve)
torch.library.impl("liif_fast::convolve_backward", "CompositeExplicitAutograd", _convolve_backward)
torch.library.register_autograd("liif_fast::convolve", _convolve_autograd, setup_context=_convolve_context)
