"""Read and write records: one line of JSON per run, in one append-only file for each kind of machine.

A record describes its machine (`environment`) and holds `results`. A result has

* `name`, `title`, `unit`, and the number of `rounds`;
* `figures` by variant, and in `missing` the reasons of the variants without a figure;
* the machine's rates, if they were measured.

A figure has q20, median and q80. It may have `ratio` (to ours, within a round), `memory` (bytes beyond the output),
`error`, `gradient_error`, and `share` (of the machine's limit, within a round). A variant has a figure only if its
result passed the check against the reference, as `checked` states. Older records lack some of these.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import liif_fast
from liif_fast import info
from liif_fast.backends import cpu

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NOT_BUILT = "kernels not built"
PACKAGES = ("triton", "onnxruntime", "openvino")  # packages besides torch that a figure depends on
MEASURED = ("liif_fast", "csrc", "kernels", "setup.py", "benchmarks", ":!benchmarks/results")  # pathspecs of git

Record = dict[str, Any]


def isa() -> str:
    """Return the instruction set of our CPU kernels."""
    try:
        return cpu.ISA or NOT_BUILT
    except RuntimeError:  # the operator has a schema but no implementation was built
        return NOT_BUILT


def environment(device: str = "cpu") -> Record:
    """Return the environment that figures depend on."""
    found: Record = {
        "version": liif_fast.__version__,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": device,
        "cpu": dict(info.describe())["cpu"],
        "isa": isa(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = f"{properties.name}, sm_{properties.major}{properties.minor}"
        found["driver"] = _driver()
        found["cuda"] = torch.version.cuda
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _commit() -> str:
    """Return HEAD, with + if the measured code or the benchmarks differ from it; "" outside a checkout."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *MEASURED)
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine(record: Record) -> str:
    """Return a record's kind of machine, which names its file: the GPU, or the CPU and its instruction set."""
    what = record.get("gpu") or f"{record['cpu'].rsplit(',', 1)[0]} {record['isa']}"
    return re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")


def append(record: Record, results: Sequence[Record], folder: Path = RESULTS) -> Path:
    """Append one run to the file of this kind of machine."""
    path = folder / f"{machine(record)}.jsonl"
    folder.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**record, "results": list(results)}) + "\n")
    return path


def read(folder: Path = RESULTS) -> list[Record]:
    """Return the records of every machine, oldest first."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines), key=lambda record: record["date"])
