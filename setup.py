"""Builds what a compiler is found for: csrc/cpu as liif_fast/_C, on LibTorch's stable ABI and Python's limited API.

Environment: LIIF_FAST_BUILD_CPU and LIIF_FAST_BUILD_CUDA (auto, 0, 1), LIIF_FAST_WERROR=1, LIIF_FAST_SANITIZE=1,
MAX_JOBS, CXX. auto falls back to pure Python and says why; 1 fails instead. torch is located, never imported.
"""

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.modified import newer_group

MSVC = sys.platform == "win32"
X86 = platform.machine().lower() in ("x86_64", "amd64")
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded Pythons have no limited API
TORCH_MIN = (2, 10)

# The plan's float32 operations are a contract, so the compiler may fuse none of them; the micro-kernels fuse theirs.
if MSVC:
    FLAGS = ["/O2", "/std:c++17", "/fp:precise", "/EHsc", "/W3"]
    KERNEL_FLAGS = {
        "kernel_portable": ["/fp:contract"],
        "kernel_avx2": ["/arch:AVX2"],
        "kernel_avx512": ["/arch:AVX512"],
    }
else:
    FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=off"]
    KERNEL_FLAGS = {
        "kernel_portable": ["-ffp-contract=fast"],
        "kernel_avx2": ["-mavx2", "-mfma"],
        "kernel_avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
    }
if not X86:  # elsewhere these two files are empty but for saying so
    del KERNEL_FLAGS["kernel_avx2"], KERNEL_FLAGS["kernel_avx512"]
MACROS = [("TORCH_TARGET_VERSION", "0x020a000000000000"), ("TORCH_STABLE_ONLY", None)]
if ABI3:
    MACROS.append(("Py_LIMITED_API", "0x030a0000"))


def switch(name: str) -> str:
    value = os.environ.get(name, "auto").lower()
    if value not in ("auto", "0", "1"):
        sys.exit(f"{name} must be auto, 0 or 1, got {value!r}")
    return value


CPU, CUDA = switch("LIIF_FAST_BUILD_CPU"), switch("LIIF_FAST_BUILD_CUDA")
WERROR, SANITIZE = (os.environ.get(f"LIIF_FAST_{name}") == "1" for name in ("WERROR", "SANITIZE"))


def find_torch() -> tuple[Path | None, str]:
    """The folder and version of the torch to compile against: this environment's, or the one that pip installs into.

    Under pip's build isolation the target environment is not on sys.path, but sysconfig still names its folders.
    """
    spec = importlib.util.find_spec("torch")
    places = list(spec.submodule_search_locations or ()) if spec else []
    places += [
        os.path.join(root, "torch")
        for root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages())
    ]
    for folder in map(Path, places):
        if (folder / "include/torch/csrc/stable").is_dir():
            found = re.search(r"__version__ = '(.+?)'", (folder / "version.py").read_text())
            return folder, found.group(1) if found else "0"
    return None, ""


def find_compiler() -> str | None:
    """The C++ compiler's command; on Windows setuptools looks for MSVC itself."""
    if MSVC:
        return "cl"
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return shutil.which(command.split()[0]) and command


def why_not_cpu() -> str:
    """Why the C++ kernels cannot be built here; empty if they can."""
    if CPU == "0":
        return "LIIF_FAST_BUILD_CPU=0"
    if not glob("csrc/cpu/*.cpp"):
        return "no sources in csrc/cpu"
    if not find_compiler():
        return f"no C++ compiler found (CXX={os.environ.get('CXX', '')})"
    if TORCH and tuple(map(int, TORCH_VERSION.split(".")[:2])) < TORCH_MIN:
        return f"torch >= 2.10 is needed for its stable ABI, found {TORCH_VERSION}"
    return ""


TORCH, TORCH_VERSION = find_torch()
SKIP_CPU = why_not_cpu()
if CPU == "1" and SKIP_CPU:
    sys.exit(f"LIIF_FAST_BUILD_CPU=1, but the C++ kernels cannot be built: {SKIP_CPU}")
if CUDA == "1":
    sys.exit("LIIF_FAST_BUILD_CUDA=1, but this version has no CUDA sources")


