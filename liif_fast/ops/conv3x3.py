"""Define `conv3x3`: a 3x3 convolution of stride 1 that keeps the map's size, on the CPU by Winograd's algorithm.

Maps are [B, C, H, W] with the channels of a pixel side by side (channels-last order). Zeros surround the map. With
`wrap`, for range images, the first column follows the last, and the first and the last row repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from liif_fast.call import trains
from liif_fast.ops import define, only


def _empty(like: Tensor, images: int, channels: int, height: int, width: int) -> Tensor:
    size = (images, channels, height, width)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, wrap: bool, relu: bool) -> Tensor:
    return _empty(x, x.shape[0], weight.shape[0], *x.shape[2:])


def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, addend: Tensor | None, wrap: bool, wanted: Sequence[bool], relu: bool
) -> list[Tensor]:
    return only(wanted, [_empty(x, *x.shape), _empty(x, *weight.shape), x.new_empty(len(weight))])


LEAST_CHANNELS = 16  # of the output; below, its transforms cost more than they save

conv3x3 = define(
    "conv3x3", "(Tensor x, Tensor weight, Tensor? bias, Tensor? addend, bool wrap, bool relu) -> Tensor", _fake
)
# Return the gradients of x, weight and bias. The addend is added to that of x. With `relu`, x is the output of a ReLU,
# and its gradient is that of the ReLU's input: it passes unless x <= 0.
conv3x3_backward = define(
    "conv3x3_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor? addend, bool wrap, bool[] wanted, bool relu) -> Tensor[]",
    _backward_fake,
)


def pays(x: Tensor, outs: int) -> bool:
    """Say whether Winograd's algorithm is the faster one for a map [B, C, H, W] and this many outputs.

    A tile of 4x4 pixels takes as long as 9 pixels of a direct convolution, however many of its pixels the map has. The
    transforms of the weights take as long as 48 tiles, or more where the weights exceed a second-level cache.
    """
    images, ins, height, width = x.shape
    tiles = images * -(-height // 4) * -(-width // 4)
    return outs >= LEAST_CHANNELS and 9 * (tiles + max(48, ins // 2, outs // 2)) <= images * height * width


def wrapped(x: Tensor) -> Tensor:
    """Return a range image [B, C, H, W] with a border of one pixel, [B, C, H + 2, W + 2]."""
    return F.pad(F.pad(x, (0, 0, 1, 1), mode="replicate"), (1, 1, 0, 0), mode="circular")


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, wrap: bool, relu: bool) -> Tensor:
    """Compute `conv3x3` by PyTorch's convolution."""
    out = F.conv2d(wrapped(x) if wrap else x, weight, bias, padding=0 if wrap else 1)
    out = out if addend is None else out + addend
    return out.relu_() if relu else out


def plain_residual(
    x: Tensor, weight_1: Tensor, bias_1: Tensor | None, weight_2: Tensor, bias_2: Tensor | None, wrap: bool
) -> Tensor:
    """Compute `residual3x3` by PyTorch's convolution."""
    return plain(plain(x, weight_1, bias_1, None, wrap, True), weight_2, bias_2, x, wrap, False)


def _again(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], wanted: Sequence[bool], grad: Tensor
) -> Iterator[Tensor | None]:
    """Yield the gradients of the function's inputs that are wanted, which can be differentiated themselves."""
    # Views, because one input may depend on another, and this gradient must stop at each.
    inputs = [None if each is None else each.view_as(each) for each in inputs]
    asked = [each for each, want in zip(inputs, wanted, strict=True) if each is not None and want]
    found = iter(torch.autograd.grad(function(*inputs), asked, grad, create_graph=True))
    return (next(found) if want else None for want in wanted)


class _Conv3x3(torch.autograd.Function):
    """Convolve the inputs x, weight, bias and addend."""

    @staticmethod
    def forward(ctx: Any, wrap: bool, relu: bool, *inputs: Any) -> Tensor:
        out: Tensor = conv3x3(*inputs, wrap, relu)
        ctx.switches = wrap, relu
        ctx.save_for_backward(*inputs, out if relu else None)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out = ctx.saved_tensors
        wanted, (wrap, relu) = ctx.needs_input_grad[2:], ctx.switches
        if torch.is_grad_enabled():  # the gradient will itself be differentiated, as PyTorch's convolution can be
            return None, None, *_again(partial(plain, wrap=wrap, relu=relu), inputs, wanted, grad)
        if out is not None:
            grad = grad.masked_fill(out <= 0, 0)
        grads = conv3x3_backward(channels_last(grad), *inputs[:2], None, wrap, wanted[:3], False)
        return None, None, *_of(wanted, (*grads, grad))


class _Residual3x3(torch.autograd.Function):
    """Convolve the input x twice, with the first weight and bias, then the second; as `residual3x3`."""

    @staticmethod
    def forward(ctx: Any, wrap: bool, *inputs: Any) -> Tensor:
        x, weight_1, bias_1, weight_2, bias_2 = inputs
        hidden = conv3x3(x, weight_1, bias_1, None, wrap, True)
        ctx.wrap = wrap
        ctx.save_for_backward(*inputs, hidden)
        return conv3x3(hidden, weight_2, bias_2, x, wrap, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, hidden = ctx.saved_tensors
        wanted, wrap = ctx.needs_input_grad[1:], ctx.wrap
        if torch.is_grad_enabled():
            return None, *_again(partial(plain_residual, wrap=wrap), inputs, wanted, grad)
        x, weight_1, _, weight_2, _ = inputs
        grad, first = channels_last(grad), wanted[:3]
        second = [any(first), *wanted[3:]]
        of_hidden, *of_second = conv3x3_backward(grad, hidden, weight_2, None, wrap, second, True)
        of_first = [None] * 3
        if any(first):
            of_first = conv3x3_backward(of_hidden, x, weight_1, grad, wrap, first, False)
        return None, *_of(wanted, (*of_first, *of_second))


def _of(wanted: Sequence[bool], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [each if want else None for each, want in zip(grads, wanted, strict=True)]


def channels_last(x: Tensor) -> Tensor:
    """Return a map [B, C, H, W] with the channels of a pixel side by side, a copy unless they are."""
    return x if x.shape[1] == 1 or x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def convolve3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, wrap: bool, relu: bool
) -> Tensor:
    """Return relu(conv(x) + bias + addend), [B, out, H, W] in channels-last order, from maps in any layout."""
    inputs = channels_last(x), weight, bias, None if addend is None else channels_last(addend)
    return _Conv3x3.apply(wrap, relu, *inputs) if trains(*inputs) else conv3x3(*inputs, wrap, relu)


def residual3x3(
    x: Tensor, weight_1: Tensor, bias_1: Tensor | None, weight_2: Tensor, bias_2: Tensor | None, wrap: bool
) -> Tensor:
    """Return x + conv_2(relu(conv_1(x))), [B, C, H, W] in channels-last order, from a map in any layout.

    Its gradient makes no pass over the map for the sum or for the ReLU.
    """
    inputs = channels_last(x), weight_1, bias_1, weight_2, bias_2
    if trains(*inputs):
        return _Residual3x3.apply(wrap, *inputs)
    hidden = conv3x3(*inputs[:3], None, wrap, True)
    return conv3x3(hidden, weight_2, bias_2, inputs[0], wrap, False)
