"""Folders without permission, without room, interrupted, or whose messages have no reader."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from liif_fast.cli import main

from .. import warm
from .test_folders import ROOT, mixed, names, run

__all__ = ["mixed"]  # fixtures


@pytest.mark.parametrize(("gone", "broken"), [("pipe", False), ("terminal", True)])
def test_messages_without_a_reader(mixed: Path, tmp_path: Path, model: str, gone: str, broken: bool) -> None:
    """All images are written, and the exit code is that of the work."""
    if not broken:
        (mixed / "broken.png").unlink()
    reading, writing = os.pipe() if gone == "pipe" else os.openpty()
    os.close(reading)
    args = ["-m", "liif_fast", "upscale", mixed, tmp_path / "out", "--scale=2", f"--model={model}"]
    done = warm.run(*args, stderr=writing, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stdout) == (int(broken), "")
    assert names(tmp_path / "out") == ["alpha.png", "deep.png", "gray.tif", "palette.png", "photo.jpg"]


def test_a_folder_without_permission_is_not_passed_over(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:  # as the system does, except for root
        if Path(path).name == "deeper":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    args = (mixed, tmp_path / "out", "--scale", 2, "--model", model, "--recursive")
    assert run(capsys, *args) == (1, [f"liif-fast: error: {mixed / 'deeper'}: Permission denied"])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """The message blames the output folder, not the input."""
    (mixed / "broken.png").unlink()

    def refuse(path: Path, *args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    code, err = run(capsys, mixed, tmp_path / "out", "--scale", 2, "--model", model)
    assert code == 1
    assert err[0] == f"liif-fast: error: {mixed / 'alpha.png'}: {tmp_path / 'out'}: Permission denied"
    assert err[-1] == "liif-fast: 0 written, 5 failed"


@pytest.mark.parametrize("broken", [False, True])
def test_a_folder_for_an_output_that_fails_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, broken: bool
) -> None:
    """It is removed if the format cannot hold the output or the work breaks off; an older folder stays."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "in" / "deeper").mkdir(parents=True)
    (tmp_path / "there" / "deeper").mkdir(parents=True)
    Image.new("RGB" if broken else "RGBA", (5, 4)).save(tmp_path / "in" / "deeper" / "a.png")
    if broken:
        monkeypatch.setattr("liif_fast.upscaling.upscale_picture", full)
    for out in ("new/er", "there"):
        args = [str(tmp_path / "in"), str(tmp_path / out), "--recursive", "--format=jpg", "--scale=2"]
        assert main(["upscale", *args, f"--model={model}"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "there"]
    assert [path.name for path in (tmp_path / "there").rglob("*")] == ["deeper"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_interrupted_in_a_folder(
    mixed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    failure: type[BaseException],
) -> None:
    """Ctrl-C ends the run and finished files stay; another failure ends only its own file."""
    from liif_fast.images import tiff, writing  # noqa: F401 - imported before the failure

    def fail(*args: object) -> None:
        raise failure

    monkeypatch.setattr(writing, "_write_tiff", fail)
    (mixed / "broken.png").unlink()
    code, err = run(capsys, mixed, tmp_path / "out", "--scale", 2, "--model", model)
    if failure is KeyboardInterrupt:
        assert (code, err) == (130, ["liif-fast: interrupted"])
        assert names(tmp_path / "out") == ["alpha.png", "deep.png"]
    else:
        assert code == 1
        assert err[-1] == "liif-fast: 4 written, 1 failed"
        assert "gray.tif: cannot be written" in err[0]
        assert len(names(tmp_path / "out")) == 4
