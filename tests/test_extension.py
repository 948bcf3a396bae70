"""A compiled extension is loaded only if it was built from sources with the operators that Python defines."""

import hashlib
import shutil

import pytest
import torch

from liif_fast import extension
from liif_fast.backends import cpu, cuda
from liif_fast.ops import resize, schemas  # noqa: F401 (resize: for the operator that it defines)

# For each extension its interface's number, and the digest of the schemas that had it.
SCHEMAS = {"_C": (1, "e5917ea794ffc9e1"), "_C_sm90": (1, "be51637917e24d4a")}


def implemented(name):
    key = "CUDA" if name == "_C_sm90" else "CPU"
    return [
        op + schema
        for op, schema in sorted(schemas.items())
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"liif_fast::{op}", key)
    ]


@pytest.mark.parametrize("name", ["_C", "_C_sm90"])
def test_a_new_schema_has_a_new_number(name):
    """If this fails, raise the number in extension.INTERFACES and in the extension's sources, and set both here."""
    if {"_C": cpu, "_C_sm90": cuda}[name]._missing:
        pytest.skip(f"liif_fast/{name} is not built")
    digest = hashlib.sha256("\n".join(implemented(name)).encode()).hexdigest()[:16]
    assert (extension.INTERFACES[name], digest) == SCHEMAS[name]


@pytest.mark.parametrize("backend", [cpu, cuda])
def test_older_sources_are_not_loaded(backend, tmp_path, monkeypatch):
    name = "_C" if backend is cpu else "_C_sm90"
    built = next(extension.FOLDER.glob(f"{name}.*"), None)
    if built is None:
        pytest.skip(f"liif_fast/{name} is not built")
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(extension, "FOLDER", tmp_path)
    assert f"no liif_fast/{name}" in backend._load()
    shutil.copy(built, tmp_path)
    assert backend._load() == ""
    assert len(loaded) == 1
    monkeypatch.setitem(extension.INTERFACES, name, 1000)
    assert f"({built.name} is built from older or newer sources: rebuild)" in backend._load()
    assert len(loaded) == 1
