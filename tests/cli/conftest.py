"""Provide the fixtures for the command line's tests."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import liif_fast
from liif_fast.models import make


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a tiny model with random weights."""
    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
    args = {"encoder_spec": encoder, "imnet_spec": imnet, "residual": "bilinear"}
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    liif_fast.save_model(make({"name": "liif", "args": args}), path)
    return str(path)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Return the path of a small RGB photograph."""
    path = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)).save(path)
    return path


@pytest.fixture(autouse=True)
def own_models_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty models folder, and restore Pillow's limit."""
    folder = tmp_path_factory.mktemp("models")
    monkeypatch.setenv("LIIF_FAST_MODELS", str(folder))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    return folder
