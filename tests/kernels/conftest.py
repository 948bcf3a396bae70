import os

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(autouse=True)
def interpreted():
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("for Triton's interpreter: TRITON_INTERPRET=1")
