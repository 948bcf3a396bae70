"""Read and write model files, the original's `.pth` and `.safetensors`, without running code from a file.

`.pth` holds `{'model': {'name', 'args', 'sd'}, ...}` and is read with `weights_only=True`. `.safetensors` holds the
tensors, and in its metadata, as JSON, `spec` (name and arguments) and `data_norm`. If the metadata changes the output
in a way that the tensors do not show, one extra tensor makes strict readers without the metadata refuse the file. A
file is accepted after the model of its spec has been built on the meta device, with no more tensors than the file has,
and every name and shape agrees.
"""

import copy
import io
import json
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from liif_fast.files import atomic_file, reason
from liif_fast.models import jiif, mmagic
from liif_fast.models.norm import DATA_NORM, check_data_norm
from liif_fast.models.registry import TooLargeError, make, outline

TRACE = "liif_fast.metadata_version"  # a tensor [1] in a .safetensors that needs its metadata
VERSION = 1.0
# Options that change the output but no tensor's name or shape, with the value that readers of the tensors assume.
UNSEEN = {"residual": None, "local_ensemble": True, "res_scale": 1, "wrap": False, "heads": 8}
_REGISTER = "register the class of each part that is yours and build the model by its name, see docs/models.md"
MAX_BYTES = 1 << 32  # the original's largest file, RDN-LIIF with Adam's state, has less than 300 MB

Spec = dict[str, Any]


class ModelFileError(ValueError):
    """A model file cannot be used; the message says why."""


def load_model(source: str | os.PathLike[str] | Mapping[str, Any], device: str | torch.device = "cpu") -> nn.Module:
    """Build a model from a file or a checkpoint in memory without running code from it.

    Args:
        source: path of a `.safetensors` or of a `.pth` of the authors of LIIF, LTE, LMF, ILN or JIIF; or the content of
            such a `.pth`, `{'model': {...}, ...}` or the spec with its `sd`. ILN's files have `state_dict` instead, and
            `lidar_in` beside the model. OpenMMLab's LIIF is `{'state_dict': {'generator.*': ...}}`; JIIF's `model` is
            its tensors.
        device: device of the model.

    Returns:
        The model in evaluation mode, float32, whatever the file's dtype. It has the attributes `spec` and `data_norm`
        that `save_model` needs. `data_norm` is `{'inp': {'sub': [...], 'div': [...]}, 'gt': {...}}`, 0.5 everywhere
        if the file has none.

    Raises:
        ModelFileError: no model can be built from the content; the message says why.
        OSError: the file cannot be read, or is not a regular file.
    """
    label, content = ("checkpoint", source) if isinstance(source, Mapping) else (str(source), read_checkpoint(source))
    with naming(label):
        content = _described(content)
        spec, sd = _checked(content)
        data_norm = check_data_norm(content.get("data_norm", DATA_NORM))
        with torch.random.fork_rng(devices=[]):
            model: Any = make(spec)
        model.load_state_dict(sd)
        model.data_norm = data_norm
    return model.eval().to(device)


def _described(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a checkpoint with name and arguments, also where its authors' files have none."""
    return jiif.described(mmagic.translate(content))


def read_checkpoint(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read and check a model file as `{'model': {'name', 'args', 'sd'}, ...}` without running code from it."""
    path = Path(path)
    limit = _regular_size(path)
    with naming(str(path)):
        content = _described((_read_safetensors if path.suffix.lower() == ".safetensors" else _read_pth)(path))
        _, sd = _checked(content)
        if sum(tensor.numel() * tensor.element_size() for tensor in sd.values()) > limit:
            raise ModelFileError("its tensors claim more bytes than the file has")
    return content


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model atomically to a file that `load_model` reads.

    Some options change the output but no tensor: a residual, no local ensemble, a res_scale other than 1, a data_norm
    other than 0.5, ILN with wrap or with other than 8 heads. A `.safetensors` of such a model also holds the tensor
    `liif_fast.metadata_version`, so a strict reader that ignores the metadata refuses it.

    Args:
        model: has a `spec`, as every model of `make` has; its `data_norm`, if any, is saved too.
        path: ends in `.safetensors`, or in `.pth` or `.pt` for the original's format.

    Raises:
        ValueError: the model has no spec or cannot be rebuilt from it, or the path has another extension.
        TypeError: the spec holds values that are not plain.
    """
    path = Path(path)
    spec = getattr(model, "spec", None)
    if spec is None:
        raise ValueError(
            f"model must have the attribute 'spec' ({{'name', 'args'}}), from which load_model rebuilds it, but "
            f"{type(model).__name__} has none: {_REGISTER}"
        )
    _check_plain(spec, TypeError)
    data_norm = check_data_norm(getattr(model, "data_norm", DATA_NORM))
    try:
        _, sd = _checked({"model": {**spec, "sd": model.state_dict()}})
    except Exception as error:  # a user's constructor may raise anything
        raise ValueError(f"model cannot be rebuilt from its spec ({error}): {_REGISTER}") from error
    sd = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in sd.items()}
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from safetensors.torch import save

        metadata = {"format": "pt", "spec": json.dumps(spec), "data_norm": json.dumps(data_norm)}
        if data_norm != DATA_NORM or any(
            getattr(module, name, usual) != usual for module in model.modules() for name, usual in UNSEEN.items()
        ):
            sd[TRACE] = torch.tensor([VERSION])
        with atomic_file(path) as file:
            file.write(save(sd, metadata))
    elif suffix in (".pth", ".pt"):
        content: dict[str, Any] = {"model": {**copy.deepcopy(spec), "sd": sd}}
        if data_norm != DATA_NORM:  # the original's reader ignores it
            content["data_norm"] = data_norm
        write_checkpoint(content, path)
    else:
        raise ValueError(f"path must end in .safetensors, .pth or .pt, got {str(path)!r}")


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint in torch.save's format atomically."""
    buffer = io.BytesIO()  # because PyTorch would report a full disk as a RuntimeError
    torch.save(content, buffer)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())


