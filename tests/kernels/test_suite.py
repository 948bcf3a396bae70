"""The tests of every backend (tests/ops) take the Triton kernels too, as benchmarks/gpu_check.py runs them."""

from ..ops import test_plan
from ..ops.support import run_python


def test_decode_and_render_of_the_nearest(monkeypatch):
    monkeypatch.setattr(test_plan, "SIDES", (1, 6))
    test_plan.test_decode_and_render_of_the_nearest("triton")


def test_what_the_kernels_do_not_take_is_skipped():
    """float64, for one."""
    run_python(
        "import sys, pytest; sys.exit(pytest.main(['tests/ops/test_same_bits.py', '-q', '-p', 'no:cacheprovider', "
        "'-k', 'dtype1 and (few or repeat)']))",
        TRITON_INTERPRET="1", LIIF_FAST_TEST_BACKENDS="triton",
    )  # fmt: skip
