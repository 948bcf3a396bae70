"""A warp's accesses touch few sectors of memory where rows are gathered and added."""

import pytest

from ..kernels.test_compile_report import MAIN
from .test_operators import in_order, results

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.ptx


@pytest.mark.parametrize("architecture", ["80", "90"])
def test_sectors(architecture, program):
    code = in_order("from tests.ptx import traffic; traffic.main()", ("traffic", architecture))
    found = results(program(MAIN, code, architecture))
    assert found["atomic_kernel atom"] == found["added"]  # four times that on sm_80 if each thread has four columns
    assert found["segment_kernel ld"] < 2 * found["rows"]  # with the taps' channels apart, 7 times that
    assert found["gather_kernel ld"] < 3.5 * found["rows"]  # of a map [C, H, W], 4.5 times that
    assert found["gather_kernel st"] < 1.2 * found["rows"]
    every, of_map, places, second, last = found["backward"].values()
    assert of_map[1] < every[1] / 2 and of_map[2] == every[2] > 0  # the chain keeps no gradient for weights
    assert places[1] < every[1] / 2 and places[2] == 0
    assert second[0] < every[0] * 0.75 and second[2] == 0  # it ends at the layer
    assert last[0] < every[0] * 0.2
