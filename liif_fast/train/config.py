"""The YAML configuration of a training, checked as a whole before anything starts.

The keys of the original's files (docs/training.md) work unchanged; `cosine`, `ema`, `seed`, `val_seed`,
`num_workers` and `amp`, and the wrappers' `color_augment`, are ours.
"""

import inspect
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from liif_fast.data import registry
from liif_fast.metrics import parse_eval_type
from liif_fast.models import make
from liif_fast.models.checkpoint import check_data_norm

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
_WRAPPER_GIVEN = ("dataset", "seed")  # what the trainer adds to a wrapper's arguments


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as the number it is (YAML 1.1 wants a dot in it) and refuses repeated keys."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is repeated", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Config:
    """A checked configuration; `raw` is the YAML as read, the rest its parts with defaults filled in."""

    raw: dict[str, Any]
    train_dataset: dict[str, Any]
    val_dataset: dict[str, Any] | None
    data_norm: dict[str, dict[str, list[float]]]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    epoch_max: int
    multi_step_lr: dict[str, Any] | None
    cosine: dict[str, Any] | None
    epoch_val: int | None
    epoch_save: int | None
    resume: str | None
    eval_type: str | None
    eval_bsize: int | None
    ema: float | None
    seed: int
    val_seed: int | None
    num_workers: int | None
    amp: str | None

    def rate(self, epochs: float) -> float:
        """Learning rate after so many epochs of training (a fraction inside an epoch).

        Args:
            epochs: epochs done, from 0 to epoch_max.

        Returns:
            initial_lr * gamma^(milestones <= epochs), the cosine from initial_lr to min_lr, or initial_lr.
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


@dataclass(frozen=True)
class EvalConfig:
    """A checked configuration of a test; data_norm is None where the file has none."""

    test_dataset: dict[str, Any]
    data_norm: dict[str, dict[str, list[float]]] | None
    eval_type: str | None
    eval_bsize: int | None


def load_test_config(path: str | Path) -> EvalConfig:
    """Read and check the configuration of a test, as `test-div2k-2.yaml` of the original.

    Args:
        path: YAML file with `test_dataset`, and maybe `eval_type`, `eval_bsize` and `data_norm`.

    Returns:
        The configuration.

    Raises:
        FileNotFoundError: if the file, or a file or folder that it names, is missing.
        ValueError: if a key is unknown or missing or a value wrong, naming its place.
    """
    raw = _read(path)
    keys = list(EvalConfig.__dataclass_fields__)
    _keys(raw, str(path), keys, ("test_dataset",))
    _split(raw["test_dataset"], "test_dataset")
    _number(raw, "eval_bsize", "", least=1, whole=True)
    if raw.get("eval_type") is not None:
        parse_eval_type(raw["eval_type"])
    known = {key: raw.get(key) for key in keys}
    if raw.get("data_norm") is not None:
        known["data_norm"] = _data_norm(raw["data_norm"])
    return EvalConfig(**known)


def load_config(path: str | Path) -> Config:
    """Read and check a configuration.

    Args:
        path: YAML file.

    Returns:
        The configuration.

    Raises:
        FileNotFoundError: if the file, or a file or folder that it names, is missing.
        ValueError: if a key is unknown or missing or a value wrong, naming its place.
    """
    return check_config(_read(path))


def _read(path: str | Path) -> Any:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config: no file {path}")
    try:
        return yaml.load(path.read_text(), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None


def check_config(raw: Any) -> Config:
    """Check a configuration that has been read already.

    Args:
        raw: the mapping in the YAML file.

    Returns:
        The configuration.

    Raises:
        FileNotFoundError: if a file or folder that it names is missing.
        ValueError: if a key is unknown or missing or a value wrong, naming its place.
    """
    keys = [field for field in Config.__dataclass_fields__ if field != "raw"]
    _keys(raw, "config", keys, ("train_dataset", "model", "optimizer", "epoch_max"))
    _split(raw["train_dataset"], "train_dataset")
    if raw.get("val_dataset") is not None:
        _split(raw["val_dataset"], "val_dataset")
    _model(raw["model"])
    optimizer = _keys(raw["optimizer"], "optimizer", ("name", "args"), ("name", "args"))
    if optimizer["name"] not in OPTIMIZERS:
        raise ValueError(f"optimizer.name: expected one of {', '.join(OPTIMIZERS)}, got {optimizer['name']!r}")
    known_args = list(inspect.signature(OPTIMIZERS[optimizer["name"]]).parameters)[1:]  # after the parameters
    _keys(optimizer["args"], "optimizer.args", known_args, ("lr",))
    for key, value in optimizer["args"].items():
        optimizer["args"][key] = registry.number(value) if isinstance(value, str) else value
    _number(optimizer["args"], "lr", "optimizer.args", above=0)
    _optimizer(optimizer)
    if raw.get("multi_step_lr") is not None:
        if raw.get("cosine") is not None:
            raise ValueError("config: multi_step_lr and cosine exclude each other")
        steps = _keys(raw["multi_step_lr"], "multi_step_lr", ("milestones", "gamma"), ("milestones",))
        _number(steps, "gamma", "multi_step_lr", above=0)
        if not isinstance(steps["milestones"], list) or not all(isinstance(m, int) for m in steps["milestones"]):
            raise ValueError(f"multi_step_lr.milestones: expected a list of epochs, got {steps['milestones']!r}")
    if raw.get("cosine") is not None:
        cosine = _keys(raw["cosine"], "cosine", ("min_lr", "warmup"))
        _number(cosine, "min_lr", "cosine", least=0)
        _number(cosine, "warmup", "cosine", least=0)
    for key in ("epoch_max", "epoch_val", "epoch_save", "eval_bsize"):
        _number(raw, key, "", least=1, whole=True)
    for key in ("seed", "val_seed", "num_workers"):
        _number(raw, key, "", least=0, whole=True)
    _number(raw, "ema", "", above=0, below=1)
    if raw.get("amp") not in (None, "bfloat16"):
        raise ValueError(f"amp: expected null or bfloat16, got {raw['amp']!r}")
    if raw.get("eval_type") is not None:
        parse_eval_type(raw["eval_type"])
    if raw.get("resume") is not None and not Path(raw["resume"]).is_file():
        raise FileNotFoundError(f"resume: no file {raw['resume']}")
    known = {key: raw.get(key) for key in keys}
    known["data_norm"] = _data_norm(raw.get("data_norm") or {})
    known["seed"] = raw.get("seed", 0)
    known["val_seed"] = raw.get("val_seed", 0)  # an explicit null is the original's behaviour: new crops every epoch
    return Config(raw=raw, **known)


def _data_norm(value: Any) -> dict[str, dict[str, list[float]]]:
    try:
        return check_data_norm(value)
    except ValueError as error:
        raise ValueError(f"config: {error}") from None


def _keys(value: Any, place: str, known: Collection[str], needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """A mapping with known keys only and all the needed ones."""
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected a mapping, got {value!r}")
    for key in value:
        if key not in known:
            raise ValueError(f"{place}: unknown key '{key}' (known: {', '.join(known)})")
    for key in needed:
        if value.get(key) is None:
            raise ValueError(f"{place}: '{key}' is missing")
    return value


def _number(
    mapping: dict[str, Any],
    key: str,
    place: str,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    whole: bool = False,
) -> None:
    """A number in its range, where the key is given at all; a number written as a string becomes one."""
    value = mapping.get(key)
    if value is None:
        return
    name = f"{place}.{key}" if place else key
    if isinstance(value, str):
        value = mapping[key] = registry.number(value)
    kind = int if whole else (int, float)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name}: expected a {'whole ' if whole else ''}number, got {value!r}")
    if not (value > above and value >= least and value < below):
        bounds = [f"above {above}"] * (above > -math.inf) + [f"at least {least}"] * (least > -math.inf)
        raise ValueError(
            f"{name}: must be {' and '.join(bounds + [f'below {below}'] * (below < math.inf))}, got {value}"
        )


def _split(split: Any, place: str) -> None:
    _keys(split, place, ("dataset", "wrapper", "batch_size"), ("dataset", "wrapper", "batch_size"))
    _dataset(split["dataset"], f"{place}.dataset")
    registry.check(split["wrapper"], f"{place}.wrapper", _WRAPPER_GIVEN)
    _number(split, "batch_size", place, least=1, whole=True)


def _dataset(spec: Any, place: str) -> None:
    registry.check(spec, place)
    args = spec.get("args") or {}
    for key in ("root_path", "root_path_1", "root_path_2"):
        if key in args and not Path(args[key]).is_dir():
            raise FileNotFoundError(f"{place}.args.{key}: no folder {args[key]}")
    if args.get("split_file") is not None and not Path(args["split_file"]).is_file():
        raise FileNotFoundError(f"{place}.args.split_file: no file {args['split_file']}")
    for i, part in enumerate(args.get("parts") or []):
        _dataset(part, f"{place}.args.parts[{i}]")


def _model(spec: Any) -> None:
    try:
        with torch.device("meta"):  # no memory, no random numbers
            make(spec)
    except Exception as error:  # whatever a constructor makes of a value that it does not expect
        raise ValueError(f"model: {error or type(error).__name__}") from error


def _optimizer(spec: dict[str, Any]) -> None:
    """Let the optimizer itself check its arguments, in a step of one parameter."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    try:
        OPTIMIZERS[spec["name"]]([parameter], **spec["args"]).step()
    except Exception as error:
        raise ValueError(f"optimizer.args: {error or type(error).__name__}") from error
