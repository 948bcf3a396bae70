"""Build, repair and check the wheel that serves every Python from 3.10 and every torch from OLDEST: `make wheel`.

    python csrc/wheel.py [--oldest PYTHON] [--newest PYTHON] [--folder build/wheel] [--quick]

1. The wheel is built against torch OLDEST, in an environment of its own.
2. On Linux auditwheel names the oldest glibc that it runs on, and adds no library: libtorch is torch's.
3. abi3audit and check-wheel-contents look into it.
4. It is installed without a compiler into an environment with torch OLDEST and into one with the newest torch that pip
   gives. There `liif-fast info` must say that the C++ kernels are chosen, and tests/ops must pass.

torch from PyPI is built for CUDA and takes 6 GB in each of the two environments; PIP_INDEX_URL and the like are pip's.
An environment that is there is used again for the same PYTHON; remove it for a newer torch.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = "2.10.0"  # as MACROS of csrc/build.py and the dependencies of pyproject.toml say
BIN = "Scripts" if os.name == "nt" else "bin"
TORCH_LIBRARIES = ("libtorch*", "libc10*")


def main() -> None:
    """Run the steps; a step that fails ends the run."""
    parser = argparse.ArgumentParser(description="Build, repair and check the wheel.")
    parser.add_argument("--oldest", default=sys.executable, metavar="PYTHON", help="of the oldest torch, at least 3.10")
    parser.add_argument("--newest", default=sys.executable, metavar="PYTHON", help="of the newest torch")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "wheel", help="for everything that is made")
    parser.add_argument("--quick", action="store_true", help="of tests/ops only those of the plan and the accuracy")
    args = parser.parse_args()
    folder = args.folder.resolve()
    oldest = environment(folder / "oldest", args.oldest, f"torch=={OLDEST}")
    wheel = repaired(built(oldest, folder / "built"), folder / "dist")
    run("abi3audit", "--strict", "--summary", wheel)
    run("check-wheel-contents", wheel)
    for each in (oldest, environment(folder / "newest", args.newest, "torch")):
        check(each, wheel, folder / "check", args.quick)
    print(f"\n{wheel} is good: {wheel.stat().st_size / 2**20:.1f} MiB")


def run(*command: object, **options: object) -> None:
    """Run a command, showing it; end with one line if it fails."""
    words = [str(word) for word in command]
    print("+", *words, flush=True)
    if code := subprocess.run(words, check=False, **options).returncode:  # type: ignore[call-overload]
        sys.exit(f"wheel: {Path(words[0]).name} failed with exit code {code}")


def environment(folder: Path, python: str, torch: str) -> Path:
    """Make a virtual environment with that torch and what a build needs; return its Python."""
    inside, ready, made_of = folder / BIN / "python", folder / "ready", f"{python} {torch}\n"
    if not ready.exists() or ready.read_text() != made_of:
        run(python, "-m", "venv", "--clear", folder)
        run(inside, "-m", "pip", "install", "--quiet", torch, "setuptools>=77", "wheel", "ninja", "numpy", "pytest")
        ready.write_text(made_of)
    return inside


def built(python: Path, folder: Path) -> Path:
    """Build from a copy of the sources, so that no object of the development build gets in."""
    shutil.rmtree(folder, ignore_errors=True)
    names = ("liif_fast", "kernels", "csrc", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
    leave = shutil.ignore_patterns("__pycache__", "_C.*", "_C_sm90.*", "_build_info.json")
    for name in names:
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target, ignore=leave) if source.is_dir() else shutil.copy(source, target)
    switches = {"LIIF_FAST_BUILD_CPU": "1", "LIIF_FAST_BUILD_CUDA": os.environ.get("LIIF_FAST_BUILD_CUDA", "0")}
    command = (python, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", folder, ".")
    run(*command, cwd=folder / "source", env=os.environ | switches)
    return only(folder)


def repaired(wheel: Path, folder: Path) -> Path:
    """Return the wheel with the tag of the oldest system that it runs on; elsewhere than on Linux a copy."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if sys.platform.startswith("linux"):
        excluded = [word for library in TORCH_LIBRARIES for word in ("--exclude", library)]
        run("auditwheel", "repair", *excluded, "-w", folder, wheel)
    else:
        shutil.copy(wheel, folder)
    found = only(folder)
    if not re.search(r"-cp310-abi3-(manylinux|macosx|win)", found.name):
        sys.exit(f"wheel: {found.name} is tagged otherwise than cp310-abi3 for a system's releases")
    with zipfile.ZipFile(found) as archive:
        if added := [name for name in archive.namelist() if re.search(r"\.(libs|dylibs)/", name)]:
            sys.exit(f"wheel: {added[0]} was added by the repair, expected only the package's own files")
    return found


def check(python: Path, wheel: Path, folder: Path, quick: bool) -> None:
    """Install the wheel where no compiler is found, and see that its kernels are used and right."""
    run(python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--force-reinstall", "--no-deps", wheel)
    run(python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", wheel)
    bare = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "PYTHONPATH")}
    bare["PATH"] = str(python.parent)
    if compiler := shutil.which("c++", path=bare["PATH"]) or shutil.which("gcc", path=bare["PATH"]):
        sys.exit(f"wheel: {compiler} is a compiler in an environment without one")
    command = [str(python), "-m", "liif_fast", "info"]
    info = subprocess.run(command, env=bare, cwd=wheel.parent, capture_output=True, text=True, check=False)
    print(info.stdout, info.stderr)
    if info.returncode or not re.search(r"^ +cpu +chosen by auto", info.stdout, re.MULTILINE):
        sys.exit("wheel: `liif-fast info` does not say that the C++ kernels are chosen")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "tests" / "ops", folder / "tests" / "ops", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "warm.py", folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)
    names = ["test_plan.py", "test_accuracy.py"] if quick else [""]
    chosen = [folder / "tests" / "ops" / name for name in names]
    bare |= {"LIIF_FAST_TEST_BACKENDS": "cpu"}
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *chosen, env=bare, cwd=folder)


def only(folder: Path) -> Path:
    """Return the one wheel in a folder."""
    (wheel,) = folder.glob("*.whl")
    return wheel


if __name__ == "__main__":
    main()
