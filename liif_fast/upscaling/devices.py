"""Where the work is done and with which model, and what happens when memory runs out."""

import os
from pathlib import Path

import torch
from torch import nn

from liif_fast.models.base import FeatureModel
from liif_fast.models.catalogue import check_family, find_model, shipped_model
from liif_fast.models.checkpoint import ModelFileError, load_model


def pick_device(name: str | torch.device) -> torch.device:
    """The device of that name, or for "auto" a GPU if there is one, else the CPU.

    Raises:
        ValueError: no such device, here or at all.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device: torch.device | None = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps") or (device.type != "cuda" and device.index):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {str(name)!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(name)!r} is not available: PyTorch {torch.__version__} finds no CUDA GPU")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(name)!r} is not available: there are {torch.cuda.device_count()} GPUs")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not available: PyTorch finds no Metal GPU")
    return torch.device("cpu") if device.type == "cpu" else device  # "cpu:0" is the same, but compares otherwise


def default_model_path() -> Path:
    """The checkpoint that ships with the package."""
    return shipped_model()


def resolve_model(
    model: FeatureModel | str | os.PathLike[str] | None, device: str | torch.device = "auto"
) -> FeatureModel:
    """The model that `upscale` uses; arguments and errors as there."""
    if isinstance(model, nn.Module):
        if not isinstance(model, FeatureModel):
            raise TypeError(f"model must be a LIIF or MetaSR of liif_fast, got {type(model).__name__}")
        here = next(model.parameters()).device
        if device != "auto":
            asked = torch.empty(0, device=pick_device(device)).device  # "cuda" is the current GPU
            if asked != here:
                raise ValueError(f"the model is on {here}, not on {asked}: move it, or leave device at auto")
        _check_channels(model)
        return model
    if not isinstance(model, str | os.PathLike | None):
        raise TypeError(f"model must be a model, the path or name of one, or None, got {type(model).__name__}")
    path = default_model_path() if model is None else find_model(model)
    return load_upscaler(path, pick_device(device))


def load_upscaler(path: Path, device: torch.device | str = "cpu") -> FeatureModel:
    """A model from a file, if `upscale` can use it.

    Args:
        path: the file; in the models folder it must hold the published model that it is called as.
        device: where the model goes.

    Raises:
        ModelFileError: it is no model file, or holds no model from images to images of the same channels.
        OSError: it cannot be read.
    """
    model = load_model(path, device)
    check_family(path, model)
    if not isinstance(model, FeatureModel):
        raise ModelFileError(f"{path}: holds a {type(model).__name__}, expected a LIIF or MetaSR model")
    try:
        _check_channels(model)
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from error
    return model


def _check_channels(model: FeatureModel) -> None:
    """Raise ValueError if a model is known to make other channels than it takes; else that shows when it is run."""
    if model.channels_out not in (None, model.channels_in):
        raise ValueError(other_channels(model.channels_out, model.channels_in))


def other_channels(got: int | None, wanted: int) -> str:
    """Say that a model makes other channels than it takes."""
    return f"the model gives {got} channels, expected {wanted}{' (RGB)' if wanted == 3 else ''}"


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error is one of the ways in which PyTorch and Python say that memory has run out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def free_cached(device: torch.device) -> None:
    """Give back what the allocator keeps, after memory has run out."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
