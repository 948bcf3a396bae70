"""Keep the verdict on this machine's kernels: `liif-fast qualify` writes it, `auto` reads it.

A verdict holds for one key: the sources, PyTorch, CUDA, Triton, the driver and the device. A process reads it only
once, so that no call changes its bits between two steps, two graphs or two replays.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import json
import logging
import math
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import liif_fast
from liif_fast.call import tf32_allowed
from liif_fast.devices import cpu_facts, cpu_name
from liif_fast.files import atomic_file

logger = logging.getLogger("liif_fast")

VARIABLE = "LIIF_FAST_VERDICT"
FORMAT = 1
AMX = "amx"  # not a backend, but the backend cpu with AMX, which a verdict turns on or off as a whole
# Variables that change the compiled code or select another kernel.
CODE_VARIABLES = (
    "DISABLE_LLVM_OPT",
    "DISABLE_PTXAS_OPT",
    "LIIF_FAST_CPU_ISA",
    "LIIF_FAST_CUDA_CLUSTER",
    "PTXAS_OPTIONS",
    "TRITON_DEFAULT_FP_FUSION",
    "TRITON_ENABLE_ASAN",
    "TRITON_F32_DEFAULT",
    "TRITON_INTERPRET",
    "TRITON_KERNEL_OVERRIDE",
    "TRITON_OVERRIDE_ARCH",
    "TRITON_PTXAS_BLACKWELL_PATH",
    "TRITON_PTXAS_PATH",
)

Key = dict[str, Any]
Need = tuple[str, torch.dtype, bool]  # operator, dtype of the products, whether gradients are wanted


class Verdict(NamedTuple):
    """Hold the findings of `liif-fast qualify`; it prints as a table.

    Attributes:
        path: the verdict's file.
        key: the sources, versions and device for which it holds.
        made: date and time, ISO 8601.
        results: for each backend and unit ("decode, float16, training"): `correct`, or `why` not. A correct unit also
            has `ratio`, the median time of the backend `than` relative to its own, and `taken`, whether `auto` takes
            it. A unit without `correct` was not decided.
    """

    path: Path
    key: Key
    made: str
    results: dict[str, dict[str, dict[str, Any]]]

    def __str__(self) -> str:
        found = self.results.items()
        rows = [(f"{backend}  {unit}", says(of)) for backend, units in found for unit, of in units.items()]
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def summary(self) -> str:
        """Return one line with the numbers of kinds that passed and that `auto` takes."""
        units = [of for found in self.results.values() for of in found.values()]
        passed, taken = (sum(bool(of.get(each)) for of in units) for each in ("correct", "taken"))
        if amx := self.results.get(AMX):  # taken for all kinds of call or for none
            state = "off" if _against(amx, AMX_UNITS) else "on"
            return f"{passed} of {len(units)} kinds of call passed, {taken} were faster: AMX is {state}"
        return f"{passed} of {len(units)} kinds of call passed, auto takes {taken}"


def unit(op: str, precision: str, training: bool) -> str:
    """Return the name of a kind of call, a key of the results."""
    return f"{op}, {precision}{', training' if training else ''}"


# The operators with bfloat16 products on a CPU; all of them must have passed before AMX is on.
AMX_OPS = ("decode", "render", "fused_mlp", "fourier_decode", "modulated_decode")
AMX_UNITS = tuple(unit(op, "bfloat16", training) for op in AMX_OPS for training in (False, True))


def says(of: dict[str, Any]) -> str:
    """Return the verdict on a unit in words."""
    if "correct" not in of:
        return f"not decided: {of.get('why', 'not examined')}"
    if not of["correct"]:
        return f"WRONG: {of.get('why')}"
    speed = f"{of.get('ratio', 0):.2f} times as fast as {of.get('than')}"
    return f"passed, {speed}{'' if of.get('taken') else ', so auto leaves it'}"


def place() -> Path | None:
    """Return the folder of the verdicts, or the one file that LIIF_FAST_VERDICT names; None if it is "off"."""
    chosen = os.environ.get(VARIABLE)
    if chosen == "off":
        return None
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(chosen or Path(cache) / "liif_fast" / "verdicts").expanduser()


def wanted() -> bool:
    """Return whether verdicts are read at all."""
    return os.environ.get(VARIABLE) != "off"


def path_of(key: Key) -> Path:
    """Return the file of the verdict for a key.

    Raises:
        ValueError: LIIF_FAST_VERDICT is "off".
    """
    chosen = place()
    if chosen is None:
        raise ValueError(f"{VARIABLE}=off: no verdict is kept; unset it, or set it to a file or a folder")
    if chosen.suffix == ".json":
        return chosen
    return chosen / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"


def key(kind: str, index: int | None) -> Key:
    """Return the key of a verdict for a device of this machine, without starting a process.

    Raises:
        RuntimeError, OSError: the device or the sources cannot be read.
    """
    found = importlib.util.find_spec("triton")
    version = (
        re.search(r"__version__ = ['\"](.+?)['\"]", Path(found.origin).read_text()) if found and found.origin else None
    )
    return {
        "liif_fast": liif_fast.__version__,
        "sources": _digest(kind),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version and version[1],
        "environment": {name: _setting(os.environ[name]) for name in CODE_VARIABLES if name in os.environ},
        "device": _gpu(index) if kind == "cuda" else _cpu(),
    }


def _digest(kind: str) -> str:
    """Hash the kernels, the Python code that launches them, and the built extension."""
    from liif_fast import kernels

    root = Path(liif_fast.__file__).parent
    folders = [root / "backends", root / "ops", *map(Path, kernels.__path__)]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    files += sorted(root.glob("_C_sm90.*" if kind == "cuda" else "_C.*"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _setting(value: str) -> str:
    """Return a variable's value; for a program also its size and date, because it may be replaced."""
    file = Path(value)
    return f"{value} {file.stat().st_size} {file.stat().st_mtime_ns}" if file.is_file() else value


