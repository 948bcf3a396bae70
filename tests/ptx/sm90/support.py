"""When the compiled Hopper kernel is executed, and how much of it."""

import os

import pytest

from liif_fast.backends import cpu

from ...kernels.test_compile_report import TRIED
from . import launch

LONG = os.environ.get("LIIF_FAST_TEST_COMPILE") == "all"


def require():
    """Skip a module outside of `make ptx`, and without nvcc, unless there has to be one."""
    if not TRIED[1:]:
        pytest.skip("make ptx runs it", allow_module_level=True)
    if cpu._missing:
        pytest.skip("the packing operator needs the C++ kernels", allow_module_level=True)
    why = launch.missing()
    if why and os.environ.get("LIIF_FAST_TEST_NVCC") != "1":
        pytest.skip(why, allow_module_level=True)
