"""Run encoders' 3x3 convolutions by Winograd's algorithm, where the caller allows its rounding."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from liif_fast.backends import cpu
from liif_fast.call import hidden_from
from liif_fast.layers import altered
from liif_fast.ops.conv3x3 import convolve3x3, plain

LEAST_CHANNELS, LEAST_PIXELS = 16, 1024  # of the output; below, the transforms cost more than they save

_entered: ContextVar[int] = ContextVar("fast_convolutions", default=0)  # how many contexts are open


class fast_convolutions(TorchFunctionMode):
    """Allow another algorithm for 3x3 convolutions on a CPU within this context.

    It applies to `torch.nn.functional.conv2d`, and so to `nn.Conv2d`, in float32 with stride 1 and a border of one
    zero, forward and backward, also under autocast to bfloat16, unless the processor has matrix units for that. All
    other convolutions run as usual. Winograd's F(4x4, 3x3) needs a quarter of the multiplications. Its rounding
    (docs/cpu.md) depends on a pixel's place, so a part of an image does not get the bits of the whole.

    Example:
        with fast_convolutions():
            loss = model(inp, coord, cell).sub(target).abs().mean()
        loss.backward()
    """

    def __enter__(self) -> fast_convolutions:
        super().__enter__()
        _entered.set(_entered.get() + 1)
        return self

    def __exit__(self, *error: Any) -> None:
        _entered.set(_entered.get() - 1)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a convolution that fits, and call every other function."""
        return (_conv2d if func is F.conv2d else func)(*args, **kwargs or {})


def range_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve a range image `[B, C, H, W]`: columns are circular, and the first and the last row repeat."""
    if _fits(x, weight, bias):
        return convolve3x3(x, weight, bias, None, True, False)
    return plain(x, weight, bias, None, True, False)


def residual(x: Tensor, body: nn.Sequential, first: nn.Conv2d, second: nn.Conv2d, wrap: bool) -> Tensor:
    """Return x + body(x). body holds the first convolution, a ReLU and the second; `wrap` is for range images."""
    whole = not any(map(altered, body.modules())) and x.shape[1] == second.out_channels
    if whole and all(_fits(x, each.weight, each.bias) for each in (first, second)):
        hidden = convolve3x3(x, first.weight, first.bias, None, wrap, True)
        return convolve3x3(hidden, second.weight, second.bias, x, wrap, False)
    return x + body(x)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    bordered = _pair(stride) == (1, 1) == _pair(dilation) and _pair(padding) in ((1, 1), "same") and groups == 1
    if bordered and _fits(input, weight, bias):
        return convolve3x3(input, weight, bias, None, False, False)
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _pair(size: Any) -> Any:
    return (size, size) if isinstance(size, int) else size if isinstance(size, str) else tuple(size)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = [x, weight] if bias is None else [x, weight, bias]
    return (
        not torch.compiler.is_compiling()  # first, because a compiler cannot read a context variable
        and _entered.get() > 0
        and not cpu._missing
        and all(each.device.type == "cpu" and each.dtype == torch.float32 for each in tensors)
        and x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and len(weight) >= LEAST_CHANNELS
        and len(x) * x.shape[2] * x.shape[3] >= LEAST_PIXELS
        and not (torch.is_autocast_enabled("cpu") and torch.cpu._is_amx_tile_supported())
        and forward_ad._current_level < 0
        and not hidden_from()
    )
