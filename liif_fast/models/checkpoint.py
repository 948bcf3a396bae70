"""Model files: the original's `.pth` and `.safetensors`. Nothing in a file is ever run.

`.pth` holds `{'model': {'name', 'args', 'sd'}, ...}` and is read with `weights_only=True`. `.safetensors` holds the
tensors, and as JSON in its metadata `spec` (name and arguments) and `data_norm`. Where the metadata says more than the
tensors show, one more tensor makes strict readers that drop it refuse the file. A file is believed only after the
model that its spec describes has been laid out on the meta device, never larger than the file's own tensors, and
every name and shape agrees.
"""

import copy
import io
import json
import os
import re
import stat
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from liif_fast.files import atomic_file
from liif_fast.models.mmagic import translate
from liif_fast.models.norm import DATA_NORM, check_data_norm
from liif_fast.models.registry import make

TRACE = "liif_fast.metadata_version"  # a tensor [1] in a .safetensors that is misread without its metadata
VERSION = 1.0
# Options that change the image and no tensor's name or shape, with the value that a reader of the tensors assumes.
UNSEEN = {"residual": None, "local_ensemble": True, "res_scale": 1, "wrap": False, "heads": 8}
_REGISTER = "register the class of each part that is yours and build the model by its name, see docs/models.md"
MAX_BYTES = 1 << 32  # of a file; the original's largest, RDN-LIIF with Adam's state, has less than 300 MB

Spec = dict[str, Any]


class ModelFileError(ValueError):
    """A model file that cannot be used, and why."""


def load_model(source: str | os.PathLike[str] | Mapping[str, Any], device: str | torch.device = "cpu") -> nn.Module:
    """Build a model from a file or from a checkpoint in memory, running no code that it carries.

    Args:
        source: path of a `.safetensors` or of a `.pth` of the authors of LIIF, LTE, LMF or ILN, or what such a `.pth`
            holds: the whole `{'model': {...}, ...}` or the spec with its `sd`. ILN's say `state_dict`, and `lidar_in`
            beside the model. Also a `.pth` of OpenMMLab's LIIF (`{'state_dict': {'generator.*': ...}}`).
        device: where the model goes.

    Returns:
        The model in evaluation mode, float32, whatever the file's dtype. Its attributes `spec` and `data_norm` are
        what `save_model` needs; `data_norm` is `{'inp': {'sub': [...], 'div': [...]}, 'gt': {...}}`, 0.5
        everywhere where the file does not say.

    Raises:
        ModelFileError: the content is not a model that can be built; the message says why.
        OSError: the file cannot be read, or is no regular file.
    """
    label, content = ("checkpoint", source) if isinstance(source, Mapping) else (str(source), read_checkpoint(source))
    with naming(label):
        content = translate(content)
        spec, sd = _checked(content)
        data_norm = check_data_norm(content.get("data_norm", DATA_NORM))
        with torch.random.fork_rng(devices=[]):
            model: Any = make(spec)
        model.load_state_dict(sd)
        model.data_norm = data_norm
    return model.eval().to(device)


