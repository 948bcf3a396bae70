"""Compute PTX arithmetic on arrays of lanes, a function per opcode: (opcode parts, operands in order) -> result."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

TYPES = {
    **{f"{kind}{bits}": np.dtype(f"{code}{bits // 8}") for kind, code in (("u", "u"), ("s", "i"), ("b", "u"))
       for bits in (8, 16, 32, 64)},
    "f16": np.dtype("f2"), "f32": np.dtype("f4"), "bf16": np.dtype("u2"), "f16x2": np.dtype("u4"),
    "bf16x2": np.dtype("u4"), "tf32": np.dtype("u4"),
}  # fmt: skip
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
COMPARE = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt,
           "ge": operator.ge}  # fmt: skip


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Compute a b + c of float32, rounded once; the float64 sum is rounded to odd, so the second rounding is exact."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    odd = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    return np.where(odd, bits + np.where((error > 0) == (total > 0), 1, -1), bits).view(np.float64).astype(np.float32)


def quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divide integers towards zero; division by zero gives anything, as in PTX."""
    b = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return a // b
    found = np.abs(a) // np.abs(b)
    return np.where((a < 0) ^ (b < 0), -found, found)


def high_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    wide = np.uint64 if a.dtype.kind == "u" else np.int64
    return (a.astype(wide) * b.astype(wide) >> wide(8 * a.itemsize)).astype(a.dtype)


def multiply(opcode: tuple[str, ...], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if "wide" in opcode:
        wide = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
        return a.astype(wide) * b.astype(wide)
    return high_product(a, b) if "hi" in opcode else a * b


def shift_left(a: np.ndarray, count: np.ndarray) -> np.ndarray:
    bits = 8 * a.itemsize
    return np.where(count < bits, a << np.minimum(count, bits - 1).astype(a.dtype), a.dtype.type(0))


def shift_right(a: np.ndarray, count: np.ndarray) -> np.ndarray:
    bits = 8 * a.itemsize
    moved = a >> np.minimum(count, bits - 1).astype(a.dtype)
    return moved if a.dtype.kind == "i" else np.where(count < bits, moved, a.dtype.type(0))


def field(a: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Compute bfe: `length` bits of a from bit `start`, sign-extended if a is signed."""
    found = (a.astype(np.int64) >> start.astype(np.int64)) & ((1 << length.astype(np.int64)) - 1)
    if a.dtype.kind == "i":
        found = np.where(
            found >> np.maximum(length.astype(np.int64) - 1, 0) & 1, found - (1 << length.astype(np.int64)), found
        )
    return found.astype(a.dtype)


def inserted(a: np.ndarray, b: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Compute bfi: b with `length` bits from bit `start` on replaced by the lowest bits of a."""
    mask = (1 << length.astype(np.int64)) - 1 << start.astype(np.int64)
    return (b.astype(np.int64) & ~mask | a.astype(np.int64) << start.astype(np.int64) & mask).astype(a.dtype)


def permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """Compute prmt: select four of the eight bytes of b:a."""
    both, chosen = b.astype(np.uint64) << np.uint64(32) | a, np.zeros(a.shape, np.uint64)
    for i in range(4):
        select = selector.astype(np.uint64) >> np.uint64(4 * i)
        byte = both >> np.uint64(8) * (select & np.uint64(7)) & np.uint64(255)
        sign = np.where(byte > 127, np.uint64(255), np.uint64(0))
        chosen |= np.where(select & np.uint64(8) != 0, sign, byte) << np.uint64(8 * i)
    return chosen.astype(np.uint32)


def extremum(opcode: tuple[str, ...], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    least, integer, nan = opcode[0] == "min", a.dtype.kind != "f", "NaN" in opcode
    if integer or nan:
        return (np.minimum if least else np.maximum)(a, b)
    return (np.fmin if least else np.fmax)(a, b)


def bfloat16(a: np.ndarray) -> np.ndarray:
    """Round float32 to the 16 bits of a bfloat16, half to even."""
    bits = a.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(a), np.uint64(0x7FFF), rounded).astype(np.uint16)


def convert(opcode: tuple[str, ...], *values: np.ndarray) -> np.ndarray:
    target, source, a = opcode[-2], opcode[-1], values[0]
    if "relu" in opcode:  # keeps a NaN
        values = tuple(np.where(each < 0, np.float32(0), each) for each in values)
    if target in ("f16x2", "bf16x2"):
        high, low = (convert((target[:-2], "f32"), each).view(np.uint16).astype(np.uint32) for each in values)
        return high << 16 | low
    if target == "bf16":
        return bfloat16(a)
    if source == "bf16":
        return (a.astype(np.uint32) << 16).view(np.float32)
    if target == "tf32":  # to nearest, ties away from zero
        return (a.view(np.uint32).astype(np.uint64) + 0x1000 & 0xFFFFE000).astype(np.uint32)
    if "rni" in opcode:
        a = np.rint(a)
    if "rzi" in opcode:
        limits = np.iinfo(TYPES[target])
        return np.nan_to_num(np.trunc(a.astype(np.float64))).clip(limits.min, limits.max).astype(TYPES[target])
    return a.astype(TYPES[target])


def approximate(exact: np.ndarray) -> np.ndarray:
    """Round to float32 without its last bit, an error that PTX allows its approximations."""
    return (exact.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFFFFE)).view(np.float32)


OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "add": lambda _, a, b: a + b,
    "sub": lambda _, a, b: a - b,
    "mul": multiply,
    "mad": lambda opcode, a, b, c: multiply(opcode, a, b) + c,
    "fma": lambda _, a, b, c: fma(a, b, c),
    "div": lambda _, a, b: a / b if a.dtype.kind == "f" else quotient(a, b),
    "rem": lambda _, a, b: a - quotient(a, b) * b,
    "neg": lambda _, a: -a,
    "abs": lambda _, a: np.abs(a),
    "not": lambda _, a: ~a,
    "and": lambda _, a, b: a & b,
    "or": lambda _, a, b: a | b,
    "xor": lambda _, a, b: a ^ b,
    "shl": lambda _, a, count: shift_left(a, count),
    "shr": lambda _, a, count: shift_right(a, count),
    "bfe": lambda _, a, start, length: field(a, start, length),
    "bfi": lambda _, a, b, start, length: inserted(a, b, start, length),
    "prmt": lambda _, a, b, selector: permute(a, b, selector),
    "ex2": lambda _, a: approximate(np.exp2(a.astype(np.float64))),
    "rsqrt": lambda _, a: approximate(1 / np.sqrt(a.astype(np.float64))),
    "min": extremum,
    "max": extremum,
    "cvt": convert,
}
