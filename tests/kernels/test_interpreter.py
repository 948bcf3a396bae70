"""The shortcuts of tests/interpreter.py change no result."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import torch

from liif_fast.functional import fused_mlp, liif_decode

from .. import conftest
from ..ops.support import Problem

if not conftest.interprets:
    pytest.skip("tests/conftest.py takes no shortcut here", allow_module_level=True)

from .. import interpreter

PINNED = Path(__file__).parents[2] / "constraints.txt"


def mlp():
    generator = torch.Generator().manual_seed(0)
    x, *layers = (torch.randn(shape, generator=generator) for shape in ((5, 16), (16, 16), (3, 16), (16,), (3,)))
    return [fused_mlp(x, layers[:2], layers[2:], backend="triton")]


def decode():
    problem = Problem(channels=2, shape=(3, 4), queries=3, hidden=(9, 8), dtype=torch.bfloat16).requires_grad()
    out = liif_decode(*problem.arguments, backend="triton")
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), problem.leaves)]


@pytest.mark.parametrize("run", [mlp, decode])
def test_shortcuts_change_no_result(run, monkeypatch):
    short = run()
    for owner, name, original in interpreter.TAKEN:
        monkeypatch.setattr(owner, name, original)
    for ours, tritons in zip(short, run(), strict=True):
        assert ours.isfinite().all() and torch.equal(ours, tritons)


def test_the_pinned_version_has_every_name():
    pinned = re.search(r"^triton==(\S+)", PINNED.read_text() if PINNED.is_file() else "", re.M)
    if pinned is None or importlib.metadata.version("triton") != pinned[1]:
        pytest.skip("Triton is not the version of constraints.txt")
    names = re.findall(r"^@shorten\(", Path(interpreter.__file__).read_text(), re.M)
    assert len(interpreter.TAKEN) == len(names) > 0


@pytest.mark.parametrize("path", ["no.module", "language.core:no_class.of_that", "language.core:tensor"])
def test_a_version_without_a_name_keeps_its_own(path):
    interpreter.shorten(path, "no_name")(lambda original: pytest.fail(f"there is {original}"))
