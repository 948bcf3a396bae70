"""`python -m benchmarks.convolution` runs by itself: nothing else has loaded the kernels."""

import pytest

from benchmarks import convolution
from liif_fast.backends import cpu

from ..ops.support import run_python


@pytest.mark.skipif(not cpu.ISA, reason="the C++ kernels are not built")
def test_runs_in_a_fresh_process():
    code = (
        "import sys; from benchmarks import convolution\n"
        "convolution.CHANNELS, convolution.LAYERS, convolution.SHAPES = 16, 3, ((1, 8, 12),)\n"
        "convolution.PROJECTED, convolution.HIDDEN = (1, 8, 12), 16\n"
        "sys.argv = ['convolution', '--rounds', '1']; convolution.main()"
    )
    shown = run_python(code)
    assert all(shown.count(name) == 3 for name in convolution.FORMS), shown
    assert "|  | one layer | 3 layers in residual blocks |" in shown


def test_the_table():
    figures = {name: {"norm": 8.1e-7, "largest": 1.6e-6} for name in convolution.FORMS}
    lines = convolution.lines([{"title": "one layer", "figures": figures}])
    assert lines[0] == "|  | one layer |" and lines[2] == "| conv3x3 | 8.1e-07 (1.6e-06) |"