def read_checkpoint(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read a model file as `{'model': {'name', 'args', 'sd'}, ...}`, checked; runs no code that it carries."""
    path = Path(path)
    limit = _regular_size(path)
    with naming(str(path)):
        content = translate((_read_safetensors if path.suffix.lower() == ".safetensors" else _read_pth)(path))
        _, sd = _checked(content)
        if sum(tensor.numel() * tensor.element_size() for tensor in sd.values()) > limit:
            raise ModelFileError("its tensors claim more bytes than the file has")
    return content


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model to a file that `load_model` reads; the old file stays until the new one is whole.

    A `.safetensors` whose metadata cannot be dropped without another image coming out (a residual, no local ensemble, a
    res_scale other than 1, a data_norm other than 0.5, ILN with wrap or with other than 8 heads) also holds the tensor
    `liif_fast.metadata_version`, because of which a strict reader of the tensors alone refuses it.

    Args:
        model: has `spec`, as every model of `make` has; its `data_norm`, if any, goes along.
        path: ends in `.safetensors`, or in `.pth` or `.pt` for the original's format.

    Raises:
        ValueError: the model has no spec or cannot be built again from it, or the path's ending is another one.
        TypeError: the spec holds something else than plain values.
    """
    path = Path(path)
    spec = getattr(model, "spec", None)
    if spec is None:
        raise ValueError(
            f"model must have the attribute 'spec' ({{'name', 'args'}}), by which load_model builds it again, and a "
            f"{type(model).__name__} has none: {_REGISTER}"
        )
    _check_plain(spec, TypeError)
    data_norm = check_data_norm(getattr(model, "data_norm", DATA_NORM))
    try:
        _, sd = _checked({"model": {**spec, "sd": model.state_dict()}})
    except Exception as error:  # whatever a constructor of the user's raises
        raise ValueError(f"model cannot be built again from its spec ({error}): {_REGISTER}") from error
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
    """Write a checkpoint as torch.save does; the old file stays until the new one is whole."""
    buffer = io.BytesIO()  # PyTorch would report a full disk as an error of its own
    torch.save(content, buffer)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())


def _regular_size(path: Path) -> int:
    """The size of a file that is worth opening: a device or a pipe might never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path}: not a regular file")
    if status.st_size > MAX_BYTES:
        raise ModelFileError(f"{path}: has {status.st_size} bytes, a model file may have {MAX_BYTES}")
    return status.st_size


@contextmanager
def naming(label: str) -> Iterator[None]:
    """Turn whatever a bad file makes a reader or a constructor raise into one line that names the file."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise ModelFileError(f"{label}: {reason}") from error


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
                raise ModelFileError(f"holds {foreign[1]}, expected tensors and plain containers alone") from error
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
    version = sd.pop(TRACE, None)  # absent where it is not needed, and in older files
    if version is not None and version.tolist() != [VERSION]:
        raise ModelFileError(
            f"its {TRACE} is {version.tolist()!r:.40}, this liif_fast reads [{VERSION}]: install a newer one"
        )
    spec = json.loads(metadata["spec"])
    if not isinstance(spec, dict):
        raise ModelFileError(f"spec must be a dict, got {type(spec).__name__}")
    content: dict[str, Any] = {"model": {**spec, "sd": sd}}
    if "data_norm" in metadata:
        content["data_norm"] = json.loads(metadata["data_norm"])
    return content


def _checked(content: Mapping[str, Any]) -> tuple[Spec, dict[str, Tensor]]:
    """Return the spec and the state_dict of a checkpoint, whose model can be built and has those tensors."""
    model = content.get("model", content)
    if not isinstance(model, Mapping):
        raise ModelFileError(f"'model' must be a dict with 'name', 'args' and 'sd', got {type(model).__name__}")
    if "sd" not in model and "state_dict" in model:  # as ILN's authors call it
        model = {**model, "sd": model["state_dict"]}
    missing = [key for key in ("name", "args", "sd") if key not in model]
    if missing:
        raise ModelFileError(f"no {', '.join(map(repr, missing))} in the model; expected 'name', 'args' and 'sd'")
    spec = {"name": model["name"], "args": model["args"]}
    if "lidar_in" in content and isinstance(spec["args"], Mapping):  # beside the model in the files of ILN's authors
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
    """Only what JSON can say: such a spec can be saved, and building from it reads plain values."""
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
    """Compare the names, shapes and kinds of a spec's model with the tensors at hand, allocating nothing."""
    thread, left = threading.get_ident(), 2 * len(sd) + 16  # head room: a little too large gets the message below

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        if threading.get_ident() == thread:
            left -= 1
            if left < 0:
                raise ModelFileError(f"the spec describes a model of more tensors than the {len(sd)} that it has")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            expected = make(spec).state_dict()
    finally:
        hook.remove()
    wrong = [f"{key!r} is missing" for key in expected if key not in sd]
    wrong += [f"{key!r} is not one of the model's" for key in sd if key not in expected]
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
