"""Test `liif-fast models` and models by name."""

from pathlib import Path

import pytest
import torch

import liif_fast
from liif_fast.cli import main
from liif_fast.models import catalogue, make
from liif_fast.models.catalogue import resolve_model


def listing(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = main(["models", *args])
    return code, capsys.readouterr().out


def test_published_models(capsys: pytest.CaptureFixture[str]) -> None:
    """The counts equal those of the published checkpoints."""
    code, out = listing(capsys)
    assert code == 0
    for words in (
        "1,567,323 parameters in 82 tensors",
        "22,320,835 parameters",
        "15,642,107 parameters",
        "BSD-3-Clause",
    ):
        assert words in out
    assert "997,259 parameters, LIIF on edsr-baseline" in out
    assert "127,105 parameters, ILN on edsr-lidar" in out
    assert "(does not exist)" not in out


def test_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = listing(capsys, "--tensors", "edsr-baseline-liif")
    assert code == 0
    assert "imnet.layers.0.weight [256, 580]" in out.splitlines()
    assert len(out.splitlines()) == 82
    assert main(["models", "--tensors", "esrgan"]) == 1
    assert "no published model of that name" in capsys.readouterr().err


def test_a_file_in_the_folder_is_found_by_name(
    own_models_folder: Path, model: str, capsys: pytest.CaptureFixture[str], photo: Path, tmp_path: Path
) -> None:
    (own_models_folder / "mine.safetensors").write_bytes(Path(model).read_bytes())
    assert catalogue.find_model("mine") == own_models_folder / "mine.safetensors"
    assert catalogue.find_model("mine.safetensors") == own_models_folder / "mine.safetensors"
    assert catalogue.find_model("Mine") == own_models_folder / "mine.safetensors"
    (own_models_folder / "Mine.safetensors").write_bytes(b"another, where names differ by capitals")
    for name in ("mine", "Mine", "mine.safetensors", "Mine.safetensors"):
        assert catalogue.find_model(name).samefile(own_models_folder / f"{Path(name).stem}.safetensors")
    (own_models_folder / "Mine.safetensors").write_bytes(Path(model).read_bytes())
    assert catalogue.find_model("edsr-small-liif") == catalogue.shipped_model()
    with pytest.raises(FileNotFoundError, match="the model's name is empty"):  # not the folder in which one is
        catalogue.find_model("")
    assert main(["upscale", str(photo), str(tmp_path / "out.png"), "--scale=2", "--model=mine"]) == 0
    capsys.readouterr()
    code, out = listing(capsys)
    assert code == 0
    assert "mine.safetensors" in out
    assert "parameters, LIIF on edsr-baseline" in out


def test_a_file_that_is_not_what_its_name_says(
    own_models_folder: Path, model: str, capsys: pytest.CaptureFixture[str], photo: Path, tmp_path: Path
) -> None:
    (own_models_folder / "rdn-liif.safetensors").write_bytes(Path(model).read_bytes())
    (own_models_folder / "cut.pth").write_bytes(b"PK")
    args = liif_fast.load_model(model).spec["args"]
    gray = {**args, "imnet_spec": {"name": "mlp", "args": {"out_dim": 1, "hidden_list": [8]}}, "residual": None}
    liif_fast.save_model(make({"name": "liif", "args": gray}), own_models_folder / "gray.pth")
    liif_fast.save_model(make(args["encoder_spec"]), own_models_folder / "encoder.pth")
    code, out = listing(capsys)
    assert code == 1
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ") and "cannot be used" in line}
    assert set(lines) == {"rdn-liif.safetensors", "cut.pth", "gray.pth", "encoder.pth"}
    assert "gives 1 channels, expected 3 (RGB)" in lines["gray.pth"]
    assert "holds a EDSR, expected a model of images" in lines["encoder.pth"]
    assert "is not RDN-LIIF" in lines["rdn-liif.safetensors"]
    assert main(["upscale", str(photo), str(tmp_path / "out.png"), "--scale=2", "--model=rdn-liif"]) == 1
    assert "is not RDN-LIIF" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_a_published_model_that_is_not_there_is_explained() -> None:
    with pytest.raises(FileNotFoundError, match=r"not in .*offered at https://github.com/yinboc/liif"):
        resolve_model("rdn-liif")
    with pytest.raises(FileNotFoundError, match="no file is offered"):
        resolve_model("rdn-metasr")


@pytest.mark.parametrize("family", catalogue.FAMILIES, ids=lambda each: each.name)
def test_every_family_can_be_built_and_matches_itself(family: catalogue.Family, own_models_folder: Path) -> None:
    with torch.device("meta"):
        model = make(family.spec)
    path = own_models_folder / f"{family.name}.pth"
    catalogue.check_family(path, model)
    other = make({"name": "mlp", "args": {"in_dim": 2, "out_dim": 3, "hidden_list": []}})
    with pytest.raises(liif_fast.ModelFileError, match="tensors differ"):
        catalogue.check_family(path, other)


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIIF_FAST_MODELS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert catalogue.models_folder() == tmp_path / "liif_fast" / "models"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert catalogue.models_folder() == tmp_path / ".local" / "share" / "liif_fast" / "models"
