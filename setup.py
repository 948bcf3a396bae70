"""Build what a compiler is found for, on LibTorch's stable ABI: csrc/cpu as liif_fast/_C, csrc/cuda as _C_sm90.

Environment: LIIF_FAST_BUILD_CPU and LIIF_FAST_BUILD_CUDA (auto, 0, 1), CXX, CUDACXX, CUDA_HOME and those of
csrc/build.py. auto falls back to pure Python and says why; 1 fails instead. torch is located, never imported.
"""

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # pip leaves it out
from csrc.build import ABI3, FLAGS, KERNEL_FLAGS, MACROS, MSVC, NVCC_FLAGS, WERROR, leave_out_amx, own_flags, run_ninja

PARTS = {"cpu": ("_C", "C++"), "cuda": ("_C_sm90", "CUDA")}


def find_torch() -> tuple[Path | None, str]:
    """Return the folder and version of the torch to compile against: this environment's, or pip's target's.

    Under pip's build isolation the target environment is not on sys.path, but sysconfig still names its folders.
    """
    spec = importlib.util.find_spec("torch")
    roots = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages())
    places = [*(spec.submodule_search_locations or () if spec else ()), *(f"{root}/torch" for root in roots)]
    for folder in map(Path, places):
        if (folder / "include/torch/csrc/stable").is_dir():
            found = re.search(r"__version__ = '(.+?)'", (folder / "version.py").read_text())
            return folder, found.group(1) if found else "0"
    return None, ""


def find_compiler() -> list[str]:
    """Return the C++ compiler's command, [] if there is none; on Windows setuptools looks for MSVC itself."""
    command = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    return command if MSVC or shutil.which(command[0]) else []


