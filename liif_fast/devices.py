"""Pick devices by name, and recognise and handle exhausted memory."""

import platform
from pathlib import Path

import torch


def pick_device(name: str | torch.device) -> torch.device:
    """Return the named device; "auto" takes a GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device: torch.device | None = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps") or (device.type != "cuda" and device.index):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {str(name)!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(name)!r} is not available: PyTorch {torch.__version__} finds no CUDA GPU")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(name)!r} is not available: there are {torch.cuda.device_count()} GPUs")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not available: PyTorch finds no Metal GPU")
    return torch.device("cpu") if device.type == "cpu" else device  # "cpu:0" is the same device but not equal


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch or Python means that memory has run out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def free_cached(device: torch.device) -> None:
    """Release the memory cached by the allocator."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def cpu_name() -> str:
    """Return the processor's name."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_facts() -> dict[str, str]:
    """Return what Linux tells about the first processor, by its keywords ("stepping"); {} on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return {}
    pairs = [line.partition(":")[::2] for line in reversed(lines)]
    return {name.strip(): value.strip() for name, value in pairs if value}
