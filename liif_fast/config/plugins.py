"""Modules of the user's, which register models, datasets and wrappers by name."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def import_plugins(modules: Sequence[str], folders: Sequence[Path] = (), place: str = "plugins") -> None:
    """Import modules, found from the current folder and from other folders as well.

    Args:
        modules: their names, as an import statement writes them.
        folders: where else they may be.
        place: what messages call the list.

    Raises:
        ValueError: a module cannot be imported; the message begins with its place.
    """
    if modules:
        for folder in (Path.cwd(), *folders):  # for good: workers import from there as well
            if str(folder.resolve()) not in sys.path:
                sys.path.append(str(folder.resolve()))
    for i, module in enumerate(modules):
        try:
            importlib.import_module(module)
        except Exception as error:  # a module of the user's may raise anything
            raise ValueError(f"{place}[{i}]: cannot import {module}: {type(error).__name__}: {error}") from error
