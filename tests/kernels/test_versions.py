"""Which devices and versions of Triton the backend refuses."""

import torch

from liif_fast.backends import triton as backend


def test_amd_is_refused(monkeypatch):
    """An MI200 says 9.0, too."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert backend._why_not_on("cuda", 0) == ""
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert "NVIDIA" in backend._why_not_on("cuda", 0)
