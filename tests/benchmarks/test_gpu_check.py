"""The script that a GPU's record comes from works, on a CPU and without figures; and it can fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_check, gpu_hopper

ROOT = Path(__file__).parents[2]


def run(tmp_path, *options):
    out = tmp_path / "record.json"
    command = [sys.executable, "benchmarks/gpu_check.py", "--check", "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done, json.loads(out.read_text()) if out.exists() else None


def test_every_section_runs(tmp_path):
    done, record = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(record["sections"]) == list(gpu_check.SECTIONS)
    sections = record["sections"]
    assert sections["tests"]["passed"] > 0
    assert "rms" in sections["accuracy"]["float16, torch"]
    assert "ms" in sections["training"]["step"]["eager autocast"]
    assert "ms" in sections["decode"]["chunk of 30,000"]["plain, compiled"]
    assert set(sections["hopper"]["bits"].values()) == {0}
    assert sections["hopper"]["best"].keys() >= {"30000 queries", "4K frame"}
    assert record["device"] == "cpu" and record["check"]


def test_a_section_that_dies_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "__file__", str(tmp_path / "dies.py"))
    (tmp_path / "dies.py").write_text("import os; os.abort()")
    found = gpu_check.in_a_process("accuracy", True, 60)
    assert found["ok"] is False and "exit code" in found["ended"]


def test_a_failing_test_is_counted_as_one(tmp_path):
    (tmp_path / "test_wrong.py").write_text("def test_wrong():\n    assert 1 == 2, 'so it is'\n")
    found = gpu_check.run_tests(True, paths=(str(tmp_path / "test_wrong.py"), "-c", "/dev/null"))
    assert found["ok"] is False
    assert any("so it is" in message for message in found["failed"].values())


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "finds no CUDA GPU" in capsys.readouterr().err


def test_a_variant_with_other_bits_is_counted(monkeypatch):
    real = gpu_hopper.functional.liif_decode

    def decode(*arguments, **options):
        return real(*arguments, **options) + (gpu_hopper.cuda.CLUSTER == 2)

    monkeypatch.setattr(gpu_hopper.functional, "liif_decode", decode)
    monkeypatch.setattr(gpu_hopper, "_tune", lambda *_: {})
    found = gpu_hopper.hopper(True)
    assert not found["ok"] and set(found["bits"].values()) == {2}
    assert gpu_hopper.cuda.CLUSTER == 1