def _regular_size(path: Path) -> int:
    """Return a file's size; refuse devices and pipes, which might never end, and files that are too large."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path}: not a regular file")
    if status.st_size > MAX_BYTES:
        raise ModelFileError(f"{path}: has {status.st_size} bytes, a model file may have {MAX_BYTES}")
    return status.st_size


@contextmanager
def naming(label: str) -> Iterator[None]:
    """Turn any exception that a bad file causes into a ModelFileError of one line that names the file."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ModelFileError(f"{label}: {reason(error)}") from error


def _read_pth(path: Path) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise ModelFileError("not a file of torch.save: it unpacks to more than its own size")
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle protocols
                content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
            if foreign:
                raise ModelFileError(f"holds {foreign[1]}, expected only tensors and plain containers") from error
            raise ModelFileError("not a readable file of torch.save: damaged, cut short or of another kind") from error
    if not isinstance(content, Mapping):
        raise ModelFileError(f"holds {type(content).__name__}, expected the dict of a checkpoint")
    return content


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            sd = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ModelFileError(f"not a readable safetensors file: {error}") from error
    if "spec" not in metadata:
        raise ModelFileError(
            "its metadata has no 'spec': liif_fast did not write it, or a converter dropped the metadata"
        )
    version = sd.pop(TRACE, None)  # absent if it is not needed, and from older files
    if version is not None and version.tolist() != [VERSION]:
        raise ModelFileError(
            f"its {TRACE} is {version.tolist()!r:.40}, this liif_fast reads [{VERSION}]: install a newer one"
        )
    spec = _from_json(metadata, "spec")
    if not isinstance(spec, dict):
        raise ModelFileError(f"spec must be a dict, got {type(spec).__name__}")
    content: dict[str, Any] = {"model": {**spec, "sd": sd}}
    if "data_norm" in metadata:
        content["data_norm"] = _from_json(metadata, "data_norm")
    return content


def _from_json(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{key!r} of its metadata is not JSON: {error}") from error


def _checked(content: Mapping[str, Any]) -> tuple[Spec, dict[str, Tensor]]:
    """Return a checkpoint's spec and state_dict after checking that the spec's model has those tensors."""
    model = content.get("model", content)
    if not isinstance(model, Mapping):
        raise ModelFileError(f"'model' must be a dict with 'name', 'args' and 'sd', got {type(model).__name__}")
    if "sd" not in model and "state_dict" in model:  # the name in files of ILN's authors
        model = {**model, "sd": model["state_dict"]}
    missing = [key for key in ("name", "args", "sd") if key not in model]
    if missing:
        raise ModelFileError(f"no {', '.join(map(repr, missing))} in the model; expected 'name', 'args' and 'sd'")
    spec = {"name": model["name"], "args": model["args"]}
    if "lidar_in" in content and isinstance(spec["args"], Mapping):  # beside the model in files of ILN's authors
        spec["args"] = {**spec["args"], "lidar_in": content["lidar_in"]}
    _check_plain(spec, ModelFileError)
    if not isinstance(model["sd"], Mapping):
        raise ModelFileError(f"'sd' must be a dict of tensors, got {type(model['sd']).__name__}")
    for key, value in model["sd"].items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ModelFileError(f"'sd' must map names to tensors, got {type(value).__name__} under {key!r:.80}")
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise ModelFileError(f"{key!r} must be a dense tensor with content, got {value.dtype}, {value.layout}")
    sd = dict(model["sd"])
    _check_state(spec, sd)
    return spec, sd


def _check_plain(value: Any, error: type[Exception], depth: int = 0) -> None:
    """Raise unless a value consists of what JSON can express, so that a spec can be saved and holds no code."""
    if depth > 16:
        raise error("spec is nested too deep")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise error(f"spec must have names as keys, got {key!r:.80}")
            _check_plain(item, error, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, error, depth + 1)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise error(f"spec must hold plain values only, got {type(value).__name__}")


def _check_state(spec: Spec, sd: Mapping[str, Tensor]) -> None:
    """Compare the tensors' names, shapes and kinds with those of the spec's model, built without memory."""
    try:
        expected = outline(spec, 2 * len(sd) + 16).state_dict()  # a model slightly too large gets the message below
    except TooLargeError:
        raise ModelFileError(f"its spec describes a model with more tensors than the {len(sd)} in the file") from None
    wrong = [f"{key!r} is missing" for key in expected if key not in sd]
    wrong += [f"{key!r} does not belong to the model" for key in sd if key not in expected]
    wrong += [
        f"{key!r} has shape {list(sd[key].shape)}, the model needs {list(value.shape)}"
        for key, value in expected.items()
        if key in sd and sd[key].shape != value.shape
    ]
    wrong += [
        f"{key!r} is {sd[key].dtype}, the model needs {value.dtype}"
        for key, value in expected.items()
        if key in sd
        and sd[key].dtype != value.dtype
        and not (sd[key].is_floating_point() and value.is_floating_point())
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ModelFileError(f"tensors do not fit model {spec['name']!r}: {'; '.join(wrong[:3])}{more}")
