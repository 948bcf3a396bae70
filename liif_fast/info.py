"""Describe versions, the machine, the backends, the native build and the shipped model for a bug report."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import liif_fast
from liif_fast.files import reason

Row = tuple[str, str]


def describe() -> list[Row]:
    """Return the rows of `liif-fast info`, (name, value) with values of one line."""
    import torch

    from liif_fast.devices import cpu_name

    packages = ("numpy", "pillow", "safetensors", "pyyaml", "triton")
    return [
        ("liif_fast", f"{liif_fast.__version__} in {Path(liif_fast.__file__).parent}"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}"),
        ("packages", ", ".join(f"{name} {_installed(name)}" for name in packages)),
        ("cpu", f"{cpu_name()}, {os.cpu_count()} logical cores"),
        ("instructions", f"{torch.backends.cpu.get_cpu_capability()} (as PyTorch uses them)"),
        ("threads", f"{torch.get_num_threads()} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')})"),
        *_gpus(),
        *_backends(),
        *_native_build(),
        *_shipped_model(),
    ]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpus() -> list[Row]:
    import torch

    if not torch.cuda.is_available():
        return [("gpu", "none that PyTorch can use")]
    rows = []
    for index in range(torch.cuda.device_count()):
        props = torch.cuda.get_device_properties(index)
        rows.append(
            (f"cuda:{index}", f"{props.name}, sm_{props.major}{props.minor}, {props.total_memory / 2**30:.0f} GiB")
        )
    return rows


def _backends() -> list[Row]:
    """Return every backend's answer to a small decode on the device that `upscale` would take."""
    import torch

    from liif_fast.backends import cpu
    from liif_fast.devices import pick_device
    from liif_fast.functional import explain

    device = pick_device("auto")
    feat, coord = torch.zeros(1, 64, 4, 4, device=device), torch.zeros(1, 1024, 2, device=device)
    widths = (580, 256, 3)
    weights = [torch.zeros(out, inner, device=device) for inner, out in pairwise(widths)]
    biases = [torch.zeros(out, device=device) for out in widths[1:]]
    answer = explain(feat, coord, coord, weights, biases)
    rows = []
    for name, can, why in answer.answers:
        verdict = "chosen by auto" if name == answer.chosen else "available" if can else "not available"
        rows.append((f"  {name}", f"{verdict}: {why}" if why else verdict))
    amx = ("amx", f"{cpu.AMX} (products of bfloat16)")
    return [("backends", f"for a decode on {device}, float32"), *rows, *_verdict(device.type, device.index), amx]


def _verdict(kind: str, index: int | None) -> list[Row]:
    """Return the result of `liif-fast qualify` on a GPU."""
    from liif_fast.backends import verdict

    found = verdict.read(kind, index)
    if found is not None:
        return [("verdict", f"{found.summary()}, {found.made}, in {found.path}")]
    return [("verdict", "none; `liif-fast qualify` examines the kernels of this GPU")] if kind == "cuda" else []


def _native_build() -> list[Row]:
    path = Path(liif_fast.__file__).with_name("_build_info.json")
    if not path.is_file():
        present = find_spec("liif_fast._C") is not None
        return [("native build", "present, but it left no metadata" if present else "none (pure Python)")]
    try:
        build = json.loads(path.read_text())
        rows = [("native build", f"against torch {build.pop('torch', '?')}, by Python {build.pop('python', '?')}")]
        for part, how in build.items():
            built = "built" if how.pop("built", False) else "not built"
            rows.append((f"  {part}", "; ".join([built, *(f"{key}: {_words(value)}" for key, value in how.items())])))
    except Exception as error:  # damaged JSON may raise anything, and the other rows are still needed
        return [("native build", f"{path.name} cannot be read: {reason(error)}")]
    return rows


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shipped_model() -> list[Row]:
    from liif_fast.models.catalogue import shipped_model
    from liif_fast.models.checkpoint import load_model

    path = shipped_model()
    if not path.is_file():
        return [("model", f"missing: {path}")]
    try:
        count = sum(parameter.numel() for parameter in load_model(path).parameters())
    except (OSError, ValueError) as error:
        return [("model", f"cannot be used: {reason(error)}")]
    return [("model", f"{path.name}, {count:,} parameters, {path.stat().st_size / 2**20:.1f} MiB")]
