"""What Triton compiles for sm_80 is executed on the CPU, instruction by instruction, and gives what it should.

The bound is that of promise 2 (docs/backends.md): at most twice the error of the plain form in PyTorch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_compiled_operators_keep_the_promise(dtype, tmp_path):
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "tests.ptx.cases", dtype]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["executed"]) == {"project_kernel", "decode_kernel"}
    for name, ours, plain in found["errors"]:
        assert ours <= 2 * plain, name