def write_info(package: str, cpu: dict) -> None:
    """Leave what was built, or why not, in the package, for `liif-fast info`."""
    if not cpu["built"]:
        print(f"liif-fast: C++ kernels skipped: {cpu['why']}", file=sys.stderr)
    cuda = {"built": False, "why": "LIIF_FAST_BUILD_CUDA=0" if CUDA == "0" else "this version has no CUDA sources"}
    info = {"torch": TORCH_VERSION, "python": platform.python_version(), "cpu": cpu, "cuda": cuda}
    Path(package).mkdir(parents=True, exist_ok=True)
    Path(package, "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.distribution.ext_modules:
            package = "liif_fast" if self.editable_mode else os.path.join(self.build_lib, "liif_fast")
            write_info(package, {"built": False, "why": SKIP_CPU})

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [m for m in modules if m[:2] != ("liif_fast", "kernels")]  # only for a source tree


class BuildExt(build_ext):
    """Compiles each file with the flags of its instruction set, in parallel, and only what changed."""

    def run(self) -> None:
        self.outcome = {"built": False, "why": SKIP_CPU}
        super().run()
        package = "liif_fast" if self.inplace else os.path.join(self.build_lib, "liif_fast")
        if not self.outcome["built"]:
            for stale in Path(package).glob("_C.*"):  # what an earlier build left
                stale.unlink()
        write_info(package, self.outcome)

    def build_extension(self, ext: Extension) -> None:
        try:
            self.outcome = {"built": True, **self.compile_and_link(ext)}
        except Exception as error:
            if CPU == "1":
                raise
            self.outcome = {"built": False, "why": f"{type(error).__name__}: {error}"}

    def flags(self) -> list[str]:
        extra = []
        if WERROR:
            extra += ["/WX" if MSVC else "-Werror"]
        if SANITIZE:
            extra += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g"]
        return FLAGS + extra

    def compiler_version(self) -> str:
        if MSVC:
            return "MSVC"
        command = [*find_compiler().split(), "--version"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]

    def compile_and_link(self, ext: Extension) -> dict:
        """Build the extension and tell how; objects are kept apart by compiler and flags."""
        how = {"compiler": self.compiler_version(), "flags": self.flags(), "kernels": KERNEL_FLAGS}
        temp = os.path.join(self.build_temp, hashlib.sha256(json.dumps(how).encode()).hexdigest()[:8])
        if TORCH is None:
            raise FileNotFoundError("no torch to compile against")
        include = [f"/I{TORCH / 'include'}"] if MSVC else ["-isystem", str(TORCH / "include")]

        def compile_one(source: str) -> str:
            (target,) = self.compiler.object_filenames([source], output_dir=temp)
            if self.force or newer_group([source, *ext.depends], target):
                self.compiler.compile(
                    [source],
                    output_dir=temp,
                    macros=ext.define_macros,
                    include_dirs=self.include_dirs,
                    extra_postargs=[*include, *self.flags(), *KERNEL_FLAGS.get(Path(source).stem, [])],
                )
            return target

        if MSVC:
            self.compiler.initialize()
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=self.get_libraries(ext),
            library_dirs=[*self.library_dirs, str(TORCH / "lib")],  # for the linker; no rpath: torch is loaded before
            export_symbols=self.get_export_symbols(ext),
            extra_postargs=["-fsanitize=address,undefined"] if SANITIZE else [],
            build_temp=temp,
            target_lang="c++",
        )
        return how


def extensions() -> list[Extension]:
    if SKIP_CPU:
        return []
    sources = sorted(glob("csrc/cpu/*.cpp"))
    depends = [*sorted(glob("csrc/cpu/*.h")), "setup.py"]
    return [
        Extension(
            "liif_fast._C",
            sources,
            depends=depends,
            define_macros=MACROS,
            libraries=["torch_cpu"],
            py_limited_api=ABI3,
            optional=CPU != "1",
            language="c++",
        )
    ]


setup(
    packages=[*find_namespace_packages(include=["liif_fast", "liif_fast.*"]), "liif_fast.kernels"],
    package_dir={"liif_fast.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if ABI3 and not SKIP_CPU else {},
    # An isolated build into an environment without torch brings one to compile against.
    setup_requires=["torch>=2.10"] if not (TORCH or SKIP_CPU) else [],
)
