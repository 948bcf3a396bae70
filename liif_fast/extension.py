"""Load the compiled extensions: `_C`, the CPU's kernels, and `_C_sm90`, the Hopper kernel."""

from __future__ import annotations

from pathlib import Path

import torch

FOLDER = Path(__file__).parent

# Raise this with any change to the schemas or the set of the operators that the extension implements. The extension's
# sources hold the same number.
INTERFACES = {"_C": 13, "_C_sm90": 3}


def load(name: str) -> str:
    """Load the extension `name`, which registers its kernels; return the reason if that fails, else "".

    An extension built from sources of another interface is not loaded, because its kernels would misread arguments.
    """
    reason = f"no liif_fast/{name}"
    mark = f"liif_fast/{name} interface {INTERFACES[name]};".encode()
    for extension in FOLDER.glob(f"{name}.*"):
        try:
            if mark not in extension.read_bytes():
                reason = f"{extension.name} is built from older or newer sources: rebuild"
                continue
            torch.ops.load_library(extension)  # not imported: without Python's headers the build is not a module
            return ""
        except OSError as error:
            reason = str(error)
    return reason
