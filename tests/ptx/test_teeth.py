"""Faults planted into compiled kernels are found by executing them: the checks have teeth. Part of `make ptx` alone."""

import json
import subprocess
import sys

import pytest

from ..kernels.test_compile_report import MAIN, ROOT, TRIED, environment

pytest.importorskip("triton", reason="Triton is not installed")
if not TRIED[1:]:
    pytest.skip("make ptx runs it: these test the executor alone", allow_module_level=True)

# Triton 3.7.1 places these without need: across them, each warp touches only what no other warp does.
REDUNDANT = {
    f"barrier: {name} without number {number}" for name, number in (("decode", 14), ("chain", 14), ("chain", 16))
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    variables = environment(MAIN, TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("cache")), PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "tests.ptx.teeth"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_planted_fault_is_found(found):
    missed = {title for title, how in found.items() if how is None}
    assert len(found) > 80
    assert missed == REDUNDANT


@pytest.mark.parametrize(
    ("group", "how"),
    [("barrier: decode", "a race"), ("copy: no first wait", "under way"), ("address: cut", "outside of every tensor"),
     ("mask: off by one", "outside of every tensor"), ("plan: contracted", "other results")],
)  # fmt: skip
def test_a_fault_is_named(found, group, how):
    named = [text for title, text in found.items() if title.startswith(group) and title not in REDUNDANT]
    assert named and all(how in text for text in named), named
