"""A compiled extension loads only if it was built from sources with the operators that Python defines."""

import hashlib
import shutil
import subprocess
import sys

import pytest
import torch

from liif_fast import extension
from liif_fast.backends import cpu, cuda

from . import warm

# For each extension, its interface's number and the digest of its schemas.
SCHEMAS = {"_C": (13, "ed3df90a7ca7943d"), "_C_sm90": (3, "d58b44134bb5562b")}


# In a process of its own, because other tests import further operators.
SCRIPT = """
import sys, torch
from liif_fast.backends import cpu, cuda
from liif_fast.ops import conv3x3, resize, schemas
for op, schema in sorted(schemas.items()):
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"liif_fast::{op}", sys.argv[1]):
        print(op + schema)
"""


def implemented(name):
    return warm.run("-c", SCRIPT, "CUDA" if name == "_C_sm90" else "CPU", check=True).stdout.splitlines()


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the flag is GNU ld's")
@pytest.mark.parametrize(("name", "source"), [("_C", "cpu/library.cpp"), ("_C_sm90", "cuda/operators.h")])
def test_a_linker_that_drops_unreferenced_sections_keeps_the_mark(name, source, tmp_path):
    """The mark survives conda's default flags; only its lines are compiled, in seconds."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    text = (extension.FOLDER.parent / "csrc" / source).read_text()
    lines = text[text.index("// liif_fast/extension.py looks for") : text.index("STABLE_TORCH_LIBRARY_IMPL")]
    (tmp_path / "mark.cpp").write_text(lines)
    made = tmp_path / f"{name}.so"
    flags = [
        "-shared",
        "-fPIC",
        "-O3",
        "-fvisibility=hidden",
        "-fdata-sections",
        "-Wl,--gc-sections",
        "-Wall",
        "-Werror",
    ]
    subprocess.run([compiler, *flags, str(tmp_path / "mark.cpp"), "-o", str(made)], check=True)
    assert f"liif_fast/{name} interface {extension.INTERFACES[name]};".encode() in made.read_bytes()
