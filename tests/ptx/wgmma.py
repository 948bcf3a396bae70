"""wgmma as the PTX ISA draws it: operands in shared memory by descriptor; the share of one warp, 16 of the 64 rows."""

from __future__ import annotations

import functools

import numpy as np

from .matrix import added
from .memory import Fault

SIZES = {"f16": 2, "bf16": 2, "tf32": 4}  # bytes of an element


@functools.lru_cache(maxsize=1024)
def addresses(descriptor: int, rows: int, size: int, transposed: bool) -> np.ndarray:
    """Return the address of each element of an operand [rows, 32 bytes of K], of `size` bytes.

    Args:
        rows: of A (64) or columns of B.
        transposed: the elements of a column are neighbours in memory, not those of a row (MN-major).
    """
    start, leading, stride = ((descriptor >> bit & 0x3FFF) << 4 for bit in (0, 16, 32))
    mode = descriptor >> 62
    if descriptor >> 49 & 7 or mode == 0:
        raise Fault(f"a matrix descriptor {descriptor:#x} that this model does not have")
    width = 256 >> mode  # bytes of a row of the swizzle's pattern: 128, 64 or 32
    row, k = np.mgrid[:rows, : 32 // size]
    if transposed:
        along, across = row * size, k
        address = start + along // width * leading + along % width + across // 8 * stride + across % 8 * width
    else:
        address = start + row // 8 * stride + row % 8 * width + k * size
    return address ^ (address >> 7 & width // 16 - 1) << 4


def multiply(d: np.ndarray, left: np.ndarray, right: np.ndarray, truncate: int) -> np.ndarray:
    """Return d + left right, float32 [columns / 2, warps * 32] as d.

    Args:
        left, right: float64 [warps, 16, K], [warps, K, columns].
        truncate: see matrix.multiply.
    """
    # Accumulator n of a lane: row 8 (n / 2 % 2) and on, columns 8 (n / 4) and on, of two neighbours the one n % 2.
    warps, columns = len(left), right.shape[2]
    total = d.reshape(-1, 2, 2, warps, 8, 4).transpose(3, 1, 4, 0, 5, 2).reshape(warps, 16, columns)
    result = added(total, left, right, truncate).reshape(warps, 2, 8, -1, 4, 2).transpose(3, 1, 5, 0, 2, 4)
    return np.ascontiguousarray(result).reshape(d.shape)
