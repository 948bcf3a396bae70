import os

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    if os.environ.get("LIIF_FAST_TEST_DEVICE", "cpu") != "cpu":
        pytest.skip("for Triton's interpreter: tests/conftest.py imports the kernels for it on a CPU only")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
