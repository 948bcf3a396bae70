"""Hash a kernel's source, to tell whether a record is about this source."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from typing import Any

from triton.language import constexpr


def digest(kernel: Any) -> str:
    """Return a hash of a kernel's source, of all functions that it calls, and of all constants that it names.

    Comments, docstrings and positions in files do not count. Nor do flags, because they differ in Triton's interpreter.
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
