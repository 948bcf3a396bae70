"""setup.py recompiles only what changed, as a small source tree shows with the installed compilers."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import tomllib

from csrc.build import KERNEL_FLAGS

ROOT = Path(__file__).resolve().parents[1]

MARK = 'extern const char mark[];\nconst char mark[] = "liif_fast/{0} interface {1};";\n'
FILES = {
    "liif_fast/__init__.py": '__version__ = "0"\n',
    "kernels/__init__.py": "",
    "csrc/cpu/both.h": "inline int both() { return 1; }\n",
    "csrc/cpu/one.h": "inline int one() { return 1; }\n",
    "csrc/cpu/kernel_portable.cpp": '#include "both.h"\n#include "one.h"\nint a() { return both() + one(); }\n',
    "csrc/cpu/library.cpp": '#include "both.h"\nint b() { return both(); }\n',
    "csrc/cuda/one.h": "inline int one() { return 1; }\n",
    "csrc/cuda/library.cu": '#include "one.h"\nint c() { return one(); }\n',
    "csrc/cuda/other.cu": "__global__ void other() {}\n",
}


@pytest.fixture
def tree(tmp_path):
    """Make a source tree, with a space in its path, whose extensions carry the marks of liif_fast/extension.py."""
    root = tmp_path / "a tree"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    interfaces = dict(re.findall(r'"(_C\w*)": (\d+)', (ROOT / "liif_fast/extension.py").read_text()))
    for name, path in [("_C", "csrc/cpu/library.cpp"), ("_C_sm90", "csrc/cuda/library.cu")]:
        append(root / path, MARK.format(name, interfaces[name]))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc/build.py", "liif_fast/extension.py"):
        shutil.copy(ROOT / name, root / name)
    return root


def build(root, part, **environment):
    """Build one part; return the names of the rewritten files."""
    switches = {f"LIIF_FAST_BUILD_{name}": str(int(name == part)) for name in ("CPU", "CUDA")}
    env = {key: value for key, value in os.environ.items() if "LIIF_FAST" not in key}
    before = {path: path.stat().st_mtime_ns for path in root.glob("build/temp*/*/*")}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    made = subprocess.run(command, cwd=root, env=env | switches | environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    written = {path for path in root.glob("build/temp*/*/*") if before.get(path) != path.stat().st_mtime_ns}
    return {path.name for path in written if path.suffix in (".o", ".so")}


def append(path, text="\n"):
    with path.open("a") as file:
        file.write(text)


def test_only_what_changed_is_compiled(tree):
    library, portable, module = "library.o", "kernel_portable.o", "_C.abi3.so"
    assert build(tree, "CPU") == {library, portable, module}
    assert (tree / "liif_fast" / module).exists()
    assert build(tree, "CPU") == set()
    for changed, compiled in [
        ("csrc/cpu/library.cpp", {library}),
        ("csrc/cpu/one.h", {portable}),
        ("csrc/cpu/both.h", {library, portable}),
    ]:
        append(tree / changed)
        assert build(tree, "CPU") == {*compiled, module}
    # The flags of one file are changed.
    rules = tree / "csrc/build.py"
    rules.write_text(rules.read_text().replace('"kernel_portable": ["-ffp', '"kernel_portable": ["-DNEW", "-ffp'))
    assert build(tree, "CPU") == {portable, module}
    # Objects with -Werror are separate, so the two kinds of build can alternate.
    assert build(tree, "CPU", LIIF_FAST_WERROR="1") == {library, portable, module}
    assert build(tree, "CPU") == set()


@pytest.mark.skipif("kernel_amx" not in KERNEL_FLAGS, reason="AMX is compiled for Linux on x86-64")
@pytest.mark.parametrize("knows", [True, False])
def test_a_compiler_that_does_not_know_amx_leaves_it_out(tree, knows):
    (tree / "csrc/cpu/kernel_amx.cpp").write_text("#ifdef __AMX_BF16__\nint with_amx() { return 1; }\n#endif\n")
    real = shutil.which("c++")
    old = f'#!/bin/sh\ncase "$*" in *-mamx*) echo "unknown option" >&2; exit 1;; esac\nexec {real} "$@"\n'
    (tree / "old-c++").write_text(old)
    (tree / "old-c++").chmod(0o755)
    assert "kernel_amx.o" in build(tree, "CPU", CXX=real if knows else shlex.quote(str(tree / "old-c++")))
    assert (b"with_amx" in (tree / "liif_fast/_C.abi3.so").read_bytes()) == knows
    how = json.loads((tree / "liif_fast/_build_info.json").read_text())["cpu"]
    assert ("kernel_amx" in how["kernels"]) == knows
    assert how.get("amx") == (None if knows else "left out, old-c++ does not know it")


def test_a_header_may_go(tree):
    assert "_C.abi3.so" in build(tree, "CPU")
    (tree / "csrc/cpu/one.h").unlink()
    source = tree / "csrc/cpu/kernel_portable.cpp"
    source.write_text(source.read_text().replace('#include "one.h"\n', "").replace(" + one()", ""))
    assert build(tree, "CPU") == {"kernel_portable.o", "_C.abi3.so"}


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_nvcc_compiles_only_what_changed(tree):
    assert build(tree, "CUDA") == {"library.o", "other.o", "_C_sm90.abi3.so"}
    assert build(tree, "CUDA") == set()
    append(tree / "csrc/cuda/one.h")
    assert build(tree, "CUDA") == {"library.o", "_C_sm90.abi3.so"}


def test_a_deleted_source_leaves_the_library(tree):
    source, library = tree / "csrc/cpu/extra.cpp", tree / "liif_fast/_C.abi3.so"
    source.write_text("int only_here() { return 1; }\n")
    build(tree, "CPU")
    assert b"only_here" in library.read_bytes()
    source.unlink()
    assert build(tree, "CPU") == {"_C.abi3.so"}
    assert b"only_here" not in library.read_bytes()


def test_a_library_that_would_not_be_loaded_says_why(tree):
    source = tree / "csrc/cpu/library.cpp"
    text = source.read_text()
    source.write_text(re.sub(r"interface \d+", "interface 1000", text))
    with pytest.raises(AssertionError, match=r"lacks the mark .*: the sources in csrc hold another number"):
        build(tree, "CPU")
    source.write_text(text.replace("extern const", "// extern const"))  # a const without extern is local to the file
    with pytest.raises(AssertionError, match=r"lacks the mark .*: the linker has dropped it, look at LDFLAGS"):
        build(tree, "CPU")


@pytest.fixture
def script():
    """The script of `make wheel`."""
    spec = importlib.util.spec_from_file_location("wheel_script", ROOT / "csrc/wheel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wheels_are_checked_in_environments_of_the_python_asked_for(script, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(script, "run", lambda *words, **_: made.extend(words[:1] if "venv" in words else ()))
    for python in ("python3.10", "python3.10", "python3.13"):
        script.environment(tmp_path, python, "torch")
    assert made == ["python3.10", "python3.13"]


def test_a_wheel_with_other_libraries_is_refused(script, tmp_path, monkeypatch):
    """auditwheel would add a library that is neither torch's nor every system's, such as libgomp."""
    monkeypatch.setattr(script.sys, "platform", "darwin")  # it copies the wheel
    for member, refused in (("liif_fast/_C.abi3.so", False), ("liif_fast.libs/libgomp.so.1", True)):
        wheel = tmp_path / "liif_fast-0-cp310-abi3-manylinux_2_28_x86_64.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, b"")
        with pytest.raises(SystemExit, match=r"libgomp\.so\.1 was added") if refused else nullcontext():
            script.repaired(wheel, tmp_path / "dist")


def test_wheels_are_of_the_oldest_torch():
    """`make wheel`, cibuildwheel, the macros and the dependencies name one oldest torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    major, minor, _ = re.search(r'OLDEST = "(\d+)\.(\d+)\.(\d+)"', (ROOT / "csrc/wheel.py").read_text()).groups()
    assert f"torch>={major}.{minor}" in project["project"]["dependencies"]
    assert f"torch=={major}.{minor}.0 " in project["tool"]["cibuildwheel"]["before-build"]
    target = re.search(r"TORCH_TARGET_VERSION=0x(\w\w)(\w\w)", (ROOT / "csrc/build.py").read_text())
    assert [int(part, 16) for part in target.groups()] == [int(major), int(minor)]
    assert project["tool"]["cibuildwheel"]["build"] == "cp310-*"
