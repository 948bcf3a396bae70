"""Import the Triton kernels in the interpreter, unless tests use a GPU or named backends, and reset signals.

Triton reads the variable at its first import, and tests of all folders share a process. Processes started by tests do
not inherit the setting; tests/kernels sets it again for the backend.
"""

import importlib.util
import os
import signal

on_cpu = os.environ.get("LIIF_FAST_TEST_DEVICE", "cpu") == "cpu"
interprets = on_cpu and "LIIF_FAST_TEST_BACKENDS" not in os.environ and bool(importlib.util.find_spec("triton"))
if interprets:
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    from liif_fast.kernels import attend_corners, fourier_decode, fused_mlp, gather_corners, project, render

    assert attend_corners and fourier_decode and fused_mlp and gather_corners and project and render
    if before is None:
        del os.environ["TRITON_INTERPRET"]

    from . import interpreter

    assert interpreter

# A run in the background or under nohup ignores these signals, and processes that tests start would, too.
for each, handler in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, "SIGHUP", None), signal.SIG_DFL)):
    if each is not None and signal.getsignal(each) is signal.SIG_IGN:
        signal.signal(each, handler)
