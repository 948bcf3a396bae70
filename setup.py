"""Build what a compiler is found for, on LibTorch's stable ABI: csrc/cpu as liif_fast/_C, csrc/cuda as _C_sm90.

Environment: LIIF_FAST_BUILD_CPU and LIIF_FAST_BUILD_CUDA (auto, 0, 1), LIIF_FAST_WERROR=1, LIIF_FAST_SANITIZE=1,
MAX_JOBS, CXX. auto falls back to pure Python and says why; 1 fails instead. torch is located, never imported.
"""

import hashlib
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
from setuptools.errors import CompileError

try:
    from ninja import BIN_DIR, Writer, escape
except ImportError:
    NINJA = None
else:  # BIN_DIR is "" where pip isolates the build: there it is on the path
    NINJA = shutil.which(os.path.join(BIN_DIR, "ninja"))

MODULES = {"cpu": "_C", "cuda": "_C_sm90"}
LABELS = {"cpu": "C++", "cuda": "CUDA"}
MSVC = sys.platform == "win32"  # setuptools finds and runs it; elsewhere ninja runs the compiler
X86 = platform.machine().lower() in ("x86_64", "amd64")
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded Pythons have no limited API
WERROR, SANITIZE = (os.environ.get(f"LIIF_FAST_{name}") == "1" for name in ("WERROR", "SANITIZE"))

# The plan's float32 operations are a contract, so the compiler may fuse none of them; the micro-kernels fuse theirs.
if MSVC:
    FLAGS = ["/O2", "/std:c++17", "/fp:precise", "/EHsc", "/W3", *(["/WX"] if WERROR else [])]
    KERNELS = {"portable": ["/fp:contract"], "avx2": ["/arch:AVX2"], "avx512": ["/arch:AVX512"]}
else:
    FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=off"]
    FLAGS += ["-Werror"] if WERROR else []
    AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]
    KERNELS = {"portable": ["-ffp-contract=fast"], "avx2": ["-mavx2", "-mfma"], "avx512": AVX512}
if not X86:  # elsewhere the other two files are empty but for saying so
    del KERNELS["avx2"], KERNELS["avx512"]
SANITIZERS = ["-fsanitize=address,undefined"] if SANITIZE else []
FLAGS += [*SANITIZERS, "-fno-sanitize-recover=all", "-O1", "-g"] if SANITIZE else []
KERNEL_FLAGS = {f"kernel_{name}": flags for name, flags in KERNELS.items()}
HOST = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas", *(["-Werror"] if WERROR else [])]
NVCC_FLAGS = ["-O3", "-std=c++17", "-gencode", "arch=compute_90a,code=sm_90a", "-Xcompiler", ",".join(HOST)]
NVCC_FLAGS += ["-Werror", "all-warnings"] if WERROR else []
MACROS = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
MACROS += ["-DPy_LIMITED_API=0x030a0000"] if ABI3 else []


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
    command = ["cl"] if MSVC else shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    return command if MSVC or shutil.which(command[0]) else []


def find_nvcc() -> str | None:
    """Return nvcc: CUDACXX and nothing else if it is set, CUDA_HOME's, on the path, or where Linux installs it."""
    if wish := os.environ.get("CUDACXX"):
        return shutil.which(wish)
    homes = filter(None, map(os.environ.get, ("CUDA_HOME", "CUDA_PATH")))
    candidates = [*(f"{home}/bin/nvcc" for home in homes), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, candidates)), None)


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
        "no ninja found (pip install ninja)": not MSVC and not NINJA,
        f"torch >= 2.10 is needed for its stable ABI, found {TORCH_VERSION}": TORCH is not None
        and tuple(map(int, TORCH_VERSION.split(".")[:2])) < (2, 10),
    }
    why = next((reason for reason, holds in reasons.items() if holds), "")
    if why and wish == "1":
        sys.exit(f"{switch}=1, but the {LABELS[part]} kernels cannot be built: {why}")
    return why


TORCH, TORCH_VERSION = find_torch()
SKIPPED = {part: why_not(part) for part in MODULES}


