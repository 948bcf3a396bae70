"""Measure the peak memory of one call: of the process on Linux, or of PyTorch's allocator on a GPU."""

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liif_fast.functional import fused_mlp

CLEAR_REFS = Path("/proc/self/clear_refs")
PATIENCE = 16  # calls that save no activations, after which csrc/cpu/memory.h keeps nothing


@torch.no_grad()
def release() -> None:
    """Free the memory that our operators keep on the CPU for the next training step."""
    x, weights, biases = torch.ones(1, 1), (torch.ones(1, 1),) * 2, (torch.ones(1),) * 2
    for _ in range(PATIENCE):
        fused_mlp(x, weights, biases)


def peak(call: Callable[[], Any], device: torch.device) -> tuple[Any, int | None, float]:
    """Call once and measure the peak memory and the time.

    On a CPU the memory is resident memory. Free memory and what our operators keep are returned to the system first,
    so that every page that the call touches counts. Memory that another library keeps counts in its first call only.

    Returns:
        The call's result; the bytes by which memory peaked above the memory before plus the result, or None if that
        cannot be measured; the seconds that the call took.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        start = time.perf_counter()
        result = call()
        torch.cuda.synchronize(device)
        took = time.perf_counter() - start
        return result, torch.cuda.max_memory_allocated(device) - before - _size(result), took
    if not CLEAR_REFS.exists():
        start = time.perf_counter()
        result = call()
        return result, None, time.perf_counter() - start
    release()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    CLEAR_REFS.write_text("5")  # starts a new peak
    before = _resident("VmRSS")
    start = time.perf_counter()
    result = call()
    took = time.perf_counter() - start
    return result, max(0, _resident("VmHWM") - before - _size(result)), took


def _resident(key: str) -> int:
    """Return VmRSS, the resident memory, or VmHWM, its peak, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _size(result: Any) -> int:
    """Return the bytes that the result holds; a view counts as its whole storage."""
    tensors = [result] if isinstance(result, Tensor) else result if isinstance(result, (list, tuple)) else []
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
