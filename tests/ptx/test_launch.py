"""The kernels' launches pass Triton's checks in every version, and no size compiles a binary of its own."""

import json

import pytest

from ..kernels.test_compile_report import PINNED

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.ptx
KERNELS = "atomic attend_back attend attention_back chain decode fourier gather mlp project render segment waves_back"


@pytest.mark.parametrize("version", PINNED)
def test_no_size_makes_a_binary_of_its_own(version, program):
    done = program(version, "import tests.ptx.launches")
    assert done.returncode == 0, done.stderr
    first, *others = map(json.loads, done.stdout.splitlines())
    assert list(first) == [f"{name}_kernel" for name in KERNELS.split()]
    assert all(found == first for found in others), done.stdout
