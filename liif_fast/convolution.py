"""Run encoders' 3x3 convolutions by Winograd's algorithm, where the caller allows its rounding."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from liif_fast.backends import cpu
from liif_fast.call import Fast, fast_allowed, hidden_from
from liif_fast.layers import altered
from liif_fast.ops.conv3x3 import convolve3x3, pays, residual3x3, wrapped


def fast_convolutions() -> AbstractContextManager[object]:
    """Return a context that allows another algorithm for 3x3 convolutions on a CPU.

    It applies to `torch.nn.functional.conv2d`, and so to `nn.Conv2d`, in float32 with stride 1 and a border of one
    zero, forward and backward, also under autocast to bfloat16, unless the processor has matrix units for that, and to
    the projection of a whole map in float32, with `feat_unfold` on the backend `cpu`. All other convolutions, and all
    within `torch.compile`, run as usual. Winograd's F(4x4, 3x3) needs a quarter of the multiplications. Its rounding
    (docs/cpu.md) depends on a pixel's place and neighbours, so a part of an image, or an image without its batch, may
    have other bits.

    A function given to `torch.utils.checkpoint` runs again in the backward pass, so it must enter the context itself.
    Otherwise the two runs may differ. PyTorch reports that of a convolution as a CheckpointError; that of a decoder's
    projection passes.

    Example:
        with fast_convolutions():
            loss = model(inp, coord, cell).sub(target).abs().mean()
        loss.backward()
    """
    return nullcontext() if torch.compiler.is_compiling() else _Allowed()


class _Allowed(Fast):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a convolution that fits, and call every other function."""
        return (_conv2d if func is F.conv2d else func)(*args, **kwargs or {})


class RangeConv(nn.Module):
    """A 3x3 convolution of a range image with replicated rows and circular columns at the borders."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a range image [B, in_channels, H, W]."""
        if not torch.jit.is_scripting():
            fast = _fast_range(x, self.conv)
            if fast is not None:
                return fast
        return self.conv(wrapped(x))


def _fast_range(x: Tensor, conv: nn.Module) -> Tensor | None:
    if fast_allowed() and _bare(conv, (0, 0)) and _fits(x, conv.weight, conv.bias):
        return convolve3x3(x, conv.weight, conv.bias, None, True, False)
    return None


def residual(x: Tensor, body: nn.Module) -> Tensor:
    """Return x + body(x); in one pass per convolution if body holds a 3x3 convolution, a ReLU and another."""
    found = _pair_of(body) if fast_allowed() else None
    if found is None:
        return x + body(x)
    first, second, wrap = found
    if x.shape[1] != second.out_channels or not all(_fits(x, each.weight, each.bias) for each in (first, second)):
        return x + body(x)
    return residual3x3(x, first.weight, first.bias, second.weight, second.bias, wrap)


def _pair_of(body: nn.Module) -> tuple[nn.Conv2d, nn.Conv2d, bool] | None:
    """Return the two convolutions, and whether of range images, if that and a ReLU between is all that a call runs."""
    if type(body) is not nn.Sequential or altered(body) or len(body) != 3:
        return None
    first, between, second = cast(Any, body)
    if type(between) is not nn.ReLU or altered(between) or type(first) is not type(second):
        return None
    wrap = type(first) is RangeConv
    if wrap:
        if altered(first) or altered(second):
            return None
        first, second = first.conv, second.conv
    return (first, second, wrap) if all(_bare(each, (0, 0) if wrap else (1, 1)) for each in (first, second)) else None


def _bare(conv: nn.Module, border: tuple[int, int]) -> TypeGuard[nn.Conv2d]:
    """Say whether a module is a convolution of stride 1 with this border of zeros, and its call does nothing else."""
    return (
        type(conv) is nn.Conv2d
        and not altered(conv)
        and not _has_any_global_hook()
        and "_conv_forward" not in vars(conv)
        and conv.padding_mode == "zeros"
        and _steps_by_one(conv.stride, conv.dilation, conv.groups)
        and _pair(conv.padding) in (border, "same" if any(border) else "valid")
    )


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    bordered = _steps_by_one(stride, dilation, groups) and _pair(padding) in ((1, 1), "same")
    if bordered and _fits(input, weight, bias):
        return convolve3x3(input, weight, bias, None, False, False)
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _steps_by_one(stride: Any, dilation: Any, groups: int) -> bool:
    return _pair(stride) == (1, 1) == _pair(dilation) and groups == 1


def _pair(size: Any) -> Any:
    return (size, size) if isinstance(size, int) else size if isinstance(size, str) else tuple(size)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = [x, weight] if bias is None else [x, weight, bias]
    return (
        not torch.compiler.is_compiling()
        and not hidden_from()  # first, because a tracer warns when shapes are read
        and not cpu._missing
        and all(
            each.device.type == "cpu" and each.dtype == torch.float32 and each.layout == torch.strided
            for each in tensors
        )
        and x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and pays(x, len(weight))
        and not (torch.is_autocast_enabled("cpu") and torch.cpu._is_amx_tile_supported())
        and forward_ad._current_level < 0
    )
