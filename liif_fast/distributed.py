"""Work in one process, or in several started by `torchrun`.

`rank`, `world_size` and `share` only read torchrun's environment variables, so sharing the images of a folder needs no
communication. `gather` and `merge` do need it, between `init` and `cleanup`.
"""

import contextlib
import datetime
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# Seconds. NCCL's ten minutes are too short if the others wait while the main process validates on large images.
TIMEOUT = 3600.0


def rank() -> int:
    """Return the number of this process, from 0 to world_size() - 1; 0 without torchrun."""
    return _environment("RANK", 0)


def world_size() -> int:
    """Return the number of processes; 1 without torchrun."""
    return _environment("WORLD_SIZE", 1)


def is_main() -> bool:
    """Return whether this process, the first or the only one, writes and prints."""
    return rank() == 0


def share(items: Sequence[T]) -> list[T]:
    """Return this process's share of the items: every world_size()-th, because neighbours are often alike in size."""
    return list(items[rank() :: world_size()])


def merge(results: Sequence[T]) -> list[T]:
    """Undo `share`: combine the processes' results in the order of all items, in every process."""
    parts = gather(list(results))
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def gather(value: T) -> list[T]:
    """Return the values of all processes in the order of their ranks, in every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def init(device: torch.device) -> torch.device:
    """Join the other processes by gloo on CPUs or NCCL on GPUs; return the device, this process's GPU for "cuda"."""
    if world_size() == 1:
        return device
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device}: several processes need CPUs or CUDA GPUs")
    if device.type == "cuda":
        local, count = _environment("LOCAL_RANK", 0), torch.cuda.device_count()
        if device.index is not None:
            raise ValueError(f"device {device}: several processes cannot share a GPU; say cuda, and each takes its own")
        if local >= count:
            raise ValueError(f"process {local} of this machine has no GPU: there are {count}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_timeout())
    return device


@contextlib.contextmanager
def reporting(advice: str) -> Iterator[None]:
    """Turn PyTorch's errors about lost processes into a ConnectionError that ends with `advice`."""
    try:
        yield
    except RuntimeError as error:
        # NCCL and the store have error classes; gloo's errors are recognised by the source file they begin with.
        if world_size() == 1 or not (isinstance(error, dist.DistError) or "/gloo/" in str(error).split("]")[0]):
            raise
        cause = str(error).split("] ", 1)[-1].split("\n")[0].split(". ")[0].rstrip(".")
        raise ConnectionError(f"process {rank()} lost the other processes: {cause}; {advice}") from error


def cleanup() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _timeout() -> datetime.timedelta:
    """Return how long a process waits for the others."""
    value = os.environ.get("LIIF_FAST_TIMEOUT", str(TIMEOUT))
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e9:
        raise ValueError(f"LIIF_FAST_TIMEOUT: expected a number of seconds above 0, got {value!r}")
    return datetime.timedelta(seconds=seconds)


def _environment(name: str, default: int) -> int:
    """Return a number that torchrun sets, or the default unless both RANK and WORLD_SIZE are set."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return default
    return int(os.environ.get(name, default))