def write_info(package: str, outcome: dict[str, dict]) -> None:
    """Write how each part was built, or why not, into the package for `liif-fast info`."""
    for part, how in outcome.items():
        if not how["built"]:
            print(f"liif-fast: {LABELS[part]} kernels skipped: {how['why']}", file=sys.stderr)
    info = {"torch": TORCH_VERSION, "python": platform.python_version(), **outcome}
    Path(package).mkdir(parents=True, exist_ok=True)
    Path(package, "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.distribution.ext_modules:
            package = "liif_fast" if self.editable_mode else os.path.join(self.build_lib, "liif_fast")
            write_info(package, {part: {"built": False, "why": why} for part, why in SKIPPED.items()})

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [m for m in modules if m[:2] != ("liif_fast", "kernels")]  # only for a source tree


class BuildExt(build_ext):
    """Compile each file with the flags of its instruction set, in parallel, and only what changed."""

    def run(self) -> None:
        self.outcome = {part: {"built": False, "why": why} for part, why in SKIPPED.items()}
        super().run()
        package = "liif_fast" if self.inplace else os.path.join(self.build_lib, "liif_fast")
        for part, how in self.outcome.items():
            if not how["built"]:
                for stale in Path(package).glob(f"{MODULES[part]}.*"):  # an earlier build left it
                    stale.unlink()
        write_info(package, self.outcome)

    def build_extension(self, ext: Extension) -> None:
        part = next(part for part, module in MODULES.items() if ext.name == f"liif_fast.{module}")
        try:
            if TORCH is None:
                raise FileNotFoundError("no torch to compile against")
            how = self.describe(part)
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.run_msvc if MSVC else self.run_ninja)(ext, part, how, target)
            self.outcome[part] = {"built": True, **how}
        except Exception as error:
            if not ext.optional:
                raise
            self.outcome[part] = {"built": False, "why": f"{type(error).__name__}: {error}"}

    def describe(self, part: str) -> dict:
        """Return the compiler and its flags, as `liif-fast info` shows them."""
        flags = {"flags": FLAGS, "kernels": KERNEL_FLAGS} if part == "cpu" else {"flags": NVCC_FLAGS}
        if MSVC:
            return {"compiler": "MSVC", **flags}
        command = [*(find_compiler() if part == "cpu" else [find_nvcc()]), "--version"]
        version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()
        return {"compiler": version[0 if part == "cpu" else -1], **flags}

    def run_msvc(self, ext: Extension, part: str, how: dict, target: Path) -> None:
        objects = []
        for source in ext.sources:
            flags = [*MACROS, *how["flags"], *KERNEL_FLAGS.get(Path(source).stem, [])]
            places = {"output_dir": self.build_temp, "include_dirs": [*self.include_dirs, str(TORCH / "include")]}
            objects += self.compiler.compile([source], extra_postargs=flags, **places)
        self.compiler.link_shared_object(
            objects,
            str(target),
            libraries=["torch_cpu", *self.get_libraries(ext)],
            library_dirs=[*self.library_dirs, str(TORCH / "lib")],
            export_symbols=self.get_export_symbols(ext),
            build_temp=self.build_temp,
            target_lang="c++",
        )

    def run_ninja(self, ext: Extension, part: str, how: dict, target: Path) -> None:
        """Compile and link what changed; each compiler and each set of flags has its own folder of objects."""
        key = json.dumps([how["compiler"], how["flags"]])
        folder = Path(self.build_temp, hashlib.sha256(key.encode()).hexdigest()[:8])
        if self.force:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        if part == "cpu":
            compiler = [*self.compiler.compiler_so_cxx, *(f"-I{place}" for place in self.include_dirs)]
            linker = [*find_compiler(), *self.compiler.linker_so_cxx[1:], *SANITIZERS]  # its first word ignores CXX
        else:
            compiler = [find_nvcc(), "-ccbin", find_compiler()[0]]
            linker = [*compiler, *how["flags"], "-shared"]
        compiler += [*MACROS, "-isystem", str(TORCH / "include"), *how["flags"]]
        # The linker alone needs torch's folder: without an rpath, because torch is loaded before.
        libraries = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", *(["-ldl"] if part == "cuda" else [])]
        compiler, linker, libraries = (escape(shlex.join(words)) for words in (compiler, linker, libraries))

        library, objects = folder / target.name, []
        with open(folder / "build.ninja", "w") as file:
            ninja = Writer(file, width=sys.maxsize)  # a wrapped line would lose spaces of a path
            ninja.variable("builddir", str(folder))
            ninja.rule("compile", f"{compiler} $flags -MD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
            ninja.rule("link", f"{linker} $in {libraries} -o $out")
            for source in ext.sources:
                flags = shlex.join(KERNEL_FLAGS.get(Path(source).stem, []))
                objects += ninja.build(
                    str(folder / f"{Path(source).stem}.o"), "compile", source, variables={"flags": flags}
                )
            ninja.build(str(library), "link", objects)
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        command = [NINJA, "--quiet", "-f", str(folder / "build.ninja"), *jobs]
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        print(made.stdout, end="", file=sys.stderr)
        if made.returncode:
            why = re.search(r".*\b(error|fatal) *:.*", made.stdout)
            tool = "nvcc" if part == "cuda" else Path(find_compiler()[0]).name
            raise CompileError(f"{tool} failed: {why[0].strip() if why else f'exit {made.returncode}'}")
        shutil.copy(library, target)


def extension(part: str) -> Extension:
    optional = os.environ.get(f"LIIF_FAST_BUILD_{part.upper()}") != "1"
    sources = sorted(glob(f"csrc/{part}/*.c*"))
    return Extension(f"liif_fast.{MODULES[part]}", sources, optional=optional, language="c++", py_limited_api=ABI3)


EXTENSIONS = [extension(part) for part, why in SKIPPED.items() if not why]
setup(
    packages=[*find_namespace_packages(include=["liif_fast", "liif_fast.*"]), "liif_fast.kernels"],
    package_dir={"liif_fast.kernels": "kernels"},
    ext_modules=EXTENSIONS,
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if ABI3 and EXTENSIONS else {},
    # An isolated build into an environment without torch brings one to compile against.
    setup_requires=["torch>=2.10"] if EXTENSIONS and not TORCH else [],
)
