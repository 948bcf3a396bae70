"""Make datasets and wrappers from their specifications in a YAML configuration."""

from pathlib import Path
from typing import Any

from liif_fast.config.checks import mapping, number
from liif_fast.config.registry import Registry

_registry = Registry(text_numbers=True)
register, make = _registry.register, _registry.make

_WRAPPER_GIVEN = ("dataset", "seed")  # arguments of a wrapper that do not come from the configuration
_FILES = {"root_path": "folder", "root_path_1": "folder", "root_path_2": "folder", "split_file": "file"}


def check_split(split: Any, place: str, folders: list[Path]) -> None:
    """Check a dataset, its wrapper and the batch size; replace file names by the paths where they are found."""
    mapping(split, place, ("dataset", "wrapper", "batch_size"), ("dataset", "wrapper", "batch_size"))
    _check_dataset(split["dataset"], f"{place}.dataset", folders)
    _registry.check(split["wrapper"], f"{place}.wrapper", _WRAPPER_GIVEN)
    number(split, "batch_size", place, least=1, whole=True)


def make_split(split: dict[str, Any], place: str, seed: int) -> Any:
    """Return the wrapper of a checked split.

    Raises:
        ValueError: its dataset is empty, or a constructor refuses an argument or an image; the message has the place.
    """
    dataset = make(split["dataset"], f"{place}.dataset")
    if not len(dataset):
        raise ValueError(f"{place}.dataset: it has no image")
    return make(split["wrapper"], f"{place}.wrapper", dataset=dataset, seed=seed)


def _check_dataset(spec: Any, place: str, folders: list[Path]) -> None:
    _registry.check(spec, place)
    args = spec.get("args") or {}
    for key, kind in _FILES.items():
        if args.get(key) is not None:
            args[key] = _found(args[key], kind, f"{place}.args.{key}", folders)
    for i, part in enumerate(args.get("parts") or []):
        _check_dataset(part, f"{place}.args.parts[{i}]", folders)


def _found(name: str, kind: str, place: str, folders: list[Path]) -> str:
    """Find a file or folder relative to the current folder, or else to one of `folders`."""
    exists = Path.is_file if kind == "file" else Path.is_dir
    path = Path(name).expanduser()
    tried = dict.fromkeys([path, *(folder / path for folder in folders)])  # ordered; one entry if path is absolute
    for each in tried:
        if exists(each):
            return str(each)
    raise FileNotFoundError(f"{place}: no {kind} {' nor '.join(map(str, tried))}")
