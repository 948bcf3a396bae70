"""Instructions of a whole warp on matrices: mma and ldmatrix, lane by lane as the PTX ISA lays fragments out."""

from __future__ import annotations

import numpy as np

LANE = np.arange(32)
ROW, PAIR = LANE // 4, LANE % 4  # of a fragment of 8 rows, four lanes a row


def halves(registers: np.ndarray, kind: str) -> np.ndarray:
    """Unpack two 16-bit floats of each register: [..., 2], float64."""
    pair = np.stack((registers & 0xFFFF, registers >> 16), -1).astype(np.uint32)
    if kind == "bf16":
        return (pair << 16).view(np.float32).astype(np.float64)
    return pair.astype(np.uint16).view(np.float16).astype(np.float64)


def truncated(values: np.ndarray) -> np.ndarray:
    """Cut float64 to the 24 bits of a float32."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.trunc(fraction * 2**24) / 2**24, exponent)


def multiply(
    a: list[np.ndarray], b: list[np.ndarray], c: list[np.ndarray], kind: str, truncate: int
) -> list[np.ndarray]:
    """Return d = a b + c of m16n8k16 (f16, bf16) or m16n8k8 (tf32), as registers [warps * 32] float32.

    Args:
        a, b: uint32 registers; c: float32 registers.
        truncate: products that the tensor core adds at a time, each sum cut to 24 bits; 0 adds all and rounds once.
    """
    warps = a[0].size // 32
    depth = 8 if kind == "tf32" else 16
    left, right, total = np.zeros((warps, 16, depth)), np.zeros((warps, depth, 8)), np.zeros((warps, 16, 8))
    for i, register in enumerate(each.reshape(warps, 32) for each in a):
        if kind == "tf32":  # the lowest 13 bits are ignored
            left[:, ROW + 8 * (i & 1), PAIR + 4 * (i >> 1)] = (register & np.uint32(0xFFFFE000)).view(np.float32)
        else:
            for high in (0, 1):
                left[:, ROW + 8 * (i & 1), 2 * PAIR + high + 8 * (i >> 1)] = halves(register, kind)[..., high]
    for i, register in enumerate(each.reshape(warps, 32) for each in b):
        if kind == "tf32":
            right[:, PAIR + 4 * i, ROW] = (register & np.uint32(0xFFFFE000)).view(np.float32)
        else:
            for high in (0, 1):
                right[:, 2 * PAIR + high + 8 * i, ROW] = halves(register, kind)[..., high]
    for i, register in enumerate(c):
        total[:, ROW + 8 * (i >> 1), 2 * PAIR + (i & 1)] = register.reshape(warps, 32)
    step = truncate or depth
    for at in range(0, depth, step):
        total = left[:, :, at : at + step] @ right[:, at : at + step] + total
        if truncate:
            total = truncated(total)
    result = total.astype(np.float32)
    return [result[:, ROW + 8 * (i >> 1), 2 * PAIR + (i & 1)].ravel() for i in range(len(c))]


def spread(rows: np.ndarray, transposed: bool) -> list[np.ndarray]:
    """Distribute 8x8 matrices of 16 bits to lanes as ldmatrix does: rows uint16 [warps, matrices, 8, 8]."""
    registers = []
    for matrix in rows.transpose(1, 0, 2, 3):
        matrix = (matrix.transpose(0, 2, 1) if transposed else matrix).astype(np.uint32)
        low, high = matrix[:, ROW, 2 * PAIR], matrix[:, ROW, 2 * PAIR + 1]
        registers.append((low | high << 16).ravel())
    return registers


def gathered(registers: list[np.ndarray], transposed: bool) -> np.ndarray:
    """Return the rows that stmatrix writes, the reverse of `spread`: bytes [warps * 8 * matrices, 16]."""
    matrices = []
    for register in registers:
        lanes = register.reshape(-1, 32)
        matrix = np.empty((len(lanes), 8, 8), np.uint16)
        matrix[:, ROW, 2 * PAIR], matrix[:, ROW, 2 * PAIR + 1] = lanes & 0xFFFF, lanes >> 16
        matrices.append(matrix.transpose(0, 2, 1) if transposed else matrix)
    rows = np.ascontiguousarray(np.stack(matrices, 1))
    return rows.reshape(-1, 8).view(np.uint8)
