"""LiDAR: sensors, range images and points, and upsampling of scans."""

import importlib
from typing import Any

_HOMES = {
    "Projection": "projection",
    "Scores": "scoring",
    "Sensor": "sensor",
    "Upsampled": "upsampler",
    "Upsampler": "upsampler",
    "project": "projection",
    "scores": "scoring",
    "unproject": "projection",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
