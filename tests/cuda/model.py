"""A model of the Hopper kernel's data movement, register by register and byte by byte.

The kernel's own headers, compiled for the host (host.cpp), execute the work of each thread. The hardware is modelled
here from the PTX ISA alone: the fragment tables of wgmma m64n256k16, the matrix descriptor, the swizzle.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
SHARED_START = 0x400  # a block's shared memory starts at any multiple of 1024


def compile_host(folder, mutate=None):
    """Compile csrc/cuda's headers for the host; `mutate` is (header, old text, new text)."""
    headers = folder / "headers"
    shutil.copytree(ROOT / "csrc/cuda", headers)
    if mutate:
        name, old, new = mutate
        text = (headers / name).read_text()
        assert text.count(old) == 1
        (headers / name).write_text(text.replace(old, new))
    library = folder / "host.so"
    torch_include = Path(torch.__file__).parent / "include"
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
    command += ["-shared", "-fPIC", f"-I{headers}", "-isystem", torch_include, ROOT / "tests/cuda/host.cpp"]
    subprocess.run([*map(str, command), "-o", str(library)], check=True)
    host = ctypes.CDLL(str(library))
    host.step_descriptor.restype = ctypes.c_uint64
    host.problem.restype = ctypes.c_void_p
    return host


def pointer(array):
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def constant(host, name):
    value = host.constant(name.encode())
    assert value >= 0, name
    return value


# ---- The hardware, from the PTX ISA.


def halves(registers, bfloat):
    """Unpack registers [..., n] of pairs to float32 [..., 2 n], low half first."""
    words = np.ascontiguousarray(registers).view(np.uint16)
    if bfloat:
        return (words.astype(np.uint32) << 16).view(np.float32)
    return words.view(np.float16).astype(np.float32)


def a_fragment(registers, bfloat):
    """Return matrix A, 64 x 16, from four registers of each of 128 threads (PTX ISA, wgmma m64nNk16, figure of A)."""
    elements = halves(registers, bfloat)  # a0 .. a7
    matrix = np.full((64, 16), np.nan, np.float32)
    for thread in range(128):
        warp, group, quad = thread // 32, thread % 32 // 4, thread % 4
        for i in range(8):
            row = 16 * warp + group + (8 if i in (2, 3, 6, 7) else 0)
            matrix[row, 2 * quad + i % 2 + (8 if i >= 4 else 0)] = elements[thread, i]
    return matrix


