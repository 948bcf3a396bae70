"""Compile the AMX emulator and its driver with the flags of the library."""

import json
import shlex
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import liif_fast
from liif_fast.backends import cpu

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent


def compiler() -> list[str]:
    """Return the C++ compiler's command; skip without one, and where the kernels cannot run."""
    if not cpu.BFLOAT16:
        pytest.skip("this processor has no AVX512-BF16, which the AMX kernels need as well")
    command = shlex.split(sysconfig.get_config_var("CXX") or "c++")
    if not shutil.which(command[0]):
        pytest.skip(f"there is no C++ compiler {command[0]}")
    return command


@cache
def build() -> dict[str, Any]:
    """Return how the library's kernels were compiled."""
    return json.loads(Path(liif_fast.__file__).with_name("_build_info.json").read_text())["cpu"]


def amx_flags() -> list[str]:
    """Return the flags that the AMX kernel was compiled with; skip if it was left out."""
    if "kernel_amx" not in build().get("kernels", {}):
        pytest.skip("the kernels were compiled without AMX")
    return build()["kernels"]["kernel_amx"]


def compiled(made: Path, *sources: Path | str) -> Path:
    """Compile sources (and options) to an object or a shared library, with the library's sanitizers."""
    how = "-c" if made.suffix == ".o" else "-shared"
    common = ["-O3", "-std=c++17", "-ffp-contract=off", how, "-fPIC", f"-I{ROOT / 'csrc/cpu'}", "-o", made]
    sanitizers = [flag for flag in build()["flags"] if "sanitize" in flag]
    subprocess.run([*compiler(), *common, *sanitizers, *sources], check=True)
    return made


def has_amx() -> bool:
    """Return whether Linux reports AMX for this processor."""
    return "amx_bf16" in Path("/proc/cpuinfo").read_text()
