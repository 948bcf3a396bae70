"""Tell by a hash whether a kernel's source is what a record was made of."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from typing import Any

from triton.language import constexpr


def digest(kernel: Any) -> str:
    """Return a hash of a kernel's source, of all functions that it calls and constants that it names.

    Comments, docstrings and places in files do not count, nor do flags, which are others in Triton's interpreter.
    """
    found: dict[str, str] = {}

    def visit(function: Any) -> None:
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        assert isinstance(tree, ast.FunctionDef)
        if ast.get_docstring(tree) is not None:
            del tree.body[0]
        found[tree.name] = ast.dump(tree)
        for name in sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - found.keys()):
            value = function.__globals__.get(name)
            if isinstance(value, constexpr) and not isinstance(value.value, bool):
                found[name] = repr(value.value)
            elif hasattr(value, "fn") and name not in found:
                visit(value.fn)

    visit(kernel.fn)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
