"""A call goes through few files."""

import re
from pathlib import Path

import pytest

from liif_fast.backends import cpu

from .. import warm

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(bool(cpu._missing), reason="the C++ kernels are not built")
def test_a_call_goes_through_seven_files_on_the_cpu_and_eleven_to_triton():
    """Run in a separate process, because other tests replace the CPU kernels."""
    pytest.importorskip("triton", reason="Triton is not installed")
    text = warm.run("-m", "benchmarks.walk", cwd=ROOT, check=True).stdout
    cpu_files, triton_files = (int(number) for number in re.findall(r": (\d+) files", text))
    assert 1 < cpu_files <= 7
    assert 1 < triton_files <= 11
