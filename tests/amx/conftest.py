"""Compile the emulator of AMX once."""

import pytest

from . import support


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """Return the emulator's library; None if this processor executes the instructions itself."""
    support.amx_flags()
    if support.has_amx():
        return None
    library = tmp_path_factory.mktemp("amx") / "emulator.so"
    return support.compiled(library, support.HERE / "emulator.cpp", "-mavx2", "-mfma")
