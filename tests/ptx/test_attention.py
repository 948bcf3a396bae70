"""Execute Triton's code of attend_corners for sm_80 and sm_90 on the CPU, forward and backward, and check the results.

The bounds are those of test_operators.py. Two gradients are sums that vanish, since a softmax ignores what all its
inputs share; they may be off by what the largest may be. LIIF_FAST_TEST_COMPILE=all adds ILN's own width.
"""

import pytest

from ..kernels.test_compile_report import LONG, MAIN, OTHERS
from .test_operators import EPS, FLOOR, in_order, results

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.ptx

RUNS = [(MAIN, "80", "sorted", "16 2 4"), (MAIN, "90", "atomic", "16 1 16"), (MAIN, "80", "atomic", "16 0 1")]
RUNS += [(version, "80", "atomic", "16 1 2") for version in OTHERS]
RUNS += [(version, "90", "sorted", "16 1 4") for version in OTHERS]
if LONG:
    RUNS += [(version, "80", "sorted", f"64 1 {heads}") for version in (MAIN, *OTHERS) for heads in (1, 8)]


CODE = "from tests.ptx import attention; attention.main()"


def check(found, floor):
    largest = max(size for *_, size in found["errors"])
    for name, ours, plain, size in found["errors"]:
        size = size if size > 1e-6 * largest else largest  # the gradient vanishes
        limit = (2 if name.startswith("output") else 3) * plain + floor * EPS["float32"] * size
        assert ours <= limit, f"{name}: error {ours:.3g}, allowed {limit:.3g}"


@pytest.mark.parametrize(("version", "architecture", "order", "network"), RUNS)
def test_compiled_attention_keeps_its_promises(version, architecture, order, network, program):
    arguments = architecture, order, *network.split()
    found = results(program(version, in_order(CODE, (version, *arguments)), *arguments))
    last = "segment_kernel" if order == "sorted" else "atomic_kernel"
    attends = {"attend_kernel", "attend_back_kernel", *(["attention_back_kernel"] if network.split()[1] != "0" else [])}
    assert set(found["executed"]) == attends | {last}
    check(found, FLOOR)


def test_attention_where_tensor_cores_truncate(program):
    """Cut sums of 4 products towards zero, as an A100 does, without a floor."""
    code, arguments = in_order(CODE, "truncation"), ("80", "sorted", "16", "2", "4")
    check(results(program(MAIN, code, *arguments, LIIF_FAST_TEST_PTX_TRUNCATE="4")), 0)
