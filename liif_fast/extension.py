"""Loads the compiled extensions: `_C`, the CPU's kernels, and `_C_sm90`."""

from __future__ import annotations

from pathlib import Path

import torch

FOLDER = Path(__file__).parent

# Raised with any change to the schema of an operator that the extension implements, or to the operators there are;
# the extension's sources hold the same number.
INTERFACES = {"_C": 3, "_C_sm90": 2}


def load(name: str) -> str:
    """Load the extension `name`, which registers its kernels; return why it cannot be loaded, "" if it can.

    One built from sources of another interface is not loaded: its kernels would take arguments for others.
    """
    reason = f"no liif_fast/{name}"
    mark = f"liif_fast/{name} interface {INTERFACES[name]};".encode()
    for extension in FOLDER.glob(f"{name}.*"):
        try:
            if mark not in extension.read_bytes():
                reason = f"{extension.name} is built from older or newer sources: rebuild"
                continue
            torch.ops.load_library(extension)  # not imported: built without Python's headers it is no module
            return ""
        except OSError as error:
            reason = str(error)
    return reason
