"""LIIF, arbitrary-scale super-resolution, with fused kernels: the same weights and outputs in less time."""

from __future__ import annotations

import importlib
from typing import Any

from liif_fast import counting

__version__ = "0.1.0"

# Public name -> its module. Modules are imported on first access, so that importing the package touches no driver,
# builds nothing and imports no Triton.
_HOMES = {
    "ILN": "liif_fast.models.iln",
    "JIIF": "liif_fast.models.jiif",
    "LIIF": "liif_fast.models.liif",
    "LIIFDecoder": "liif_fast.layers",
    "LMLIIF": "liif_fast.models.lmliif",
    "LTE": "liif_fast.models.lte",
    "LTEPlus": "liif_fast.models.lte",
    "MetaSR": "liif_fast.models.metasr",
    "ModelFileError": "liif_fast.models.checkpoint",
    "Upscaler": "liif_fast.upscaling",
    "accelerate": "liif_fast.models.accelerate",
    "explain": "liif_fast.functional",
    "export_onnx": "liif_fast.export",
    "load_model": "liif_fast.models.checkpoint",
    "make_cell": "liif_fast.coord",
    "make_coord": "liif_fast.coord",
    "qualify": "liif_fast.qualification",
    "save_model": "liif_fast.models.checkpoint",
    "upscale": "liif_fast.upscaling",
    "upscale_file": "liif_fast.upscaling",
    "upscale_strips": "liif_fast.upscaling",
}
_ROOMS = ("backends", "coord", "data", "functional", "kernels", "layers", "lidar", "metrics", "models", "ops", "train")

__all__ = [*_HOMES, "functional", "layers", "models"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})


counting.watch()
