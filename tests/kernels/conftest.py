import contextlib
import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from liif_fast.kernels import backward, decode, host, project, render, scatter
from liif_fast.ops import decode as operators


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    if os.environ.get("LIIF_FAST_TEST_DEVICE", "cpu") != "cpu":
        pytest.skip("for Triton's interpreter: tests/conftest.py imports the kernels for it on a CPU only")
    monkeypatch.setenv("TRITON_INTERPRET", "1")


class Idle:
    """Replace a kernel by one that does nothing."""

    def __getitem__(self, grid):
        return lambda *args, **named: None


@pytest.fixture
def idle(monkeypatch):
    """Simulate a GPU whose kernels do nothing."""
    for module in (backward, decode, project, render, scatter):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Idle())
    monkeypatch.setattr(host, "architecture", lambda device: 90)
    monkeypatch.setattr(host, "on", lambda tensor: contextlib.nullcontext())
    monkeypatch.setattr(host, "product", lambda a, b: torch.empty(*a.shape[:-1], b.shape[-1]))
    for name, function in {
        "project": project.project, "project_backward": project.project_backward,
        "decode_queries": decode.decode, "_decode_backward": decode.decode_backward,
        "render_window": render.render, "_render_backward": render.render_backward,
    }.items():  # fmt: skip
        monkeypatch.setattr(operators, name, lambda *args, function=function: function(*args[:-1]))
