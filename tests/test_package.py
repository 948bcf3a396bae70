"""Test the package as users get it: sdist, wheel, editable install and bare tree, with and without a compiler."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from . import warm

ROOT = Path(__file__).resolve().parents[1]
TORCH_HOME = Path(importlib.util.find_spec("torch").origin).parents[1]  # found, not imported

# One worker builds the wheel once for all these tests.
pytestmark = pytest.mark.xdist_group("package")

DECODE = """
import sys
import torch
import liif_fast, liif_fast.kernels
from liif_fast import functional, make_cell, make_coord

torch.manual_seed(0)
feat, coord, cell = torch.randn(1, 3, 4, 5), make_coord((7, 9))[None], make_cell((7, 9))[None]
sizes = [31, 16, 16, 3]
weights = [torch.randn(o, i) / i**0.5 for i, o in zip(sizes, sizes[1:])]
biases = [torch.randn(o) for o in sizes[1:]]
out, plain = (functional.liif_decode(feat, coord, cell, weights, biases, backend=b) for b in (sys.argv[1], "reference"))
assert (out - plain).abs().max() <= 1e-5 * plain.abs().max()
print(liif_fast.__file__, liif_fast.__version__)
"""


def sh(*command, **environment):
    """Run a command outside the source tree, without this process's Python path; return the completed process."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LD_PRELOAD") and "LIIF_FAST" not in k}
    cwd = environment.pop("cwd", "/")
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env | environment, capture_output=True, text=True, check=False
    )


