"""Imports run downwards: the command line, the jobs, the models, the modules, the operators, the ground."""

import ast
from pathlib import Path

import pytest

import liif_fast

ROOT = Path(liif_fast.__file__).parent
# Each may import itself and those before it.
STOREYS = (
    *("window", "files", "signals", "extension", "devices", "distributed", "config", "images", "metrics"),
    *("call", "coord", "ops", "backends", "checks", "family", "functional", "layers", "convolution", "models", "data"),
    *("export", "upscaling", "view", "evaluation", "verification", "qualification", "info", "train", "cli"),
)


def imported(source: str) -> set[str]:
    """Return the rooms of liif_fast that a module imports, anywhere in the module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "liif_fast":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("liif_fast."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("liif_fast.")}
    return found


@pytest.mark.parametrize("room", STOREYS)
def test_no_module_imports_a_storey_above_its_own(room):
    above = set(STOREYS[STOREYS.index(room) + 1 :])
    files = [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = {str(file.relative_to(ROOT)): imported(file.read_text()) & above for file in files}
    assert not {name: rooms for name, rooms in wrong.items() if rooms}
