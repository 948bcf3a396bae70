"""The AMX kernel's products, executed by emulation: exact, in bounds, by threads; planted faults are found."""

import subprocess
import sys

import pytest

from . import support

KERNEL = support.ROOT / "csrc/cpu/kernel_amx.cpp"
OTHER = support.ROOT / "csrc/cpu/kernel_avx512bf16.cpp"


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


def run(folder, products, seed=0, count=40, plant=0):
    emulator = "" if support.has_amx() and not plant else support.emulator(folder)
    words = [products, emulator, seed, count, plant]
    command = [sys.executable, support.HERE / "products.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_products(folder, products):
    done = run(folder, products)
    assert done.returncode == 0 and "right" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (1, "#UD: TDPBF16PS on tiles of shapes that do not fit"),
        (2, "#GP: LDTILECFG: an invalid configuration"),
        (3, "#UD: the tiles are not configured"),
        (4, ""),  # rows of packed weights too far apart: behind their end
    ],
)
def test_faults_of_instructions_are_found(folder, products, plant, found):
    done = run(folder, products, plant=plant, count=8)
    assert done.returncode < 0 and found in done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if (steps < kSide) {", "if (steps < 0) {"),  # the last rows of B are read whole: behind its end
        ("turned || steps < kSide || rows < R * kSide", "turned"),  # and those of A
        ("panel == 0 || g.steps > kHeld * kSide", "panel == 0"),  # held rows are those of other steps
        ("turned ? left : steps, turned", "turned ? left : steps, false"),
    ],
)
def test_faults_of_the_kernel_are_found(tmp_path, folder, others, old, new):
    text = KERNEL.read_text()
    assert text.count(old) == 1
    (tmp_path / KERNEL.name).write_text(text.replace(old, new))
    wrong = support.compiled(tmp_path / "wrong.so", *others, *support.amx_flags(), "-O1", tmp_path / KERNEL.name)
    done = run(folder, wrong)
    assert done.returncode != 0 and "right" not in done.stdout
