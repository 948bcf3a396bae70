"""wgmma m64n256k16 with A in registers, as the PTX ISA draws it: the share of one warp, 16 of the 64 rows."""

from __future__ import annotations

import functools

import numpy as np

from ..matrix import LANE, PAIR, ROW, halves, truncated
from ..memory import Fault

COLUMNS, DEPTH = 256, 16
NUMBER = np.arange(128)[:, None]  # accumulators of a thread
D_ROW, D_COLUMN = ROW + 8 * (NUMBER // 2 % 2), 8 * (NUMBER // 4) + 2 * PAIR + NUMBER % 2


@functools.lru_cache(maxsize=512)
def operand_addresses(descriptor: int) -> np.ndarray:
    """Return the address of each element of B [16, 256], K-major in shared memory with the swizzle of 128 bytes."""
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    leading, base, mode = descriptor >> 16 & 0x3FFF, descriptor >> 49 & 7, descriptor >> 62
    if (leading, base, mode) != (1, 0, 1):
        raise Fault(f"a matrix descriptor {descriptor:#x} that this model does not have")
    k, n = np.mgrid[:DEPTH, :COLUMNS]
    address = start + n // 8 * stride + n % 8 * 128 + k * 2
    return address ^ (address >> 7 & 7) << 4  # bits 4 to 6 with bits 7 to 9


def multiply(d: np.ndarray, a: list[np.ndarray], b: np.ndarray, kind: str, truncate: int) -> np.ndarray:
    """Return d + a b, float32 [128, 32 lanes] as d.

    Args:
        a: uint32 registers.
        b: uint16 [16, 256].
        truncate: see matrix.multiply.
    """
    left = np.zeros((16, DEPTH))
    for i, register in enumerate(a):
        for high in (0, 1):
            left[ROW + 8 * (i & 1), 2 * PAIR + high + 8 * (i >> 1)] = halves(register, kind)[..., high]
    right = halves(b.astype(np.uint32), kind)[..., 0]
    total = np.empty((16, COLUMNS))
    total[D_ROW, D_COLUMN] = d[:, LANE]
    step = truncate or DEPTH
    for at in range(0, DEPTH, step):
        total = left[:, at : at + step] @ right[at : at + step] + total
        if truncate:
            total = truncated(total)
    return total.astype(np.float32)[D_ROW, D_COLUMN]