def ok(process):
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """Copy the source tree by git's list, including new files; of an unpacked sdist, everything except builds."""
    copy = tmp_path_factory.mktemp("tree")
    if not (ROOT / ".git").exists():
        built = shutil.ignore_patterns(
            ".venv", "build", "dist", "*.egg-info", "__pycache__", "_C.*", "_C_sm90.*", "_build_info.json"
        )
        return shutil.copytree(ROOT, copy, ignore=built, dirs_exist_ok=True)
    files = ok(sh("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)).split("\0")
    for name in filter(None, files):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def build_wheel(tree, out, **environment):
    """Build a wheel of a tree as pip does, without pip's own three processes."""
    script = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    return sh(sys.executable, "-c", script, out, cwd=tree, **{"LIIF_FAST_BUILD_CUDA": "0", **environment})


def build_info(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read("liif_fast/_build_info.json")), set(archive.namelist())


# Preprocesses a source of the sdist, which needs all headers, and takes what the tree's build made of the same source.
# Where that is missing or older than its source or a header in the tree it compiles, without optimisation.
COMPILER = """#!/bin/sh
for each; do
    test "$before" = -o && out=$each
    before=$each
done
made={objects}/$(basename "$out")
name=$(basename "$out" .o)
newer() {{ find {sources} '(' -name '*.h' -o -name "$name.*" ')' -newer "$made"; }}
case $out in *.o) test -e "$made" && test -z "$(newer)" && {{ {compiler} "$@" -E && cp "$made" "$out"; exit; }};; esac
exec {compiler} "$@" -O0
"""


@pytest.mark.skipif(shutil.which("sh") is None, reason="the compiler is a shell script")
@pytest.mark.parametrize(("newer", "taken"), [(None, True), ("a.cpp", False), ("a.h", False), ("b.cpp", True)])
def test_an_object_is_taken_only_if_it_is_newer_than_its_sources(newer, taken, tmp_path):
    for name in ("a.cpp", "a.h", "b.cpp", "a.o"):
        (tmp_path / name).write_text("made")
        os.utime(tmp_path / name, (time := 2 if name == "a.o" else 3 if name == newer else 1, time))
    compiler = tmp_path / "c++"
    compiler.write_text(COMPILER.format(compiler="true", objects=tmp_path, sources=tmp_path))
    out = tmp_path / "out" / "a.o"
    out.parent.mkdir()
    ok(sh("sh", compiler, "-c", "a.cpp", "-o", out))
    assert out.exists() == taken


@pytest.fixture(scope="session")
def wheel(tree, tmp_path_factory):
    """Build a wheel from the sdist, not from the tree, so the sdist must be complete.

    The CUDA kernels, which take minutes, are only looked for in the sdist.
    """
    out = tmp_path_factory.mktemp("dist")
    compiler = tmp_path_factory.mktemp("compiler") / "c++"
    linked = max(ROOT.glob("build/temp*/*/_C.*so"), key=lambda path: path.stat().st_mtime, default=Path("/none/_C"))
    places = {"objects": linked.parent, "sources": ROOT / "csrc"}
    compiler.write_text(COMPILER.format(compiler=os.environ.get("CXX", "c++"), **places))
    compiler.chmod(0o755)
    script = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    ok(sh(sys.executable, "-c", script, out, cwd=tree))
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    sources = [path for path in (tree / "csrc").rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    assert {str(path.relative_to(tree)) for path in sources} <= packed
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", out, sdist]
    ok(sh(*pip, LIIF_FAST_BUILD_CPU="1", LIIF_FAST_BUILD_CUDA="0", CXX=str(compiler)))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture
def clean_python(tmp_path):
    """Return the interpreter of an environment that sees torch and the other dependencies, but not liif_fast."""
    home = tmp_path / "venv"
    ok(sh(sys.executable, "-m", "venv", "--without-pip", home))
    site = ok(sh(home / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")).strip()
    Path(site, "dependencies.pth").write_text(f"{TORCH_HOME}\n")  # its .pth files are not followed
    assert sh(home / "bin/python", "-c", "import liif_fast").returncode != 0
    return home / "bin/python"


def install(python, *what, **environment):
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    ok(sh(*pip, "--no-build-isolation", *what, **environment))


def test_loading_and_running_a_model_imports_no_compiler(tmp_path):
    """For some operators on the meta device PyTorch imports it, which takes 150 MiB and some seconds."""
    script = """
import sys, torch
before = set(sys.modules)
import numpy as np
import liif_fast
small = {"edsr-baseline": {"n_feats": 8, "n_resblocks": 1}, "rdn": {"G0": 8, "RDNconfig": "A"},
         "rcan": {"n_feats": 16, "n_resgroups": 1, "n_resblocks": 1}}
for name, args in small.items():
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
    model = liif_fast.LIIF({"name": name, "args": args | {"no_upsampling": True}}, imnet)
    liif_fast.save_model(model, sys.argv[1])
    liif_fast.upscale(np.zeros((8, 8, 3), np.uint8), sys.argv[1], scale=2)
from liif_fast.cli import main
assert main(["models"]) == 0  # builds every published one on the meta device
new = {name for name in set(sys.modules) - before if name in ("torch._dynamo", "torch._inductor", "sympy")}
assert not new, new
"""
    warm.run("-c", script, tmp_path / "model.pth", cwd=ROOT, check=True)


def test_import_touches_no_driver_and_no_triton():
    script = """
import sys, liif_fast
assert "torch" not in sys.modules  # so no kernel is loaded and no driver asked
from liif_fast import LIIFDecoder, functional, models
import liif_fast.cli.program, torch
assert not torch.cuda.is_initialized()
assert not [m for m in sys.modules if m.split(".")[0] == "triton"]
"""
    ok(sh(sys.executable, "-c", script, cwd=ROOT))


def test_wheel_decodes_outside_the_tree(tree, wheel, clean_python):
    assert "abi3" in wheel.name
    info, names = build_info(wheel)
    assert info["cpu"]["built"]
    wanted = {str(p.relative_to(tree)) for p in (tree / "liif_fast").rglob("*") if p.suffix != ".pyc" and p.is_file()}
    wanted.remove("liif_fast/kernels.py")  # replaces kernels/ in the tree
    wanted |= {f"liif_fast/{p.relative_to(tree)}" for p in (tree / "kernels").rglob("*.py")}
    ours = {n for n in names if ".dist-info/" not in n} - {"liif_fast/_build_info.json", "liif_fast/_C.abi3.so"}
    assert ours == wanted

    install(clean_python, wheel)
    where, version = ok(sh(clean_python, "-c", DECODE, "cpu")).split()
    assert Path(where).is_relative_to(clean_python.parents[1])
    assert version == wheel.name.split("-")[1]
    assert version in ok(sh(clean_python.parent / "liif-fast", "info"))


def test_editable_install_finds_kernels(tree, clean_python):
    install(clean_python, "-e", tree, LIIF_FAST_BUILD_CPU="0", LIIF_FAST_BUILD_CUDA="0")
    assert Path(ok(sh(clean_python, "-c", DECODE, "torch")).split()[0]).is_relative_to(tree)


def test_bare_tree_finds_kernels_and_nothing_else(tree, clean_python):
    ok(sh(clean_python, "-c", DECODE, "torch", PYTHONPATH=".", cwd=tree))
    script = "import importlib.util as u; assert not (u.find_spec('liif_fast.setup') or u.find_spec('liif_fast.csrc'))"
    ok(sh(clean_python, "-c", script, PYTHONPATH=".", cwd=tree))


def test_without_a_compiler_it_is_pure_python_and_says_so(tree, clean_python, tmp_path):
    process = build_wheel(tree, tmp_path, CXX="/nonexistent")
    log = ok(process) + process.stderr
    assert "C++ kernels skipped: no C++ compiler found (CXX=/nonexistent)" in log
    (built,) = tmp_path.glob("*.whl")
    assert built.name.endswith("py3-none-any.whl")
    install(clean_python, built)
    script = DECODE + "from liif_fast.cli import main\nmain(['info'])\n"
    assert "no C++ compiler found" in ok(sh(clean_python, "-c", script, "auto"))


def test_without_ninja_it_is_pure_python_and_says_so(tree, tmp_path):
    (tmp_path / "site").mkdir()
    hidden = "import sys; sys.modules['ninja'] = None\nsys.path_importer_cache.clear()\n"
    (tmp_path / "site/sitecustomize.py").write_text(hidden)
    process = build_wheel(tree, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert "C++ kernels skipped: no ninja found (pip install ninja)" in ok(process) + process.stderr
    (built,) = tmp_path.glob("*.whl")
    assert built.name.endswith("py3-none-any.whl")
    process = build_wheel(tree, tmp_path, PYTHONPATH=str(tmp_path / "site"), LIIF_FAST_BUILD_CPU="1")
    assert process.returncode != 0 and "no ninja found" in process.stdout + process.stderr


def test_a_compile_error_falls_back_and_says_so(tree, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\ncase $1 in --version) echo broken 1.0;; *) exit 1;; esac\n")
    compiler.chmod(0o755)
    process = build_wheel(tree, tmp_path, CXX=str(compiler))
    log = ok(process) + process.stderr
    assert "C++ kernels skipped: CompileError" in log
    (built,) = tmp_path.glob("*.whl")
    info, names = build_info(built)
    assert not info["cpu"]["built"]
    assert "liif_fast/_C.abi3.so" not in names


NVCC = "#!/bin/sh\ncase $1 in --version) echo release 1.0;; *) echo '{}' >&2; exit 1;; esac\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (NVCC.format("error: no"), "CompileError: nvcc failed: error: no"),
        (NVCC.format("nvcc fatal : Unsupported gpu architecture"), "nvcc failed: nvcc fatal : Unsupported gpu arch"),
        ("#!/bin/sh\nexit 1\n", "CalledProcessError"),  # has not even a version
        ("no program", "OSError"),
    ],
    ids=["broken", "too old", "dead", "no program"],
)
def test_a_failing_nvcc_falls_back_and_says_so(tree, tmp_path, script, reason):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(script)
    nvcc.chmod(0o755)
    environment = {"LIIF_FAST_BUILD_CPU": "0", "CUDACXX": str(nvcc)}
    process = build_wheel(tree, tmp_path, LIIF_FAST_BUILD_CUDA="auto", **environment)
    log = ok(process) + process.stderr
    assert "CUDA kernels skipped: " in log and reason in log
    (built,) = tmp_path.glob("*.whl")
    info, names = build_info(built)
    assert not info["cuda"]["built"] and reason in info["cuda"]["why"]
    assert "liif_fast/_C_sm90.abi3.so" not in names


def test_a_required_nvcc_that_fails_fails_hard(tree, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(NVCC.format("error: no"))
    nvcc.chmod(0o755)
    environment = {"LIIF_FAST_BUILD_CPU": "0", "LIIF_FAST_BUILD_CUDA": "1", "CUDACXX": str(nvcc)}
    assert build_wheel(tree, tmp_path, **environment).returncode != 0


def test_without_nvcc_the_rest_is_built(tree, tmp_path):
    environment = {"LIIF_FAST_BUILD_CPU": "0", "LIIF_FAST_BUILD_CUDA": "auto", "CUDACXX": "/nonexistent/nvcc"}
    process = build_wheel(tree, tmp_path, **environment)
    assert "CUDA kernels skipped: no nvcc found" in ok(process) + process.stderr
    (built,) = tmp_path.glob("*.whl")
    info, names = build_info(built)
    assert info["cuda"] == {"built": False, "why": "no nvcc found"} and "liif_fast/__init__.py" in names


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"LIIF_FAST_BUILD_CPU": "1", "CXX": "/nonexistent"}, "no C++ compiler found"),
        ({"LIIF_FAST_BUILD_CUDA": "1", "CXX": "/nonexistent"}, "the CUDA kernels cannot be built"),
        ({"LIIF_FAST_BUILD_CPU": "yes"}, "LIIF_FAST_BUILD_CPU must be auto, 0 or 1, got 'yes'"),
    ],
)
def test_a_required_build_fails_hard(tree, tmp_path, environment, reason):
    process = build_wheel(tree, tmp_path, **environment)
    assert process.returncode != 0
    assert reason in process.stdout + process.stderr
