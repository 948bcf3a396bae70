"""What the compiler makes of the kernels, without a GPU; benchmarks/compile_report.py compiles all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("arch", "instruction"), [(90, "hgmma"), (80, "matrix_instructions")])
def test_half_precision_neither_spills_nor_lacks_matrix_instructions(arch, instruction, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "benchmarks/compile_report.py", "--arch", str(arch), "--precision", "fp16"]
    command += ["--case", "decode", "gather_corners", "--json", str(tmp_path / "report.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = json.loads((tmp_path / "report.json").read_text())
    assert {entry["kernel"] for entry in entries} >= {
        "decode_kernel",
        "chain_kernel",
        "segment_kernel",
        "gather_kernel",
    }
    for entry in entries:
        assert entry["spill_bytes"] == 0
        if entry["matrix"]:
            assert entry[instruction] > 0
