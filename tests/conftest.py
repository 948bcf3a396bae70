"""Imports the Triton kernels for Triton's interpreter, unless the tests run on a GPU.

Triton has to be told before it is first imported, and tests of every folder share a process. What the tests start does
not inherit it; tests/kernels sets it again for the backend.
"""

import importlib.util
import os

if os.environ.get("LIIF_FAST_TEST_DEVICE", "cpu") == "cpu" and importlib.util.find_spec("triton"):
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    from liif_fast.kernels import fused_mlp, gather_corners, project, render

    assert fused_mlp and gather_corners and project and render
    if before is None:
        del os.environ["TRITON_INTERPRET"]
