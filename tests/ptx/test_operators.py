"""What Triton compiles for sm_80 is executed on the CPU, instruction by instruction, and gives what it should.

Bounds are those of promise 2 (docs/backends.md): at most twice, for gradients three times, the error of the plain form
in PyTorch in the same dtype, and FLOOR units in the last place of the tensor's size, where that is exact by luck.
`make test` has the first of RUNS, `make ptx` all.
"""

import json
import subprocess
import sys

import pytest

from ..kernels.test_compile_report import MAIN, OTHERS, ROOT, TRIED, environment

pytest.importorskip("triton", reason="Triton is not installed")

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
FLOOR = 12  # as tests/kernels/test_operator.py
KERNELS = {f"{name}_kernel" for name in ("chain", "decode", "gather", "mlp", "project", "render", "segment")}
RUNS = [
    (MAIN, "float16", "sorted", "recompute", "100 70"),  # two column blocks, of which one is not full
    (MAIN, "float32", "sorted", "keep", "32 24"),
    (MAIN, "bfloat16", "atomic", "recompute", "32 24"),
    *((version, "float16", "atomic", "keep", "32 24") for version in OTHERS),
][: None if TRIED[1:] else 1]


@pytest.mark.parametrize(("version", "dtype", "order", "keep", "hidden"), RUNS)
def test_compiled_operators_keep_their_promises(version, dtype, order, keep, hidden, tmp_path):
    command = [sys.executable, "-m", "tests.ptx.cases", dtype, order, keep, *hidden.split()]
    variables = environment(version, TRITON_CACHE_DIR=str(tmp_path))
    variables["PYTHONPATH"] = f"{variables.get('PYTHONPATH', '')}:{ROOT}"
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["executed"]) == KERNELS | ({"atomic_kernel"} if order == "atomic" else set())
    assert found["plan"]
    for name, ours, plain, size in found["errors"]:
        limit = (2 if name.endswith("output") else 3) * plain + FLOOR * EPS[dtype] * size
        assert ours <= limit, f"{name}: error {ours:.3g}, allowed {limit:.3g}"
