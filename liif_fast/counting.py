"""Notice when PyTorch's FLOP counter is imported, so that it counts our operators whichever is imported first.

A counter copies the formulas when it is created, possibly before any of this package's modules is imported.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder

    class _Hook(MetaPathFinder, Loader): ...
else:  # Python asks for the methods only; to import the two classes takes longer than all else of `import liif_fast`
    _Hook = object

COUNTER = "torch.utils.flop_counter"


class _Watch(_Hook):
    """Load the counter as Python would, once, and register our formulas after it."""

    loader: Any

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _register()


def _register() -> None:
    importlib.import_module("liif_fast.functional")  # registers at its end, when all operators are there
    importlib.import_module("liif_fast.ops.flops").register()


def watch() -> None:
    """Register the formulas now if the counter is imported, otherwise when it will be."""
    if COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Watch())
