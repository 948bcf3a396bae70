"""The kernels' launches pass Triton's checks in every version, and no size compiles a binary of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .test_compile_report import PINNED, environment

pytestmark = pytest.mark.ptx
KERNELS = "atomic attend_back attend chain decode fourier gather mlp project render segment waves_back"


@pytest.mark.parametrize("version", PINNED)
def test_no_size_makes_a_binary_of_its_own(version, tmp_path):
    variables = environment(version, TRITON_CACHE_DIR=str(tmp_path))
    root = Path(__file__).parents[2]
    variables["PYTHONPATH"] = f"{variables.get('PYTHONPATH', '')}:{root}"
    command = [sys.executable, "-m", "tests.kernels.launches"]
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *others = map(json.loads, done.stdout.splitlines())
    assert list(first) == [f"{name}_kernel" for name in KERNELS.split()]
    assert all(found == first for found in others), done.stdout
