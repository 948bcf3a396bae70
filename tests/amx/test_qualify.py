"""Test `liif-fast qualify` on a processor with AMX, which is emulated in all its processes.

These are forked, with PyTorch imported and the emulator loaded; tests/qualification starts real processes.
"""

import json
import os

import pytest
import torch

from liif_fast.backends import cpu, verdict

from .. import warm
from . import support

pytestmark = pytest.mark.xdist_group("amx")

QUALIFY = """
import ctypes, multiprocessing, os, sys
emulator = ctypes.CDLL(os.environ["EMULATOR"], ctypes.RTLD_GLOBAL)
from liif_fast.cli import main
from liif_fast.qualification import child, runner

class Forked:  # the part of subprocess.Popen that the runner uses
    def __init__(self, command, stderr, **_):
        (read, to), (from_, write) = os.pipe(), os.pipe()
        self.stdin, self.stdout = open(to, "w"), open(from_)

        def run():
            os.setsid()
            for number, end in enumerate((read, write, stderr.fileno())):
                os.dup2(end, number)
            os.closerange(3, 256)
            sys.stdin = open(0)
            child.main()

        self.process = multiprocessing.get_context("fork").Process(target=run)
        self.process.start()
        self.pid = self.process.pid
        os.close(read)
        os.close(write)

    def wait(self, timeout):
        self.process.join(timeout)
        return self.process.exitcode

runner.subprocess.Popen = Forked
runner.ROUNDS = 1
modes = (False, True)[: int(sys.argv[2])]
runner.product = lambda *_: [("amx", op, "bfloat16", mode) for op in sys.argv[1].split() for mode in modes]
sys.exit(main(["qualify"]))
"""

# Without a wish, as on a processor with AMX; LIIF_FAST_CPU_ISA lets the library take it for one.
STATE = """
import ctypes, os, torch
from pathlib import Path
emulator = ctypes.CDLL(os.environ["EMULATOR"], ctypes.RTLD_GLOBAL)
from liif_fast import functional, info
from liif_fast.backends import cpu, verdict
cpu._wish = lambda: ""
torch.ops.liif_fast.cpu_use_amx(False)
low = torch.ones(4, 4, dtype=torch.bfloat16)

def state(results):
    verdict.read.cache_clear()
    key = verdict.key("cpu", None)
    if results:
        verdict.write(verdict.Verdict(verdict.path_of(key), key, "2026-01-01", {"amx": results}))
    before = emulator.liif_fast_amx_emulator()
    cpu.AMX = cpu._start_amx()
    functional.fused_mlp(low, [low], [low[0]], backend="cpu")
    assert cpu.AMX in dict(info.describe())["amx"]
    assert cpu.AMX in str(functional.explain(low[None, :, :, None], low[None, :, :2].float(), None,
        [torch.ones(3, 38, dtype=torch.bfloat16)], [low[0, :3]], cell_decode=False))
    assert verdict.faster("cpu", None, ("decode", torch.bfloat16, False)) == ()
    return cpu.AMX, emulator.liif_fast_amx_emulator() > before

def others(**some):
    return {name: some.get(name.partition(",")[0], right) for name in verdict.AMX_UNITS}

right = {"correct": True, "taken": True, "ratio": 2.0, "than": "avx512bf16"}
slow = {**right, "taken": False}
assert state({}) == ("off, until `liif-fast qualify --device cpu` has passed it here", False)
wrong = {"correct": False, "why": "nans"}
assert state(others(render=wrong)) == ("off, render, bfloat16: WRONG: nans", False)
assert state(others(render=slow))[1] is False
some = {"decode, bfloat16": right, "render, bfloat16": right}
assert state(some) == ("off, decode, bfloat16, training: not decided: not examined", False)
assert state(others()) == ("on, qualified 2026-01-01", True)
"""


@pytest.fixture
def emulated(emulator, tmp_path):
    """Return run(code, *arguments, **variables), which runs code as if this processor had AMX."""
    if emulator is None:
        pytest.skip("this processor executes the instructions itself")
    fixed = {
        "EMULATOR": str(emulator),
        "LIIF_FAST_CPU_ISA": "amx-emulated",
        verdict.VARIABLE: str(tmp_path / "v.json"),
    }

    def run(code, *arguments, **variables):
        return warm.run("-c", code, *arguments, timeout=300, env={**os.environ, **fixed, **variables}, cwd=support.ROOT)

    return run


def test_right_kernels_pass_and_slow_ones_stay_off(emulated, tmp_path):
    done = emulated(QUALIFY, "fused_mlp", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "v.json").read_text())["results"]
    assert set(results) == {"amx"} and len(results["amx"]) == 2
    for of in results["amx"].values():
        assert of["correct"] and of["than"] == "avx512bf16" and not of["taken"]  # emulation is slow
    assert "2 of 2 kinds of call passed, 0 were faster: AMX is off" in done.stdout


@pytest.mark.parametrize(
    ("fault", "why"),
    [(3, "the process ends by SIGILL"), (5, "output: error")],  # tests/qualification lets kernels hang
)
def test_wrong_kernels_are_found(emulated, tmp_path, fault, why):
    done = emulated(QUALIFY, "fused_mlp", 1, AMX_EMULATOR_FAULT=str(fault))
    assert done.returncode == 1, done.stdout + done.stderr
    (of,) = json.loads((tmp_path / "v.json").read_text())["results"]["amx"].values()
    assert not of["correct"] and why in of["why"]


def test_the_verdict_turns_amx_on_for_all_or_none(emulated):
    done = emulated(STATE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not cpu.AMX_MISSING, reason="this processor has AMX")
def test_a_processor_without_it_says_so(capsys):
    from liif_fast import info

    assert dict(info.describe())["amx"].startswith(f"none: {cpu.AMX_MISSING}")
    assert cpu.AMX.startswith("none: ")
    if cpu.ISA:
        assert torch.ops.liif_fast.cpu_use_amx(True) == cpu.AMX_MISSING


def state_with(wish, code="from liif_fast.backends import cpu; print(cpu.AMX)"):
    return warm.run("-c", code, env={**os.environ, "LIIF_FAST_CPU_ISA": wish}, cwd=support.ROOT, check=True).stdout


@pytest.mark.skipif(bool(cpu._missing), reason="the C++ kernels are not built")
@pytest.mark.parametrize("wish", ["AMX", "avx2 "])
def test_an_unknown_instruction_set_is_the_reason(wish):
    assert state_with(wish) == f"none: LIIF_FAST_CPU_ISA must be portable, avx2, avx512 or amx, got {wish!r}\n"


def test_neither_amx_nor_its_emulation_runs_where_it_is_not():
    """Products that ask for AMX use AVX512-BF16 then; with AMX, SIGILL would end the process."""
    support.amx_flags()
    if not cpu.BFLOAT16:
        pytest.skip("this processor has no AVX512-BF16, which the AMX kernels need as well")
    code = """
import torch
from liif_fast import functional
from liif_fast.backends import cpu
x = torch.ones(4, 4, dtype=torch.bfloat16)
assert (functional.fused_mlp(x, [x], [x[0]], backend="cpu") == 5).all()
print(cpu.AMX)
"""
    refused = "LIIF_FAST_CPU_ISA=amx-emulated is for tests, which load an emulator"
    assert state_with("amx-emulated", code) == f"none: {refused}\n"
    if not support.has_amx():
        assert state_with("amx", code) == "none: this processor has no AMX-BF16\n"
