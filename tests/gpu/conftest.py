"""Tests that need a GPU, skipped without one; benchmarks/gpu_check.py runs and records them one by one.

LIIF_FAST_TEST_DEVICE=cpu runs those without CUDA features on a CPU, on the backends that work there.
"""

import os
from pathlib import Path

import pytest
import torch

from liif_fast import functional

DEVICE = os.environ.get("LIIF_FAST_TEST_DEVICE", "cuda")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS refuses deterministic algorithms
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent != HERE:
            continue
        if DEVICE == "cuda" and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))
        elif DEVICE != "cuda" and item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="uses a feature of CUDA"))


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture
def needs():
    """Return needs(backend, problem), which skips with the backend's reason if it cannot run the call."""

    def ask(backend, problem):
        for name, can, reason in functional.explain(*problem.arguments, **problem.switches._asdict()).answers:
            if name == backend and not can:
                pytest.skip(f"{backend}: {reason}")

    return ask
