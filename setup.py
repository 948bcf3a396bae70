"""Builds what a compiler is found for, on LibTorch's stable ABI: csrc/cpu as liif_fast/_C, csrc/cuda as _C_sm90.

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


def find_nvcc() -> str | None:
    """nvcc: CUDACXX and nothing else if it is set, CUDA_HOME's, on the path, or where Linux installs it."""
    if wish := os.environ.get("CUDACXX"):
        return shutil.which(wish)
    homes = [home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda") if home]
    candidates = [*(f"{home}/bin/nvcc" for home in homes[:-1]), "nvcc", f"{homes[-1]}/bin/nvcc"]
    return next((found for each in candidates if (found := shutil.which(each))), None)


def why_not_cuda() -> str:
    """Why the CUDA kernels cannot be built here; empty if they can."""
    if CUDA == "0":
        return "LIIF_FAST_BUILD_CUDA=0"
    if not sys.platform.startswith("linux"):
        return "built on Linux only"
    if not glob("csrc/cuda/*.cu"):
        return "no sources in csrc/cuda"
    if not find_nvcc():
        return "no nvcc found"
    if not find_compiler():
        return "no C++ compiler found, which nvcc needs"
    if TORCH and tuple(map(int, TORCH_VERSION.split(".")[:2])) < TORCH_MIN:
        return f"torch >= 2.10 is needed for its stable ABI, found {TORCH_VERSION}"
    return ""


TORCH, TORCH_VERSION = find_torch()
SKIP_CPU, SKIP_CUDA = why_not_cpu(), why_not_cuda()
if CPU == "1" and SKIP_CPU:
    sys.exit(f"LIIF_FAST_BUILD_CPU=1, but the C++ kernels cannot be built: {SKIP_CPU}")
if CUDA == "1" and SKIP_CUDA:
    sys.exit(f"LIIF_FAST_BUILD_CUDA=1, but the CUDA kernels cannot be built: {SKIP_CUDA}")


def write_info(package: str, cpu: dict, cuda: dict) -> None:
    """Leave what was built, or why not, in the package, for `liif-fast info`."""
    if not cpu["built"]:
        print(f"liif-fast: C++ kernels skipped: {cpu['why']}", file=sys.stderr)
    if not cuda["built"]:
        print(f"liif-fast: CUDA kernels skipped: {cuda['why']}", file=sys.stderr)
    info = {"torch": TORCH_VERSION, "python": platform.python_version(), "cpu": cpu, "cuda": cuda}
    Path(package).mkdir(parents=True, exist_ok=True)
    Path(package, "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")


def check_mark(name: str, library: Path) -> None:
    """Raise if the linked library lacks the mark without which liif_fast/extension.py does not load it."""
    found = re.search(rf'"{name}": (\d+)', Path("liif_fast/extension.py").read_text())
    mark = f"liif_fast/{name} interface {found and found.group(1)};"
    if mark.encode() not in library.read_bytes():
        raise RuntimeError(f"the linker has dropped {mark!r} from {library.name}: look at LDFLAGS")


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.distribution.ext_modules:
            package = "liif_fast" if self.editable_mode else os.path.join(self.build_lib, "liif_fast")
            write_info(package, {"built": False, "why": SKIP_CPU}, {"built": False, "why": SKIP_CUDA})

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [m for m in modules if m[:2] != ("liif_fast", "kernels")]  # only for a source tree


class BuildExt(build_ext):
    """Compiles each file with the flags of its instruction set, in parallel, and only what changed."""

    def run(self) -> None:
        self.outcome = {"_C": {"built": False, "why": SKIP_CPU}, "_C_sm90": {"built": False, "why": SKIP_CUDA}}
        super().run()
        package = "liif_fast" if self.inplace else os.path.join(self.build_lib, "liif_fast")
        for name, outcome in self.outcome.items():
            if not outcome["built"]:
                for stale in Path(package).glob(f"{name}.*"):  # what an earlier build left
                    stale.unlink()
        write_info(package, *self.outcome.values())

    def build_extension(self, ext: Extension) -> None:
        name = ext.name.split(".")[-1]
        build, required = (self.run_nvcc, CUDA) if name == "_C_sm90" else (self.compile_and_link, CPU)
        try:
            how = build(ext)
            check_mark(name, Path(self.get_ext_fullpath(ext.name)))
            self.outcome[name] = {"built": True, **how}
        except Exception as error:
            if required == "1":
                raise
            self.outcome[name] = {"built": False, "why": f"{type(error).__name__}: {error}"}

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

    def run_nvcc(self, ext: Extension) -> dict:
        """Compile and link the CUDA kernels, if anything changed, and tell how; needs no GPU and no CUDA in PyTorch."""
        if TORCH is None:
            raise FileNotFoundError("no torch to compile against")
        nvcc = find_nvcc()
        host = [
            "-fPIC",
            "-fvisibility=hidden",
            "-Wall",
            "-Wextra",
            "-Wno-unknown-pragmas",
            *(["-Werror"] if WERROR else []),
        ]
        flags = ["-O3", "-std=c++17", "-gencode", "arch=compute_90a,code=sm_90a", "-Xcompiler", ",".join(host)]
        if WERROR:
            flags += ["-Werror", "all-warnings"]
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        how = {"compiler": version.strip().splitlines()[-1], "flags": flags}
        target = Path(self.get_ext_fullpath(ext.name))
        # Linked apart and copied: the copy is newer than its sources only if it was made with these flags.
        temp = Path(self.build_temp, hashlib.sha256(json.dumps(how).encode()).hexdigest()[:8], target.name)
        if self.force or newer_group([*ext.sources, *ext.depends], str(temp)):
            temp.parent.mkdir(parents=True, exist_ok=True)
            macros = [f"-D{name}" + (f"={value}" if value else "") for name, value in ext.define_macros]
            places = ["-isystem", str(TORCH / "include"), f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-ldl"]
            compiler = find_compiler().split()[0]
            command = [nvcc, "-shared", "-ccbin", compiler, *flags, *macros, *ext.sources, *places, "-o", str(temp)]
            made = subprocess.run(command, capture_output=True, text=True)
            if made.returncode:
                temp.unlink(missing_ok=True)
                said = (made.stderr + made.stdout).splitlines()
                why = [line for line in said if "error" in line or "fatal" in line] or [f"exit {made.returncode}"]
                raise RuntimeError(f"nvcc failed: {why[0].strip()}")
            print(made.stderr, end="", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(temp, target)
        return how


def extensions() -> list[Extension]:
    def extension(name: str, sources: list[str], **options) -> Extension:
        depends = [*sorted(glob("csrc/*/*.h")), "setup.py"]
        return Extension(
            f"liif_fast.{name}", sources, depends=depends, define_macros=MACROS, py_limited_api=ABI3, **options
        )

    made = []
    if not SKIP_CPU:
        sources = sorted(glob("csrc/cpu/*.cpp"))
        made.append(extension("_C", sources, libraries=["torch_cpu"], optional=CPU != "1", language="c++"))
    if not SKIP_CUDA:
        made.append(extension("_C_sm90", sorted(glob("csrc/cuda/*.cu")), optional=CUDA != "1"))
    return made


setup(
    packages=[*find_namespace_packages(include=["liif_fast", "liif_fast.*"]), "liif_fast.kernels"],
    package_dir={"liif_fast.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if ABI3 and not (SKIP_CPU and SKIP_CUDA) else {},
    # An isolated build into an environment without torch brings one to compile against.
    setup_requires=["torch>=2.10"] if not (TORCH or (SKIP_CPU and SKIP_CUDA)) else [],
)
