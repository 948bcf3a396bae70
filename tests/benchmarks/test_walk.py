"""A call goes through few files."""

import os

import pytest

from benchmarks.walk import walk
from liif_fast.backends import cpu


@pytest.mark.skipif(bool(cpu._missing), reason="the C++ kernels are not built")
def test_a_call_on_the_cpu_goes_through_seven_files():
    assert len(walk("cpu")) <= 7


@pytest.mark.skipif(os.environ.get("LIIF_FAST_TEST_DEVICE", "cpu") != "cpu", reason="for Triton's interpreter")
def test_a_call_to_triton_goes_through_ten_files(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert len(walk("triton")) <= 10
