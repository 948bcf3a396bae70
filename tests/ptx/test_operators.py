"""Execute Triton's code for sm_80 and sm_90 on the CPU and check the results.

The bounds are promise 2's (docs/backends.md): at most twice, for gradients three times, plain PyTorch's error in the
same dtype, and FLOOR units in the last place of the tensor's size, where that error may be 0 by luck.
Each run has an order of warps and blocks of its own (blocks.py). LIIF_FAST_TEST_COMPILE=all executes every combination
of RUNS' columns, and hidden layers up to 256 wide.
"""

import itertools
import json

import pytest

from ..kernels.test_compile_report import LONG, MAIN, OTHERS, PINNED

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.ptx

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7, "tf32": 2.0**-10}
FLOOR = 12  # as tests/kernels/test_operator.py
KERNELS = {
    f"{name}_kernel"
    for name in ("chain", "decode", "fourier", "gather", "mlp", "project", "render", "segment", "waves_back")
}
FLIPS = 0.1  # of a gradient's size: in TF32 a ReLU near 0 may fall the other way; the plain form is not in TF32
RUNS = [
    (MAIN, "80", "float16", "sorted", "recompute", "100 70"),  # two column blocks, of which one is not full
    (MAIN, "80", "float32", "sorted", "keep", "32 24"),
    (MAIN, "80", "bfloat16", "atomic", "recompute", "32 24"),
    (MAIN, "90", "float16", "atomic", "keep", "100 70"),
    (MAIN, "90", "bfloat16", "sorted", "recompute", "32 24"),
    (MAIN, "90", "tf32", "atomic", "recompute", "100 70"),
    *((version, "80", "float16", "atomic", "keep", "32 24") for version in OTHERS),
    *((version, "90", "float16", "sorted", "recompute", "100 70") for version in OTHERS),
]
if LONG:
    RUNS = [
        (version, *more)
        for version, *more in itertools.product(
            PINNED, ("80", "90"), (*EPS,), ("sorted", "atomic"), ("recompute", "keep"), ("32 24", "100 70", "256 256")
        )
    ]


CODE = "from tests.ptx import cases; cases.main()"


def in_order(code, seed):
    """Let a program's warps and blocks advance in an order of its own, in the longer set nearly every warp alone."""
    order = f"Executor.seed, Executor.parts = {seed!r}, {8 if LONG else 2}"
    return f"from tests.ptx.execute import Executor; {order}; {code}"


def results(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("version", "architecture", "precision", "order", "keep", "hidden"), RUNS)
def test_compiled_operators_keep_their_promises(version, architecture, precision, order, keep, hidden, program):
    arguments = architecture, precision, order, keep, *hidden.split()
    found = results(program(version, in_order(CODE, (version, *arguments)), *arguments))
    assert set(found["executed"]) == KERNELS | ({"atomic_kernel"} if order == "atomic" else set())
    assert found["plan"]
    for name, ours, plain, size in found["errors"]:
        output = name.endswith("output")
        slack = FLOOR * EPS[precision] + (FLIPS if precision == "tf32" and not output else 0)
        limit = (2 if output else 3) * plain + slack * size
        assert ours <= limit, f"{name}: error {ours:.3g}, allowed {limit:.3g}"


INTEGERS = [(MAIN, "80", "float32", "32 24"), (MAIN, "90", "float16", "100 70")]
INTEGERS += [(version, "80", "bfloat16", "32 24") for version in OTHERS]
if LONG:
    INTEGERS = [
        (version, *more) for version, *more in itertools.product(PINNED, ("80", "90"), (*EPS,), ("32 24", "100 70"))
    ]


@pytest.mark.parametrize(("version", "architecture", "precision", "hidden"), INTEGERS)
def test_sums_of_integers_are_exact(version, architecture, precision, hidden, program):
    """The sums agree bit for bit, those of `fourier_decode` up to a few roundings."""
    code = in_order("from tests.ptx import cases; cases.integers()", (version, architecture, precision, hidden))
    found = results(program(version, code, architecture, precision, *hidden.split()))
    assert set(found) == {f"{name}_kernel" for name in ("decode", "fourier", "mlp", "project", "render")}


def test_why_the_kernels_place_a_fence(program):
    """Before 3.7, Triton places none between asynchronous copies and the product that reads them (its issue 9610)."""
    code = f"from liif_fast.kernels import host; host.TRITON = 3, 7; {in_order(CODE, 'fence')}"
    done = program("3.6.0", code, "90", "float16", "sorted", "keep", "32", "24")
    assert "written without a proxy fence behind" in done.stderr


def test_strict_float32_where_tensor_cores_truncate(program):
    """Cut sums of 4 products towards zero, as an A100 does, without a floor; the error grows with a product's depth."""
    arguments = "80", "float32", "sorted", "keep", "32", "24"
    found = results(program(MAIN, in_order(CODE, "truncation"), *arguments, LIIF_FAST_TEST_PTX_TRUNCATE="4"))
    for name, ours, plain, _ in found["errors"]:
        assert ours <= (2 if name.endswith("output") else 3) * plain, f"{name}: {ours:.3g}, plain {plain:.3g}"
