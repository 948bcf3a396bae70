"""A call goes through few files."""

import pytest

from benchmarks.walk import walk
from liif_fast.backends import cpu


@pytest.mark.skipif(bool(cpu._missing), reason="the C++ kernels are not built")
def test_a_call_on_the_cpu_goes_through_seven_files():
    assert len(walk("cpu")) <= 7
