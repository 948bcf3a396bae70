"""Compare the AMX kernel's products with exact ones: python products.py PRODUCTS.so EMULATOR.so SEED COUNT.

It is a separate program, because every operand lies between pages that may not be touched, and a fault of the kernel
or of an instruction ends it. Small whole numbers are compared bit for bit. For other numbers the error is compared with
that of the kernel for AVX512-BF16.
"""

import ctypes
import mmap
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

ZERO, BIAS, ACCUMULATE = range(3)
NONE, RELU, MASK = range(3)
PANEL = 32  # columns of a panel
PAGE = mmap.PAGESIZE


class Gemm(ctypes.Structure):
    """csrc/cpu/kernel.h: Gemm."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "columns", "steps")),
        ("a", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("a_row", "a_step")),
        ("b", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("b_panel", "b_step")),
        ("c", ctypes.c_void_p),
        ("c_row", ctypes.c_int64),
        ("init", ctypes.c_int),
        ("bias", ctypes.c_void_p),
        ("epilogue", ctypes.c_int),
        ("mask", ctypes.c_void_p),
        ("b_column", ctypes.c_int64),
        ("skips", ctypes.c_bool),
    ]


libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(array: np.ndarray, at_end: bool) -> np.ndarray:
    """Copy an array to memory that begins or ends at a page that may not be touched."""
    inside = -(-array.nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, inside + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (address, address + PAGE + inside):
        assert libc.mprotect(page, PAGE, 0) == 0
    start = PAGE + (inside - array.nbytes if at_end else 0)
    other = np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
    other[...] = array
    return other


def low(x: np.ndarray) -> np.ndarray:
    """Round float32 to the bits of bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def wide(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Case:
    """One product of random sizes, strides, start and end."""

    def __init__(self, rng: np.random.Generator, whole: bool) -> None:
        self.sums = bool(rng.integers(2))
        self.rows, self.columns, self.steps = (int(rng.integers(1, most)) for most in (100, 100, 60))
        if rng.integers(8) == 0:
            self.steps += 128  # more than are held
        self.init, self.epilogue = int(rng.integers(3)), int(rng.integers(3))
        turned, of_b = rng.integers(2), rng.integers(3)
        padded = -(-self.columns // PANEL) * PANEL
        draw = (lambda *of: rng.integers(-3, 4, of)) if whole else (lambda *of: rng.standard_normal(of))
        ends = rng.integers(2, size=5)
        # Some channels are 0 in every row, as behind a ReLU: the kernel without AMX may leave them out
        self.skips = bool(self.init == BIAS and of_b == 2 and not turned)
        kept = rng.random(2 * self.steps) >= (0.6 if self.skips else 0)

        def operand(x: np.ndarray, end: int) -> np.ndarray:
            return guarded(x, bool(ends[end]))

        a, b = low(draw(self.rows, 2 * self.steps) * kept), low(draw(2 * self.steps, padded))
        # terms_impl.h: a register tile of 12 rows of which at most 75 % are left
        self.leaves_out = self.skips and self.rows >= 12 and kept.mean() <= 0.75
        b[:, self.columns :] = 0
        self.bias = np.float32(draw(padded))
        self.before = np.float32(draw(self.rows, padded))
        gap = int(rng.integers(3)) * 2
        if turned:  # a[step][row][2]
            shape, self.a_row, self.a_step = (self.steps, 2 * self.rows + gap), 2, 2 * self.rows + gap
            held = np.zeros(shape, np.uint16)
            held[:, : 2 * self.rows] = a.reshape(self.rows, self.steps, 2).swapaxes(0, 1).reshape(self.steps, -1)
        else:
            shape, self.a_row, self.a_step = (self.rows, 2 * self.steps + gap), 2 * self.steps + gap, 2
            held = np.zeros(shape, np.uint16)
            held[:, : 2 * self.steps] = a
        rows = held.reshape(-1)[: held.size - gap]
        pairs = b.reshape(self.steps, 2, padded).swapaxes(1, 2)  # [step][column][2]
        self.b_column = 0
        if of_b == 0 and not turned:  # columns, as nn.Linear has them
            self.columns = padded
            panels = b.T.reshape(-1)
            self.b_column, self.b_panel, self.b_step = 2 * self.steps, 0, 0
        elif of_b == 1:  # rows of pairs
            panels = pairs.reshape(-1)
            self.b_panel, self.b_step = 2 * PANEL, 2 * padded
        else:
            panels = pairs.reshape(self.steps, -1, 2 * PANEL).swapaxes(0, 1).reshape(-1)
            self.b_panel, self.b_step = self.steps * 2 * PANEL, 2 * PANEL
        self.a, self.b = operand(rows, 0), operand(panels, 1)
        kind = np.float32 if self.sums else np.uint16
        self.c = operand(np.zeros((self.rows, padded), kind), 2)
        self.bias = operand(self.bias, 3)
        self.mask = operand(low(draw(self.rows, padded)), 4)
        self.exact_a, self.exact_b = wide(a).astype(np.float64), wide(b).astype(np.float64)

    def run(self, library: ctypes.CDLL, amx: bool) -> np.ndarray:
        """Return C, as float32."""
        self.c[...] = self.before if self.sums else low(self.before)
        addresses = {name: getattr(self, name).ctypes.data for name in ("a", "b", "c", "bias", "mask")}
        plain = {name: getattr(self, name) for name, _ in Gemm._fields_ if name not in addresses and name != "c_row"}
        gemm = Gemm(**plain, **addresses, c_row=self.c.shape[1])
        (library.product_sums if self.sums else library.product)(int(amx), ctypes.byref(gemm))
        return self.c.copy() if self.sums else wide(self.c)

    def exact(self) -> np.ndarray:
        """Return C in float64."""
        y = self.exact_a @ self.exact_b
        if self.init == BIAS:
            y += self.bias
        if self.init == ACCUMULATE:
            y += self.before if self.sums else wide(low(self.before))
        if self.epilogue == RELU:
            y = np.maximum(y, 0)
        if self.epilogue == MASK:
            y = np.where(wide(self.mask) > 0, y, 0)
        return y

    def written(self, y: np.ndarray) -> np.ndarray:
        return y[:, : self.columns]


def instruction_by_instruction(case: Case) -> np.ndarray:
    """Return the sums as Intel's manual orders them: even and odd products of 16 steps in chains, then both added."""
    total = np.zeros((case.rows, case.exact_b.shape[1]), np.float32)
    for start in range(0, case.steps, 16):
        chains = []
        for odd in (0, 1):
            chain = np.zeros_like(total)
            for k in range(start, min(start + 16, case.steps)):
                product = np.outer(case.exact_a[:, 2 * k + odd], case.exact_b[2 * k + odd])  # exact in float64
                chain = (product + chain).astype(np.float32)
            chains.append(chain)
        total = total + (chains[0] + chains[1])
    return total


def check(library: ctypes.CDLL, seed: int) -> tuple[float, float, bool]:
    """Check one case of whole numbers; return the squared errors of both kernels on another one, and its leaves_out."""
    case = Case(np.random.default_rng(seed), whole=True)
    found, exact = case.run(library, True), case.exact()
    exact = exact.astype(np.float32) if case.sums else wide(low(exact))
    assert np.array_equal(case.written(found), case.written(exact)), f"seed {seed}: whole numbers are not exact"
    again = case.run(library, True)
    assert np.array_equal(found, again), f"seed {seed}: other bits when repeated"
    assert np.array_equal(case.written(case.run(library, False)), case.written(found)), f"seed {seed}: kernels differ"
    case = Case(np.random.default_rng(seed), whole=False)
    exact = case.exact()
    ours, other = (((case.written(case.run(library, amx)) - case.written(exact)) ** 2).sum() for amx in (True, False))
    if case.sums and case.init == ZERO and case.epilogue == NONE:
        bits = case.written(case.run(library, True)), case.written(instruction_by_instruction(case))
        assert np.array_equal(*bits), f"seed {seed}: not the order of the instructions"
    return ours, other, case.leaves_out


def main() -> None:
    products, emulator, seed, count = sys.argv[1:]
    library = ctypes.CDLL(products)
    executed = None
    if emulator:
        of = ctypes.CDLL(emulator)
        executed = of.liif_fast_amx_emulator
        executed.restype = ctypes.c_ulonglong
    with ThreadPoolExecutor(3) as pool:  # each thread has its own tiles
        found = list(pool.map(lambda each: check(library, each), range(int(seed), int(seed) + int(count))))
    *squares, left_out = np.sum(found, 0)
    ours, other = np.sqrt(squares)
    assert left_out or int(count) < 40, "no case leaves out terms"
    assert ours <= 2 * other, f"error {ours:.3g}, without AMX {other:.3g}"
    assert executed is None or executed() > 100 * int(count), "AMX was not executed"
    print(f"right: error {ours:.3g}, without AMX {other:.3g}")


if __name__ == "__main__":
    main()
