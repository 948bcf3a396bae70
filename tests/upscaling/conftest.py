"""Provide the fixtures for the tests of upscaling."""

import pytest
import torch
from torch import nn

from liif_fast.models import make
from liif_fast.upscaling import features, options, strips


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Return a tiny LIIF with random weights and a bilinear residual."""
    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
    args = {"encoder_spec": encoder, "imnet_spec": imnet, "residual": "bilinear"}
    return make({"name": "liif", "args": args}).eval()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use tiles of 8 pixels and strips of a few rows, so that small images have many."""
    monkeypatch.setattr(features, "MIN_TILE", 8)
    monkeypatch.setattr(options, "MIN_TILE", 8)
    monkeypatch.setattr(features, "FEATURE_BYTES", 19 * 4 * 4 * 8)
    monkeypatch.setattr(strips, "STRIP_QUERIES", 100)
