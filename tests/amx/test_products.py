"""Test the AMX kernel's products by emulation: exact, in bounds, in threads; planted faults are found."""

import os
import signal
import subprocess
import sys

import pytest

from . import support

KERNEL = support.ROOT / "csrc/cpu/kernel_amx.cpp"
OTHER = support.ROOT / "csrc/cpu/kernel_avx512bf16.cpp"

pytestmark = pytest.mark.xdist_group("amx")  # compile once

# How a program ends that finds a fault, and what it says: it reads beyond an operand, or finds wrong sums.
BEYOND = -signal.SIGSEGV, ""
WRONG = 1, "whole numbers are not exact"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("amx")


@pytest.fixture(scope="module")
def others(folder):
    """Compile all but the AMX kernel."""
    flags = support.amx_flags()
    return [
        support.compiled(folder / "other.o", *flags, "-O1", OTHER),
        support.compiled(folder / "products.o", *flags, support.HERE / "products.cpp"),
    ]


@pytest.fixture(scope="module")
def products(folder, others):
    return support.compiled(folder / "products.so", *others, *support.amx_flags(), KERNEL)


@pytest.fixture
def run(emulator):
    def execute(products, count=40, plant=0):
        command = [sys.executable, support.HERE / "products.py", *map(str, (products, emulator or "", 0, count))]
        env = {**os.environ, "AMX_EMULATOR_FAULT": str(plant)}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    return execute


def test_products(run, products):
    done = run(products)
    assert done.returncode == 0 and "right" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (1, "#UD: TDPBF16PS on tiles of shapes that do not fit"),
        (2, "#GP: LDTILECFG: an invalid configuration"),
        (3, "#UD: the tiles are not configured"),
        (4, ""),  # rows of packed weights too far apart: behind their end
        (5, "whole numbers are not exact"),
    ],
)
@pytest.mark.skipif(support.has_amx(), reason="this processor executes the instructions itself")
def test_faults_of_instructions_are_found(run, products, plant, found):
    done = run(products, plant=plant, count=8)
    assert done.returncode and found in done.stderr
    assert found.startswith("whole") or done.returncode in (-signal.SIGILL, -signal.SIGSEGV)


@pytest.mark.parametrize(
    ("old", "new", "end", "found"),
    [
        ("if (steps < kSide || g.b_column", "if (g.b_column", *BEYOND),  # the last rows of B are read whole
        ("g.b_column, kSide, steps, true", "g.b_column, kSide, kSide, true", *BEYOND),  # and its columns, if not packed
        ("turned || steps < kSide || rows < R * kSide", "turned", *BEYOND),  # and those of A
        ("panel == 0 || g.steps > kHeld * kSide", "panel == 0", *WRONG),  # held rows are those of other steps
        ("turned ? left : steps, turned", "turned ? left : steps, false", *WRONG),
    ],
)
def test_faults_of_the_kernel_are_found(tmp_path, run, others, old, new, end, found):
    text = KERNEL.read_text()
    assert text.count(old) == 1
    (tmp_path / KERNEL.name).write_text(text.replace(old, new))
    wrong = support.compiled(tmp_path / "wrong.so", *others, *support.amx_flags(), "-O1", tmp_path / KERNEL.name)
    done = run(wrong)
    assert done.returncode == end and found in done.stderr, done.stdout + done.stderr
