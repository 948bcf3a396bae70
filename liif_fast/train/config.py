"""Check a training configuration as a whole before anything starts.

The keys of the original's files work unchanged. docs/training.md lists the others.
"""

import inspect
import math
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from liif_fast import backends
from liif_fast.config.checks import mapping, number, one_of
from liif_fast.config.reading import load
from liif_fast.config.registry import check_arguments
from liif_fast.data.registry import check_split
from liif_fast.evaluation.config import check_shared
from liif_fast.files import reason
from liif_fast.models.registry import outline

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
AMP = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp16": torch.float16, "float16": torch.float16}
MOST_TENSORS = 5_000  # of a model; a typing error in its size would fill the memory
# Values of absent keys whose default is not null.
_DEFAULTS: dict[str, Any] = {"seed": 0, "val_seed": 0, "grad_accum": 1, "channels_last": True, "save_minutes": 10}


@dataclass(frozen=True)
class Config:
    """A checked configuration: `raw` is the YAML as read, the other fields have their defaults filled in."""

    raw: dict[str, Any]
    train_dataset: dict[str, Any]
    val_dataset: dict[str, Any] | None
    data_norm: dict[str, dict[str, list[float]]]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    epoch_max: int
    multi_step_lr: dict[str, Any] | None
    epoch_val: int | None
    epoch_save: int | None
    resume: str | None
    eval_type: str | None
    eval_bsize: int | None
    # Ours:
    cosine: dict[str, Any] | None
    ema: float | None
    teacher: dict[str, Any] | None
    amp: str | None
    compile: bool | None
    channels_last: bool
    backend: str | None
    grad_clip: float | None
    grad_accum: int
    seed: int
    val_seed: int | None
    deterministic: bool | None
    num_workers: int | None
    data_device: str | None
    save_minutes: float | None
    val_images: int | None
    tensorboard: bool | None
    plugins: list[str] | None

    @property
    def autocast(self) -> torch.dtype | None:
        """Return the dtype that `amp` names."""
        return None if self.amp is None else AMP[self.amp]

    def rate(self, epochs: float) -> float:
        """Return the learning rate after `epochs`, a float from 0 to epoch_max.

        It is lr * gamma^(milestones <= epochs), the cosine from lr to min_lr, or lr.
        """
        first = self.optimizer["args"]["lr"]
        if self.multi_step_lr is not None:
            passed = sum(milestone <= epochs for milestone in self.multi_step_lr["milestones"])
            return first * self.multi_step_lr.get("gamma", 0.1) ** passed
        if self.cosine is not None:
            warmup, last = self.cosine.get("warmup", 0), self.cosine.get("min_lr", 0.0)
            if epochs < warmup:
                return first * (epochs + 1e-3) / warmup
            done = min((epochs - warmup) / max(self.epoch_max - warmup, 1e-9), 1.0)
            return last + (first - last) * (1 + math.cos(math.pi * done)) / 2
        return first


def load_config(path: str | Path) -> Config:
    """Read and check a training configuration; `liif_fast.config.reading.load` lists the errors."""
    return load(path, partial(check_config, name=Path(path).stem))


