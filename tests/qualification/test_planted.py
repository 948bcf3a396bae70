"""Qualify kernels with planted faults in real processes, in Triton's interpreter on the CPU.

The processes find the planted kernels by a sitecustomize.py, because they inherit this process's path.
"""

import os
import shutil
from pathlib import Path

import pytest

from liif_fast import functional, kernels
from liif_fast.backends import verdict
from liif_fast.qualification import qualify, runner
from liif_fast.qualification.problems import Unit
from liif_fast.qualification.runner import Exam

from ..ops.support import Problem

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture
def plant(monkeypatch, tmp_path):
    """Return plant(file, old, new), which replaces a piece of a kernel file for the started processes."""
    folder = tmp_path / "planted"
    shutil.copytree(next(iter(kernels.__path__)), folder / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"import liif_fast.kernels\nliif_fast.kernels.__path__ = [{str(folder / 'kernels')!r}]\n"
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(kernels, "__path__", [str(folder / "kernels")])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "verdicts"))
    monkeypatch.setattr(runner, "ROUNDS", 1)
    verdict.read.cache_clear()

    def replace(file, old, new):
        text = (folder / "kernels" / file).read_text()
        assert text.count(old) == 1, f"{file}: {old!r}"
        (folder / "kernels" / file).write_text(text.replace(old, new))

    yield replace
    verdict.read.cache_clear()


def test_a_wrong_kernel_is_found_named_and_stays_off(plant, monkeypatch):
    """A fault in decode's areas and one in the attention are found; a kernel that ends its process affects no other."""
    monkeypatch.setattr(runner, "OPS", ("decode", "gather_corners", "fused_mlp", "attend_corners"))
    monkeypatch.setattr(runner, "QUALIFIED", ("triton",))
    monkeypatch.setattr(runner, "product", lambda *parts: [("triton", op, "float32", False) for op in parts[1]])
    plant("plan.py", "tl.where(right, area2, area3)", "tl.where(right, area3, area2)")
    plant("gather_corners.py", "import torch\n", "import os\nos.abort()\n")
    plant("attention.py", "factor = CHANNELS**-0.5", "factor = CHANNELS**-0.4")
    found = qualify("cpu", seconds=300)
    assert found == verdict.load(found.path, verdict.key("cpu", None))
    decode, gather, mlp, attend = (found.results["triton"][f"{op}, float32"] for op in runner.OPS)
    assert not decode["correct"] and decode["why"].startswith("output: error ")
    assert not gather["correct"] and "SIGABRT" in gather["why"] and gather["why"].startswith("values, 1 x 20: ")
    assert not attend["correct"] and attend["why"].startswith("output: error ")
    assert mlp["correct"] and mlp["than"] == "cpu" and mlp["ratio"] > 0 and not mlp["taken"]
    answer = functional.explain(*Problem().arguments)
    assert answer.chosen == "cpu" and f"WRONG: {decode['why']}" in str(answer)


def test_a_hanging_kernel_is_ended_and_stays_off(plant):
    plant("network.py", '"""Return max(x, 0), passing NaN on as PyTorch does."""\n', "while True:\n        pass\n")
    unit = Unit("triton", "fused_mlp", "float32", False)
    lines = []
    exam = Exam("cpu", 300, lines.append)
    exam.patience = 1.0
    (found,) = exam.run([unit]).values()
    assert found == {"correct": False, "why": "values, 1 x 20: no answer in 1 s"}
    assert not _children()


def _children() -> list[str]:
    """Return the commands of this process's children, on Linux."""
    me, found = str(os.getpid()), []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if status.read_text().rsplit(")", 1)[1].split()[1] == me:
                found.append((status.parent / "cmdline").read_text())
        except OSError:  # it has ended
            continue
    return [command for command in found if "liif_fast.qualification" in command]


def test_attention_is_examined_in_both_directions(plant, monkeypatch):
    """The kernels of attend_corners pass; with a planted fault only the gradient, which is named, does not."""
    units = [Unit("triton", "attend_corners", "float32", training) for training in (False, True)]
    plant("attend_back.py", "-0.5 * moved * scale * scale", "-0.5 * moved * scale")
    right, wrong = Exam("cpu", 300, lambda line: None).run(units).values()
    assert right["correct"] and right["ratio"] > 0
    assert not wrong["correct"] and wrong["why"].startswith("gradient of feat: error ")