def _gpu(index: int | None) -> dict[str, Any]:
    of = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    return {
        "name": of.name,
        "capability": f"{of.major}.{of.minor}",
        "processors": of.multi_processor_count,  # a part of a GPU (MIG) has fewer
        "memory_gib": round(of.total_memory / 2**30),
        "driver": _driver(),
    }


def _driver() -> str:
    """Return the driver's build from NVML, or else the version of CUDA that it offers."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0:
            return text.value.decode()
    except (OSError, AttributeError):  # missing, or of another version
        pass
    return f"CUDA {getattr(torch._C, '_cuda_getDriverVersion', lambda: 0)()}"


def _cpu() -> dict[str, Any]:
    """Describe the processor by more than its name, because virtual machines often hide the model in it."""
    facts = cpu_facts()
    exact: dict[str, Any] = {
        name: facts[name] for name in ("cpu family", "model", "stepping", "microcode") if name in facts
    }
    return {"name": cpu_name(), **exact, "instructions": torch.backends.cpu.get_cpu_capability()}


@functools.cache
def read(kind: str, index: int | None) -> Verdict | None:
    """Return the verdict for a device, or None without one; the process keeps the first answer."""
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        return None
    try:
        if place() is None:
            return None
        wanted = key(kind, index)
        return load(path_of(wanted), wanted)
    except (OSError, RuntimeError) as error:  # no home, no driver, a damaged installation
        logger.info("no verdict on the kernels can be read: %s", error)
        return None


def load(path: Path, wanted: Key) -> Verdict | None:
    """Read a verdict's file; return None if it is missing, has another key, or other users could have written it."""
    try:
        # O_NONBLOCK, because a pipe in its place would wait for a writer.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("not a file")
            if hasattr(os, "getuid") and (status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022):
                logger.warning("%s: not used, because it belongs to another user or others may write it", path)
                return None
            content = json.load(file)
        if content["format"] != FORMAT or content["key"] != wanted:
            return None
        _check(content["made"], content["results"])
        return Verdict(path, wanted, content["made"], content["results"])
    except OSError as error:  # usually the file does not exist
        logger.info("%s: no verdict: %s", path, error.strerror)
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        logger.warning("%s: cannot be read as a verdict (%r); run `liif-fast qualify` again", path, error)
        return None


def _check(made: Any, results: Any) -> None:
    """Raise an error unless both have the form of `Verdict`'s, and every kind of call that is taken is correct."""
    if not isinstance(made, str):
        raise ValueError(f"no date: {made}")
    for units in results.values():
        for of in units.values():
            if of.get("correct") is True:
                right = isinstance(of["taken"], bool) and math.isfinite(of["ratio"])
            else:
                right = of.get("correct", False) is False and not of.get("taken")
            if not right:
                raise ValueError(f"no result: {of}")


def write(verdict: Verdict) -> None:
    """Replace a verdict's file atomically; all may read it, and only its owner may write it."""
    content = {"format": FORMAT, "made": verdict.made, "key": verdict.key, "results": verdict.results}
    verdict.path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(verdict.path, mode=0o644) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def precision(dtype: torch.dtype) -> str:
    """Return the name of the precision of products in a dtype; for float32 it is "float32" or "tf32"."""
    return "tf32" if dtype == torch.float32 and tf32_allowed() else str(dtype).removeprefix("torch.")


def standing(kind: str, index: int | None, backend: str, need: Need) -> dict[str, Any]:
    """Return the verdict's entry for a kind of call on a backend, or {} without one."""
    found = read(kind, index)
    op, dtype, training = need
    return {} if found is None else found.results.get(backend, {}).get(unit(op, precision(dtype), training), {})


def of_all(kind: str, index: int | None, backend: str, names: Sequence[str]) -> tuple[bool, str]:
    """Return whether all named kinds of call passed on a backend and were faster, and the date or the reason."""
    found = read(kind, index)
    units = {} if found is None else found.results.get(backend, {})
    if found is None or not units:
        return False, f"until `liif-fast qualify --device {kind}` has passed it here"
    against = _against(units, names)
    return (False, against[0]) if against else (True, f"qualified {found.made}")


def _against(units: dict[str, dict[str, Any]], names: Sequence[str]) -> list[str]:
    every = {**{name: {} for name in names}, **units}
    return [f"{name}: {says(of)}" for name, of in every.items() if not of.get("taken")]


def faster(kind: str, index: int | None, first: Need, *others: Need) -> tuple[str, ...]:
    """Return the backends that passed and were faster for the first kind of call, and passed for the others."""
    found = read(kind, index)
    if found is None:
        return ()
    ratios = {name: standing(kind, index, name, first) for name in found.results}
    names = [name for name, of in ratios.items() if of.get("taken") and name != AMX]
    names = [name for name in names if all(standing(kind, index, name, each).get("correct") for each in others)]
    return tuple(sorted(names, key=lambda name: -ratios[name]["ratio"]))


# Does the same as torch.compiler.assume_constant_result, which would import torch._dynamo.
faster._dynamo_marked_constant = True  # type: ignore[attr-defined]