def check_config(raw: Any, folders: list[Path] | None = None, name: str | None = None) -> Config:
    """Check a parsed configuration; `name` is that of its file, without the ending."""
    keys = [field for field in Config.__dataclass_fields__ if field != "raw"]
    folders = folders or []
    shared = check_shared(raw, keys, ("train_dataset", "model", "optimizer", "epoch_max"), folders)
    check_split(raw["train_dataset"], "train_dataset", folders)
    if raw.get("val_dataset") is not None:
        check_split(raw["val_dataset"], "val_dataset", folders)
    _model(raw["model"])
    _optimizer(raw["optimizer"])
    _schedule(raw)
    for key in ("epoch_max", "epoch_val", "epoch_save", "grad_accum"):
        number(raw, key, least=1, below=2**31, whole=True)
    number(raw, "val_images", least=0, whole=True)
    for key in ("seed", "val_seed"):
        number(raw, key, least=0, below=2**63, whole=True)
    number(raw, "num_workers", least=0, below=1025, whole=True)  # a typing error would fork until memory is gone
    number(raw, "ema", above=0, below=1)
    if raw.get("teacher") is not None:
        mapping(raw["teacher"], "teacher", ("model", "weight"), ("model", "weight"))
        number(raw["teacher"], "weight", "teacher", above=0, below=1)
    number(raw, "grad_clip", above=0)
    number(raw, "save_minutes", least=0)
    one_of(raw, "amp", list(AMP))
    one_of(raw, "backend", ("auto", *backends.NAMES))
    one_of(raw, "data_device", ("cpu", "cuda"))
    for key in ("compile", "channels_last", "deterministic", "tensorboard"):
        one_of(raw, key, (True, False))
    if raw.get("resume") is not None:
        raw["resume"] = os.path.expanduser(str(raw["resume"]))
        if not Path(raw["resume"]).is_file() and not resumes_itself(raw["resume"], name):
            raise FileNotFoundError(f"resume: no file {raw['resume']}")
    known = {key: raw.get(key, _DEFAULTS.get(key)) for key in keys} | shared
    for key in ("seed", "grad_accum", "channels_last"):  # null means the default
        known[key] = _DEFAULTS[key] if known[key] is None else known[key]
    return Config(raw=raw, **known)


def resumes_itself(resume: str, name: str | None) -> bool:
    """Say whether `resume` is the last checkpoint of this configuration's own runs, as in LTE's configurations.

    Such a file is not there before the first epoch.
    """
    path = Path(resume)
    return path.name == "epoch-last.pth" and path.parent.name.removeprefix("_") == name


def _model(spec: Any) -> None:
    try:
        outline(spec, MOST_TENSORS, place="model")
    except Exception as error:  # a constructor may raise anything on an unexpected value
        text = reason(error)
        raise ValueError(text if re.match("model[.:]", text) else f"model: {text}") from error


def _optimizer(spec: Any) -> None:
    """Check the arguments by the types of their defaults, and by one step of the optimizer on one parameter."""
    mapping(spec, "optimizer", ("name", "args"), ("name", "args"))
    if not isinstance(spec["name"], str) or spec["name"] not in OPTIMIZERS:
        raise ValueError(f"optimizer.name: expected one of {', '.join(OPTIMIZERS)}, got {spec['name']!r:.80}")
    optimizer, args = OPTIMIZERS[spec["name"]], spec["args"]
    known = list(inspect.signature(optimizer).parameters.values())[1:]  # [0]: the network's parameters
    mapping(args, "optimizer.args", [each.name for each in known], ("lr",))
    known = [each.replace(annotation=_type_of(each.default)) for each in known]
    check_arguments(args, known, spec["name"], "optimizer.args")
    number(args, "lr", "optimizer.args", above=0)
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    try:
        optimizer([parameter], **args).step()
    except Exception as error:
        raise ValueError(f"optimizer.args: {reason(error)}") from error


def _type_of(default: Any) -> Any:
    """Return the type that a configuration may give where an optimizer has this default."""
    if isinstance(default, tuple):
        return tuple[(float,) * len(default)]  # type: ignore[misc]
    return {bool: bool, NoneType: bool | None}.get(type(default), float)


def _schedule(raw: dict[str, Any]) -> None:
    steps, cosine = raw.get("multi_step_lr"), raw.get("cosine")
    if steps is not None and cosine is not None:
        raise ValueError("cosine: multi_step_lr and cosine exclude each other")
    if steps is not None:
        mapping(steps, "multi_step_lr", ("milestones", "gamma"), ("milestones",))
        number(steps, "gamma", "multi_step_lr", above=0)
        milestones = steps["milestones"]
        if not isinstance(milestones, list) or not all(type(milestone) is int for milestone in milestones):
            raise ValueError(f"multi_step_lr.milestones: expected a list of epochs, got {milestones!r:.80}")
    if cosine is not None:
        mapping(cosine, "cosine", ("min_lr", "warmup"))
        number(cosine, "min_lr", "cosine", least=0)
        number(cosine, "warmup", "cosine", least=0)