def d_places():
    """Return row and column of accumulator i of every thread (PTX ISA, figure of D): two arrays [128, 128]."""
    thread, i = np.mgrid[:128, :128]
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2)
    return row, 8 * (i // 4) + 2 * (thread % 4) + i % 2


def b_operand(memory, descriptor, bfloat):
    """Return matrix B, 16 x 256, K-major in shared memory, from its matrix descriptor."""
    start = (descriptor & 0x3FFF) << 4
    stride = (descriptor >> 32 & 0x3FFF) << 4  # from 8 rows to the next 8
    assert descriptor >> 62 == 1, "128-byte swizzle"
    assert descriptor >> 49 & 7 == 0, "base offset: the pattern starts at a multiple of 1024"
    assert descriptor >> 16 & 0x3FFF == 1, "the leading offset is unused, assumed to be 1"
    k, n = np.mgrid[:16, :256]
    address = start + n // 8 * stride + n % 8 * 128 + k * 2
    address ^= (address >> 7 & 7) << 4  # bits 4-6 with bits 7-9
    words = memory[address].astype(np.uint16) | memory[address + 1].astype(np.uint16) << 8
    return halves(words.view(np.uint32), bfloat)


def wgmma(d, a, memory, descriptor, bfloat):
    """Compute d [128 threads, 128] += a [128, 4] times B, exact for integers of moderate size in any order."""
    row, column = d_places()
    d += (a_fragment(a, bfloat) @ b_operand(memory, descriptor, bfloat))[row, column]


# ---- The kernel.


class Kernel:
    """Run tiles of a problem as csrc/cuda/decode_sm90.cu does."""

    def __init__(self, host, packed, products, out_dim, *, ensemble, bfloat, cluster=1):
        self.cluster, self.host, self.packed, self.products, self.out_dim = cluster, host, packed, products, out_dim
        self.ensemble, self.bfloat = ensemble, bfloat
        self.memory = np.full(SHARED_START + constant(host, "shared_bytes"), 0xFF, np.uint8)  # NaN until it is loaded
        self.table = packed[products * constant(host, "product_bytes") :].view(np.float32)
        self.stage = 0

    def load_slice(self, product, slice_):
        """Copy in bulk, once from each block of the cluster, into the ring's next stage; return its address."""
        at = SHARED_START + self.stage * constant(self.host, "stage_bytes")
        self.stage = (self.stage + 1) % constant(self.host, "stages")
        start = product * constant(self.host, "product_bytes") + self.host.copy_offset(slice_)
        self.memory[at : at + constant(self.host, "stage_bytes")] = 0xFF
        for rank in range(self.cluster):
            share, bytes_ = self.host.copy_share(rank, self.cluster), self.host.copy_bytes(slice_, rank, self.cluster)
            self.memory[at + share :][:bytes_] = self.packed[start + share :][:bytes_]
        return at

    def warpgroup(self, problem, first):
        """Compute 64 rows from query `first`; return the last layer's shares [128 threads, 2 rows, 4 channels]."""
        host, steps = self.host, constant(self.host, "steps_per_slice")
        a, d = np.zeros((128, 64), np.uint32), np.full((128, 128), np.nan, np.float32)
        weight, share = np.zeros((128, 2), np.float32), np.zeros((128, 2, 4), np.float32)
        where = ctypes.c_void_p(problem), int(self.ensemble), int(self.bfloat), ctypes.c_int64(first)
        host.gather_rows(*where, pointer(self.table), pointer(a), pointer(weight))
        for product in range(self.products):
            if product:
                host.convert(pointer(d), int(self.bfloat), pointer(a))
            for slice_ in range(constant(host, "slices")):
                at = self.load_slice(product, slice_)
                if slice_ == 0:
                    bias = self.memory[at + constant(host, "slice_bytes") : at + constant(host, "stage_bytes")].copy()
                    host.start(pointer(bias), pointer(d))
                for step in range(steps):
                    register = host.first_register(slice_ * steps + step)
                    operand = a[:, register : register + 4]
                    wgmma(d, operand, self.memory, host.step_descriptor(at, step), self.bfloat)
        host.last(pointer(d), pointer(weight), int(self.ensemble), pointer(self.table), pointer(share))
        return share

    def run(self, problem, total):
        """Return the output [total, out_dim] by the shuffles and stores of the kernel's `store`."""
        out = np.full((total, self.out_dim), np.nan, np.float32)
        per_warp = 4 if self.ensemble else 16
        bias = self.table[constant(self.host, "last_bias") :]
        for first in range(0, total, 4 * per_warp):
            share = self.warpgroup(problem, first)
            for step in (1, 2, 4) if self.ensemble else (1, 2):
                share = share + share[np.arange(128) ^ step]
            for thread in range(128):
                warp, g, channel = thread // 32, thread % 32 // 4, thread % 4
                for low in range(2):
                    if self.ensemble and (low or g % 2):  # one thread of the query's two stores
                        continue
                    query = first + warp * per_warp + (g // 2 if self.ensemble else g + 8 * low)
                    if query < total and channel < self.out_dim:
                        assert np.isnan(out[query, channel]), "stored once"
                        out[query, channel] = share[thread, low, channel] + bias[channel]
        return out


def make_problem(host, p, shape, ensemble, *, window=(0, 0), coord=None, cell=None, grid=None, region=None):
    """Make a problem of p [B, h, w, 128] uint32 at `window` of a map of `shape`; coord [B, Q, 2] or a grid's region."""
    batch = p.shape[0]
    queries = coord.shape[1] if coord is not None else region[2] * region[3]
    grid, region = grid or (1, 1), region or (0, 0, 1, 1)
    numbers = [*shape, *window, *p.shape[1:3], queries, batch * queries, *grid, region[0], region[1], region[3]]
    cell_step = 2 if cell is not None and cell.ndim == 3 else 0
    made = host.problem((ctypes.c_int64 * len(numbers))(*numbers), int(ensemble), pointer(p), pointer(coord),
                        pointer(cell), ctypes.c_int64(cell_step))  # fmt: skip
    return made, batch * queries
