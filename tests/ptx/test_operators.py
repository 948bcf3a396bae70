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


def executed(version, arguments, folder, **more):
    """Return what tests/ptx/cases.py prints."""
    variables = environment(version, TRITON_CACHE_DIR=str(folder), **more)
    variables["PYTHONPATH"] = f"{variables.get('PYTHONPATH', '')}:{ROOT}"
    command = [sys.executable, "-m", "tests.ptx.cases", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("version", "dtype", "order", "keep", "hidden"), RUNS)
def test_compiled_operators_keep_their_promises(version, dtype, order, keep, hidden, tmp_path):
    found = executed(version, [dtype, order, keep, *hidden.split()], tmp_path)
    assert set(found["executed"]) == KERNELS | ({"atomic_kernel"} if order == "atomic" else set())
    assert found["plan"]
    for name, ours, plain, size in found["errors"]:
        limit = (2 if name.endswith("output") else 3) * plain + FLOOR * EPS[dtype] * size
        assert ours <= limit, f"{name}: error {ours:.3g}, allowed {limit:.3g}"


def test_strict_float32_where_tensor_cores_truncate(tmp_path):
    """With sums of 4 products cut towards zero, as on an A100, and no floor: the error grows with a product's depth."""
    found = executed(MAIN, ["float32", "sorted", "keep", "32", "24"], tmp_path, LIIF_FAST_TEST_PTX_TRUNCATE="4")
    for name, ours, plain, _ in found["errors"]:
        assert ours <= (2 if name.endswith("output") else 3) * plain, f"{name}: {ours:.3g}, plain {plain:.3g}"
