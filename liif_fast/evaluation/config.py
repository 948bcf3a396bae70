"""Check a test configuration, such as the original's `configs/test`."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liif_fast.config.checks import mapping, number
from liif_fast.config.plugins import import_plugins
from liif_fast.config.reading import load
from liif_fast.data.registry import check_split
from liif_fast.metrics import parse_eval_type
from liif_fast.models.norm import DataNorm, check_data_norm


@dataclass(frozen=True)
class EvalConfig:
    """A checked test configuration: `raw` is the YAML as read, the other fields have their defaults filled in."""

    raw: dict[str, Any]
    test_dataset: dict[str, Any]
    data_norm: DataNorm
    eval_type: str | None
    eval_bsize: int | None
    plugins: list[str] | None


def load_test_config(path: str | Path) -> EvalConfig:
    """Read and check a test configuration; `liif_fast.config.reading.load` lists the errors."""
    return load(path, _check)


def _check(raw: Any, folders: list[Path]) -> EvalConfig:
    keys = [field for field in EvalConfig.__dataclass_fields__ if field != "raw"]
    shared = check_shared(raw, keys, ("test_dataset",), folders)
    check_split(raw["test_dataset"], "test_dataset", folders)
    return EvalConfig(raw=raw, test_dataset=raw["test_dataset"], **shared)


def check_shared(raw: Any, keys: Collection[str], needed: tuple[str, ...], folders: list[Path]) -> dict[str, Any]:
    """Check the names of all keys and the values of those that tests and trainings share; return the latter."""
    own = {key: raw[key] for key in raw if not str(key).startswith("x-")} if isinstance(raw, dict) else raw
    mapping(own, "config", keys, needed)
    import_plugins(raw.get("plugins"), folders)
    number(raw, "eval_bsize", least=1, whole=True)
    if raw.get("eval_type") is not None:
        parse_eval_type(raw["eval_type"])
    try:
        data_norm = check_data_norm(raw.get("data_norm") or {})
    except ValueError as error:
        raise ValueError(f"data_norm: {error}") from None
    return {"data_norm": data_norm} | {key: raw.get(key) for key in ("eval_type", "eval_bsize", "plugins")}
