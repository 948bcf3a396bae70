"""Import user modules that register models, datasets and wrappers by name."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def import_plugins(modules: Any, folders: Sequence[Path] = (), place: str = "plugins") -> None:
    """Import the listed modules, also searching the current folder and `folders`; None imports nothing."""
    if modules is None:
        return
    if not isinstance(modules, list) or not all(isinstance(module, str) for module in modules):
        raise ValueError(f"{place}: expected a list of modules, got {modules!r:.80}")
    if modules:
        for folder in (Path.cwd(), *folders):  # stays in sys.path, because workers also import from there
            if str(folder.resolve()) not in sys.path:
                sys.path.append(str(folder.resolve()))
    for i, module in enumerate(modules):
        try:
            importlib.import_module(module)
        except Exception as error:  # a user's module may raise anything
            raise ValueError(f"{place}[{i}]: cannot import {module}: {type(error).__name__}: {error}") from error
