"""A ComfyUI node that enlarges images with LIIF to any width, height or ratio.

Install liif_fast into ComfyUI's Python, copy this folder to custom_nodes/liif_fast, and restart ComfyUI. The node is in
the category image/upscaling.
"""

import os
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

import liif_fast
from liif_fast.models import catalogue
from liif_fast.models.base import FeatureModel

MOST = 65_535  # pixels a side


def model_names() -> list[str]:
    """Return the shipped models and the files in liif_fast's models folder, by the names that `--model` takes."""
    folder = catalogue.models_folder()
    files = sorted(each.name for each in folder.iterdir() if each.is_file()) if folder.is_dir() else []
    return [
        catalogue.SHIPPED,
        catalogue.SHIPPED_PHOTO,
        *(name for name in files if name.lower().endswith(catalogue.SUFFIXES)),
    ]


@lru_cache(maxsize=1)
def load(path: str, changed: float, device: str) -> FeatureModel:
    """Return the model of a file; it is kept until another file, another state of it or another device is asked for."""
    return catalogue.resolve_model(path, device)


class LIIFUpscale:
    """Enlarge images [B, H, W, C]; a side of 0 follows from the other, or with both 0 from the ratio."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = "LIIF: enlarges to any size. Width and height of 0 leave the size to the ratio."
    RETURN_TYPES: ClassVar = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 0, "min": 0, "max": MOST, "tooltip": "pixels; 0 follows from the other values"}
        return {
            "required": {
                "image": ("IMAGE",),
                "model": (model_names(),),
                "ratio": ("FLOAT", {"default": 2.0, "min": 1.0, "max": 64.0, "step": 0.01, "round": False}),
                "width": ("INT", side),
                "height": ("INT", side),
                "device": (["auto", "cpu"],),
                "precision": (["float32", "bf16", "fp16"],),
            }
        }

    @classmethod
    def IS_CHANGED(cls, model: str, **others: Any) -> float:
        """Return the state of the model's file, because ComfyUI keeps the output while it stays the same."""
        return os.path.getmtime(catalogue.find_model(model))

    def upscale(
        self, image: Tensor, model: str, ratio: float, width: int, height: int, device: str, precision: str
    ) -> tuple[Tensor]:
        """Return the enlarged images, float32 [B, h, w, C] in [0, 1] on the CPU.

        Raises:
            ValueError: the output would be smaller than the input along a side, or too large.
            OSError: the model's file cannot be read.
        """
        path = catalogue.find_model(model)
        loaded = load(str(path), os.path.getmtime(path), device)
        wanted: Any = {"size": (width or None, height or None)} if width or height else {"scale": ratio}
        pictures = image.detach().cpu().float().clamp(0, 1).numpy()
        done = [liif_fast.upscale(each, loaded, precision=precision, **wanted) for each in pictures]
        return (torch.stack([torch.from_numpy(each) for each in done]),)


NODE_CLASS_MAPPINGS = {"LIIFUpscale": LIIFUpscale}
NODE_DISPLAY_NAME_MAPPINGS = {"LIIFUpscale": "Upscale Image (LIIF)"}
