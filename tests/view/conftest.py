import pytest

from .support import save_pictures, save_small_model


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """Return the file of a small model."""
    return save_small_model(tmp_path_factory.mktemp("model") / "small.safetensors")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Return a folder of pictures of every kind that PNG holds, and their pixels by name."""
    folder = tmp_path_factory.mktemp("pictures")
    return folder, save_pictures(folder)