def find_nvcc() -> str | None:
    """Return nvcc: CUDACXX and nothing else if it is set, CUDA_HOME's, on the path, or where Linux installs it."""
    homes = filter(None, map(os.environ.get, ("CUDA_HOME", "CUDA_PATH")))
    places = [*(f"{home}/bin" for home in homes), os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    return shutil.which(os.environ.get("CUDACXX") or "nvcc", path=os.pathsep.join(places))


def why_not(part: str) -> str:
    """Return why the kernels in csrc/`part` cannot be built here, "" if they can; exit if they must be."""
    switch = f"LIIF_FAST_BUILD_{part.upper()}"
    wish = os.environ.get(switch, "auto").lower()
    if wish not in ("auto", "0", "1"):
        sys.exit(f"{switch} must be auto, 0 or 1, got {wish!r}")
    reasons = {
        f"{switch}=0": wish == "0",
        "built on Linux only": part == "cuda" and not sys.platform.startswith("linux"),
        f"no sources in csrc/{part}": not glob(f"csrc/{part}/*.c*"),
        "no nvcc found": part == "cuda" and not find_nvcc(),
        f"no C++ compiler found (CXX={os.environ.get('CXX', '')})": not find_compiler(),
        "no ninja found (pip install ninja)": not MSVC and not importlib.util.find_spec("ninja"),
        f"torch >= 2.10 is needed for its stable ABI, found {TORCH_VERSION}": TORCH is not None
        and tuple(map(int, TORCH_VERSION.split(".")[:2])) < (2, 10),
    }
    why = next((reason for reason, holds in reasons.items() if holds), "")
    if why and wish == "1":
        sys.exit(f"{switch}=1, but the {PARTS[part][1]} kernels cannot be built: {why}")
    return why


def write_info(package: str, outcome: dict[str, dict]) -> None:
    """Write how each part was built, or why not, into the package for `liif-fast info`."""
    for part, how in outcome.items():
        if not how["built"]:
            print(f"liif-fast: {PARTS[part][1]} kernels skipped: {how['why']}", file=sys.stderr)
    info = {"torch": TORCH_VERSION, "python": platform.python_version(), **outcome}
    Path(package).mkdir(parents=True, exist_ok=True)
    Path(package, "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")


def check_mark(name: str, library: Path) -> None:
    """Raise if the linked library lacks the mark without which liif_fast/extension.py does not load it."""
    found = re.search(rf'"{name}": (\d+)', Path("liif_fast/extension.py").read_text())
    mark = f"liif_fast/{name} interface {found and found.group(1)};"
    built = library.read_bytes()
    if mark.encode() not in built:
        other = f"liif_fast/{name} interface ".encode() in built
        cause = "the sources in csrc hold another number" if other else "the linker has dropped it, look at LDFLAGS"
        raise RuntimeError(f"{library.name} lacks the mark {mark!r}: {cause}")


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.distribution.ext_modules:
            write_info("liif_fast" if self.editable_mode else os.path.join(self.build_lib, "liif_fast"), UNBUILT)

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [m for m in modules if m[:2] != ("liif_fast", "kernels")]  # only for a source tree


class BuildExt(build_ext):
    """Compile each file with the flags of its instruction set, in parallel, and only what changed."""

    def run(self) -> None:
        self.outcome = dict(UNBUILT)
        super().run()
        package = "liif_fast" if self.inplace else os.path.join(self.build_lib, "liif_fast")
        for part, how in self.outcome.items():
            if not how["built"]:
                for stale in Path(package).glob(f"{PARTS[part][0]}.*"):  # an earlier build left it
                    stale.unlink()
        write_info(package, self.outcome)

    def build_extension(self, ext: Extension) -> None:
        part = Path(ext.sources[0]).parent.name
        build = self.build_cuda if part == "cuda" else self.build_msvc if MSVC else self.build_cpu
        try:
            if TORCH is None:
                raise FileNotFoundError("no torch to compile against")
            how = build(ext)
            check_mark(PARTS[part][0], Path(self.get_ext_fullpath(ext.name)))
            self.outcome[part] = {"built": True, **how}
        except Exception as error:
            if not ext.optional:
                raise
            self.outcome[part] = {"built": False, "why": f"{type(error).__name__}: {error}"}

    def build_msvc(self, ext: Extension) -> dict:
        """Build with setuptools' compiler, one call for each source's flags; tell how."""
        includes = [*self.include_dirs, str(TORCH / "include")]
        for source in ext.sources:
            flags = [*MACROS, *FLAGS, *own_flags(source)]
            ext.extra_objects += self.compiler.compile([source], self.build_temp, None, includes, False, None, flags)
        ext.sources, ext.depends = [], ext.extra_objects  # super links
        ext.libraries, ext.library_dirs = ["torch_cpu"], [str(TORCH / "lib")]
        super().build_extension(ext)
        return {"compiler": "MSVC", "flags": FLAGS, "kernels": KERNEL_FLAGS}

    def build_cpu(self, ext: Extension) -> dict:
        version = subprocess.check_output([*find_compiler(), "--version"], text=True).splitlines()[0]
        compiler = [*self.compiler.compiler_so_cxx, *(f"-I{place}" for place in self.include_dirs)]
        linker = [*find_compiler(), *self.compiler.linker_so_cxx[1:]]  # whose first word ignores CXX
        left_out = leave_out_amx(find_compiler())
        self.with_ninja(ext, version, compiler, linker, FLAGS)
        return {"compiler": version, "flags": FLAGS, "kernels": KERNEL_FLAGS, **left_out}

    def build_cuda(self, ext: Extension) -> dict:
        """Build with nvcc, which needs no GPU, and no CUDA in PyTorch; tell how."""
        version = subprocess.check_output([find_nvcc(), "--version"], text=True).strip().splitlines()[-1]
        nvcc = [find_nvcc(), "-ccbin", find_compiler()[0]]
        self.with_ninja(ext, version, nvcc, [*nvcc, "-shared"], NVCC_FLAGS)
        return {"compiler": version, "flags": NVCC_FLAGS}

    def with_ninja(self, ext: Extension, version: str, compiler: list, linker: list, flags: list) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        # Objects of another compiler are another folder's; those with -Werror, too, so that a check costs no rebuild.
        folder = Path(self.build_temp, re.sub(r"\W+", "-", version + "-Werror" * WERROR))
        if self.force:
            shutil.rmtree(folder, ignore_errors=True)
        compiler = [*compiler, *MACROS, "-isystem", str(TORCH / "include"), *flags]
        libraries = [f"-L{TORCH / 'lib'}", "-ltorch_cpu"]  # no rpath: torch is loaded before
        run_ninja(folder / target.name, ext.sources, compiler, [*linker, *flags], libraries)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / target.name, target)


def extension(part: str) -> Extension:
    optional = os.environ.get(f"LIIF_FAST_BUILD_{part.upper()}") != "1"
    sources = sorted(glob(f"csrc/{part}/*.c*"))
    return Extension(f"liif_fast.{PARTS[part][0]}", sources, optional=optional, language="c++", py_limited_api=ABI3)


TORCH, TORCH_VERSION = find_torch()
UNBUILT = {part: {"built": False, "why": why_not(part)} for part in PARTS}
EXTENSIONS = [extension(part) for part, how in UNBUILT.items() if not how["why"]]
setup(
    packages=[*find_namespace_packages(include=["liif_fast", "liif_fast.*"]), "liif_fast.kernels"],
    package_dir={"liif_fast.kernels": "kernels"},
    ext_modules=EXTENSIONS,
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if ABI3 and EXTENSIONS else {},
    # An isolated build into an environment without torch brings one to compile against.
    setup_requires=["torch>=2.10"] if EXTENSIONS and not TORCH else [],
)
