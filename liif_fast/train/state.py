"""Checkpoints in the original's format, with what an exact resume needs under the key `liif_fast`.

A step draws its random numbers from the seed and the step's number. So a checkpoint holds no generator state, only
which step of which epoch comes next.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liif_fast.models.checkpoint import naming, read_checkpoint
from liif_fast.train.config import Config
from liif_fast.train.stepper import Stepper


@dataclass
class Progress:
    """The position of a training in its schedule."""

    epoch: int = 0  # complete epochs
    step: int = 0  # complete steps of the next epoch
    losses: list[float] = field(default_factory=list)  # of those steps
    seconds: float = 0.0  # those steps took
    best: float = -math.inf  # validation PSNR in dB


def read(path: Path) -> dict[str, Any]:
    """Read a training checkpoint, ours or the original's, without running code from the file."""
    checkpoint = dict(read_checkpoint(path))
    with naming(str(path)):
        missing = [key for key in ("model", "optimizer", "epoch") if key not in checkpoint]
        if missing:
            raise ValueError(f"not a training checkpoint: it has no {' and no '.join(missing)}")
        optimizer, epoch = checkpoint["optimizer"], checkpoint["epoch"]
        if not isinstance(optimizer, dict) or not {"name", "sd"} <= optimizer.keys():
            raise ValueError("not a training checkpoint: its optimizer has no name or no sd")
        if not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"epoch must be a whole number of at least 0, got {epoch!r:.80}")
    return checkpoint


def compose(spec: dict[str, Any], stepper: Stepper, config: Config, progress: Progress, order: list[int]) -> Any:
    """Compose the checkpoint for `torch.save`.

    With `ema`, `model` holds the averaged weights and `liif_fast` the trained ones. `order` holds the numbers that
    determine the order of the samples; a resume within an epoch requires the same ones.
    """
    extra: dict[str, Any] = {"best": progress.best, "steps": stepper.steps, "backend": stepper.backend}
    if progress.step:
        extra |= {"step": progress.step, "order": order, "seconds": progress.seconds}
        extra["losses"] = torch.tensor(progress.losses, dtype=torch.float64)
    if stepper.scaler.is_enabled():
        extra["scaler"] = stepper.scaler.state_dict()
    if stepper.average is not None:
        extra["trained"] = stepper.model.state_dict()
    optimizer = config.optimizer
    return {
        "model": {**spec, "sd": (stepper.average or stepper.model).state_dict()},
        "optimizer": {"name": optimizer["name"], "args": optimizer["args"], "sd": stepper.optimizer_state()},
        "epoch": progress.epoch,
        "data_norm": config.data_norm,  # for load_model; the original's files do not have it
        "liif_fast": extra,
    }


def restore(
    checkpoint: dict[str, Any], stepper: Stepper, config: Config, order: list[int]
) -> tuple[Progress, list[str]]:
    """Restore everything but the model's weights, which are loaded already, from a checkpoint.

    Returns the progress and remarks on what differs from before.
    """
    extra = checkpoint.get("liif_fast", {})  # absent from the original's files
    if "trained" in extra:
        stepper.model.load_state_dict(extra["trained"])
    if stepper.average is not None:
        stepper.average.load_state_dict(checkpoint["model"]["sd"])
    name = checkpoint["optimizer"]["name"]
    if name != config.optimizer["name"]:
        raise ValueError(f"optimizer.name: the checkpoint has {name!r}, got {config.optimizer['name']!r}")
    remarks = stepper.load_optimizer_state(checkpoint["optimizer"]["sd"])
    if stepper.scaler.is_enabled() and "scaler" in extra:
        stepper.scaler.load_state_dict(extra["scaler"])
    stepper.steps = extra.get("steps", 0)
    progress = Progress(checkpoint["epoch"], best=extra.get("best", -math.inf))
    if extra.get("step") and list(extra["order"]) != order:
        remarks.append("the order of the samples has changed, so the unfinished epoch starts again")
    elif extra.get("step"):
        losses: Tensor = extra["losses"]
        progress.step, progress.losses, progress.seconds = extra["step"], losses.tolist(), extra["seconds"]
    return progress, remarks
