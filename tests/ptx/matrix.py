"""Instructions of a whole warp on matrices: mma and ldmatrix, lane by lane as the PTX ISA lays fragments out."""

from __future__ import annotations

import numpy as np


def numbers(raw: np.ndarray, kind: str) -> np.ndarray:
    """Return floats of 16 bits (f16, bf16) or tf32, given as unsigned integers of their size, as float64."""
    if kind == "f16":
        return raw.view(np.float16).astype(np.float64)
    bits = raw.astype(np.uint32) << 16 if kind == "bf16" else raw & np.uint32(0xFFFFE000)  # 13 bits are ignored
    return bits.view(np.float32).astype(np.float64)


def halves(registers: np.ndarray, kind: str) -> np.ndarray:
    """Unpack two 16-bit floats of each register: [lanes, 2], float64."""
    return numbers(registers.view(np.uint16), kind).reshape(-1, 2)


def truncated(values: np.ndarray) -> np.ndarray:
    """Cut float64 to the 24 bits of a float32."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.trunc(fraction * 2**24) / 2**24, exponent)


def fragments(registers: np.ndarray, kind: str) -> np.ndarray:
    """Return the 8 rows of 4 or 8 elements of each register, float64 [registers, warps, 8, 4 or 8], of uint32 lanes."""
    if kind == "tf32":
        return numbers(registers, kind).reshape(len(registers), -1, 8, 4)
    return numbers(registers.view(np.uint16), kind).reshape(len(registers), -1, 8, 8)


def rows(a: np.ndarray, kind: str) -> np.ndarray:
    """Return the 16 rows of A of each warp, float64 [warps, 16, 16 or 8], from its registers uint32 [4, lanes]."""
    parts = fragments(a, kind)  # of register i: row 8 (i % 2) and on, the first or second half of K
    warps, half = parts.shape[1], parts.shape[3]
    return parts.reshape(2, 2, warps, 8, half).transpose(2, 1, 3, 0, 4).reshape(warps, 16, 2 * half)


def added(total: np.ndarray, left: np.ndarray, right: np.ndarray, truncate: int) -> np.ndarray:
    """Return total + left right, float32 [..., rows, columns], of float64 operands; see multiply."""
    depth = left.shape[-1]
    step = truncate or depth
    for at in range(0, depth, step):
        total = left[..., at : at + step] @ right[..., at : at + step, :] + total
        if truncate:
            total = truncated(total)
    return total.astype(np.float32)


def multiply(a: np.ndarray, b: np.ndarray, c: np.ndarray, kind: str, truncate: int) -> np.ndarray:
    """Return d = a b + c of m16n8k16 (f16, bf16) or m16n8k8 (tf32), as registers float32 [4, warps * 32].

    Args:
        a, b: registers uint32 [4 and 2, warps * 32]; c: registers float32 [4, warps * 32].
        truncate: products that the tensor core adds at a time, each sum cut to 24 bits; 0 adds all and rounds once.
    """
    left, right = rows(a, kind), fragments(b, kind).transpose(1, 0, 3, 2)
    right = right.reshape(len(left), -1, 8)
    total = c.reshape(2, 2, -1, 8, 4).transpose(2, 0, 3, 4, 1).reshape(-1, 16, 8)
    result = added(total, left, right, truncate).reshape(-1, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3)
    return np.ascontiguousarray(result).reshape(4, -1)


def spread(rows: np.ndarray, transposed: bool) -> np.ndarray:
    """Distribute 8x8 matrices of 16 bits to lanes as ldmatrix does: registers uint32 [matrices, warps * 32].

    Args:
        rows: uint16 [warps, matrices, 8, 8].
    """
    if transposed:
        rows = rows.swapaxes(2, 3)
    return np.ascontiguousarray(rows.swapaxes(0, 1)).reshape(rows.shape[1], -1).view(np.uint32)


def gathered(registers: np.ndarray, transposed: bool) -> np.ndarray:
    """Return the rows that stmatrix writes, the reverse of `spread`: bytes [warps * 8 * matrices, 16]."""
    rows = registers.view(np.uint16).reshape(len(registers), -1, 8, 8).swapaxes(0, 1)
    if transposed:
        rows = rows.swapaxes(2, 3)
    return np.ascontiguousarray(rows).reshape(-1, 8).view(np.uint8)
