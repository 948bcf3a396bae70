"""Checkpoints: the original's format, and under `liif_fast` what continuing bit for bit needs beside it.

The random numbers of a step are drawn from the seed and the number of the step, so that there is no state of a
generator to keep: a checkpoint says which step of which epoch comes next.
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
    """How far a training has come."""

    epoch: int = 0  # epochs that are complete
    step: int = 0  # steps of the next one that are done
    losses: list[float] = field(default_factory=list)  # of those
    seconds: float = 0.0  # that those took
    best: float = -math.inf  # validation PSNR in dB


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a training, ours or the original's, running no code that it carries."""
    checkpoint = dict(read_checkpoint(path))
    with naming(str(path)):
        missing = [key for key in ("model", "optimizer", "epoch") if key not in checkpoint]
        if missing:
            raise ValueError(f"no checkpoint of a training: it has no {' and no '.join(missing)}")
        optimizer, epoch = checkpoint["optimizer"], checkpoint["epoch"]
        if not isinstance(optimizer, dict) or not {"name", "sd"} <= optimizer.keys():
            raise ValueError("no checkpoint of a training: its optimizer has no name or no sd")
        if not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"epoch must be a whole number of at least 0, got {epoch!r:.80}")
    return checkpoint


def compose(spec: dict[str, Any], stepper: Stepper, config: Config, progress: Progress, order: list[int]) -> Any:
    """Make what `torch.save` is to write.

    With `ema` the model's weights are the averaged ones, and the trained ones are under `liif_fast`. In the midst of an
    epoch `order`, on which the order of the samples depends, must not change.
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
        "data_norm": config.data_norm,  # what load_model reads; the original leaves it to the reader
        "liif_fast": extra,
    }


def restore(
    checkpoint: dict[str, Any], stepper: Stepper, config: Config, order: list[int]
) -> tuple[Progress, list[str]]:
    """Take over the state of a checkpoint, whose model's weights are loaded already.

    Returns how far it had come, and remarks on what does not go on as it was.
    """
    extra = checkpoint.get("liif_fast", {})  # the original's files have none
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
        remarks.append("the order of the samples is another one now, so that the unfinished epoch starts again")
    elif extra.get("step"):
        losses: Tensor = extra["losses"]
        progress.step, progress.losses, progress.seconds = extra["step"], losses.tolist(), extra["seconds"]
    return progress, remarks
