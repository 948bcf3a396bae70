"""Without a GPU, Triton kernels run in Triton's interpreter; it wants to be told before Triton is first imported."""

import os

if os.environ.get("LIIF_FAST_TEST_DEVICE", "cpu") == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
