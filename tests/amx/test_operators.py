"""Test the operators in bfloat16 with AMX, by emulation if this processor has no AMX."""

import os
import re

import pytest

from .. import warm
from . import support

pytestmark = pytest.mark.xdist_group("amx")

# Their tests of bfloat16 hold for every kernel: errors against float64, whole numbers, bits, NaN, random sizes.
TESTS = ("autocast", "random", "fourier", "modulated", "same_bits")
CHOSEN = (
    "random_bfloat16 or whole_numbers or finite or in_any_window or autocast and cpu and not test_autocast.py "
    "or bfloat16 and (few_queries or chunks and switches7)"
)

# Configurations of random sizes: few, because each instruction is a signal.
FEWER = "from tests.ops import test_random; test_random.CONFIGS = test_random.LEAST = 10"

# With and without AMX, which differ by the order of sums in float32.
COMPARE = """
import torch
from liif_fast import functional
from liif_fast.backends import cpu
from tests.ops.support import Problem

def run(problem, grad):
    with torch.autocast("cpu", torch.bfloat16):
        out = functional.liif_decode(*problem.arguments, backend="cpu")
    return [out, *torch.autograd.grad(out, problem.leaves, grad)]

assert cpu.AMX.startswith("on, "), cpu.AMX
outs = []
for threads in (1, 3):
    torch.set_num_threads(threads)
    problem = Problem(hidden=(70, 33, 48), queries=301).requires_grad()
    grad = torch.randn(2, 301, 3, generator=torch.Generator().manual_seed(1))
    torch.ops.liif_fast.cpu_use_amx(True)
    ours, again = run(problem, grad), run(problem, grad)
    torch.ops.liif_fast.cpu_use_amx(False)
    others = run(problem, grad)
    assert all(map(torch.equal, ours, again))
    outs.append(ours[0])
    assert not all(map(torch.equal, ours, others))
    for a, b in zip(ours, others):
        assert (a - b).norm() < 2**-7 * b.norm(), ((a - b).norm() / b.norm(), a.shape)
assert torch.equal(*outs)
torch.ops.liif_fast.cpu_use_amx(True)
"""


@pytest.fixture
def emulated(emulator):
    """Return run(code), which executes Python with AMX."""
    load = f"import ctypes\nemulator = {f'ctypes.CDLL({str(emulator)!r}, ctypes.RTLD_GLOBAL)' if emulator else None}\n"
    # Behind an instrumented liif_fast, which is the one to test.
    load += f"import sys\nsys.path.append({str(support.ROOT)!r})\n"
    many = "\nassert emulator is None or emulator.liif_fast_amx_emulator() > 10_000\n"

    def run(code):
        chosen = {"LIIF_FAST_CPU_ISA": "amx-emulated" if emulator else "amx", "LIIF_FAST_TEST_BACKENDS": "cpu"}
        return warm.run("-c", load + code + many, timeout=300, env={**os.environ, **chosen}, cwd=support.ROOT)

    return run


def test_operators(emulated):
    files = [f"tests/ops/test_{name}.py" for name in TESTS]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-k", CHOSEN]
    done = emulated(f"import pytest\n{FEWER}\nassert pytest.main({[*files, *options]!r}) == 0\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 8


def test_with_and_without(emulated):
    done = emulated(COMPARE)
    assert done.returncode == 0, done.stderr
