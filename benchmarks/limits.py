"""Measure the machine's limits in the same rounds as the variants compared with them.

No kernel can multiply faster than the machine's units, or read and write faster than its memory. Both rates come from
PyTorch's libraries: from the fastest of several large matrix products, and from a copy far larger than the caches. The
useful operations are those of all terms. A share above 100 % means that a kernel multiplies faster than those
libraries, or that it omits terms of 0 (docs/cpu.md#zeros).
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SGEMM = (8192, 256, 256)  # rows, inner, columns: a hidden layer over 8192 rows
COPY_BYTES = 1 << 28
TINY = 64  # --check divides a side by it, and its rates mean nothing


class Work(NamedTuple):
    """Hold the work of a call whose activations are not 0."""

    flop: int  # useful operations: multiplications and additions of all terms
    nbytes: int  # bytes that must be read from or written to memory at least once


class Yardstick(NamedTuple):
    """Hold a call that does a known amount of one kind of work."""

    name: str
    call: Callable[[], object]
    amount: int  # flop or bytes of a call


def decode_work(queries: int, latents: int, weights: Sequence[Tensor]) -> Work:
    """Return the work of decoding `queries` that read `latents` of the map, without the projection of the latents.

    Operations are those of all terms, 1.58 M per query for 256 x 4, though kernels may omit terms of 0. Four corners go
    through the part of the first layer that depends on rel and cell, and through the hidden layers. The last layer is
    linear, so once per query suffices. Memory is that of the projection, coord, cell and the output in float32, once
    each.
    """
    corner = 4 * weights[0].shape[0] + sum(weight.numel() for weight in weights[1:-1])
    flop = 2 * queries * (4 * corner + weights[-1].numel())
    return Work(flop, 4 * (queries * (4 + weights[-1].shape[0]) + latents * weights[0].shape[0]))


def training_work(queries: int, latents: int, weights: Sequence[Tensor]) -> Work:
    """Return the work of a forward and backward pass, which has three products for each one of decoding.

    Recomputation does not count. The projection and its gradient count as memory traffic.
    """
    flop, _ = decode_work(queries, latents, weights)
    return Work(3 * flop, 4 * (queries * (4 + 2 * weights[-1].shape[0]) + 2 * latents * weights[0].shape[0]))


def yardsticks(device: torch.device, half: bool = False, tiny: bool = False) -> list[Yardstick]:
    """Return the machine's rates as calls: "sgemm", "matrix" (the fastest product found) and "copy".

    Args:
        device: the device to measure.
        half: multiply in float16, on a GPU.
        tiny: use sizes that only show that everything runs.
    """
    part = TINY if tiny else 1
    products = [_product(device, torch.float32, SGEMM[0] // part, *SGEMM[1:])]
    side = (2048 if device.type == "cpu" else 8192) // part
    products.append(_product(device, torch.float16 if half else torch.float32, side, side, side))
    if device.type == "cpu":
        products.append(_convolution(64 // (8 if tiny else 1)))
    fastest = max(products[1:] if half else products, key=lambda each: each.amount / _fastest(each.call, device))
    source = torch.zeros(COPY_BYTES // part, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copy = Yardstick("copy", lambda: target.copy_(source), 2 * source.nbytes)  # reads and writes
    return [products[0]._replace(name="sgemm"), fastest._replace(name="matrix"), copy]


def _product(device: torch.device, dtype: torch.dtype, rows: int, inner: int, columns: int) -> Yardstick:
    """Return a matrix product of PyTorch's library, e.g. MKL or cuBLAS."""
    x, weight = torch.randn(rows, inner, device=device).to(dtype), torch.randn(inner, columns, device=device).to(dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    return Yardstick("product", lambda: torch.mm(x, weight, out=out), 2 * rows * inner * columns)


def _convolution(side: int) -> Yardstick:
    """Return oneDNN's product, as a 3x3 convolution of 256 channels, which on some CPUs is faster than MKL's."""
    image = torch.randn(1, 256, side, side).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(256, 256, 3, 3)
    return Yardstick("convolution", lambda: F.conv2d(image, kernel, padding=1), 2 * 9 * 256 * 256 * side * side)


def synchronize(device: torch.device) -> None:
    """Wait for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(4):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
