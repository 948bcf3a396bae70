import pytest

from . import model


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """Compile the kernel's headers for the host."""
    return model.compile_host(tmp_path_factory.mktemp("host"))
