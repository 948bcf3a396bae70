"""wgmma as the PTX ISA draws it: operands in shared memory by descriptor; the share of one warp, 16 of the 64 rows."""

from __future__ import annotations

import functools

import numpy as np

from .matrix import LANE, PAIR, ROW, halves, truncated
from .memory import Fault

TF32 = np.uint32(0xFFFFE000)  # the lowest 13 bits are ignored
SIZES = {"f16": 2, "bf16": 2, "tf32": 4}  # bytes of an element


@functools.cache
def accumulators(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column, among a warp's 16 rows, of every accumulator of every lane, [columns / 2, 32]."""
    number = np.arange(columns // 2)[:, None]
    return ROW + 8 * (number // 2 % 2), 8 * (number // 4) + 2 * PAIR + number % 2


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


def values(raw: np.ndarray, kind: str) -> np.ndarray:
    """Return elements, uint16 or uint32, as float64."""
    if kind == "tf32":
        return (raw & TF32).view(np.float32).astype(np.float64)
    return halves(raw.astype(np.uint32), kind)[..., 0]


def fragment(registers: list[np.ndarray], kind: str) -> np.ndarray:
    """Return a warp's 16 rows of A from its four registers, uint32 [32 lanes] each."""
    rows = np.zeros((16, 32 // SIZES[kind]))
    for i, register in enumerate(registers):
        if kind == "tf32":
            rows[ROW + 8 * (i & 1), PAIR + 4 * (i >> 1)] = values(register[LANE], kind)
        else:
            for high in (0, 1):
                rows[ROW + 8 * (i & 1), 2 * PAIR + high + 8 * (i >> 1)] = halves(register, kind)[..., high]
    return rows


def multiply(d: np.ndarray, left: np.ndarray, right: np.ndarray, truncate: int) -> np.ndarray:
    """Return d + left right, float32 [columns / 2, 32 lanes] as d.

    Args:
        left, right: float64 [16, K], [K, columns].
        truncate: see matrix.multiply.
    """
    depth, columns = right.shape
    where = accumulators(columns)
    total = np.empty((16, columns))
    total[where] = d
    step = truncate or depth
    for at in range(0, depth, step):
        total = left[:, at : at + step] @ right[at : at + step] + total
        if truncate:
            total = truncated(total)
    return total.astype(np.float32)[where]
