"""Compile csrc/ for setup.py, with flags for each file, through ninja, so that only changed files compile again.

It reads LIIF_FAST_WERROR=1, LIIF_FAST_SANITIZE=1 and MAX_JOBS.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools.errors import CompileError

MSVC = sys.platform == "win32"
X86 = platform.machine().lower() in ("x86_64", "amd64")
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded Pythons have no limited API
WERROR, SANITIZE = (os.environ.get(f"LIIF_FAST_{name}") == "1" for name in ("WERROR", "SANITIZE"))

MACROS = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
if ABI3:
    MACROS.append("-DPy_LIMITED_API=0x030a0000")
# The compiler may not fuse the plan's float32 operations, because they are a contract; the micro-kernels fuse theirs.
if MSVC:
    FLAGS = ["/O2", "/std:c++17", "/fp:precise", "/EHsc", "/W3"]
    KERNEL_FLAGS = {
        "kernel_portable": ["/fp:contract"],
        "kernel_avx2": ["/arch:AVX2"],
        "kernel_avx512": ["/arch:AVX512"],
        "kernel_avx512bf16": ["/arch:AVX512"],
    }
else:
    AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]
    FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=off"]
    KERNEL_FLAGS = {
        "kernel_portable": ["-ffp-contract=fast"],
        "kernel_avx2": ["-mavx2", "-mfma"],
        "kernel_avx512": AVX512,
        "kernel_avx512bf16": [*AVX512, "-mavx512bf16"],
        "kernel_amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    }
if not X86:  # elsewhere the other files only report that they are empty
    KERNEL_FLAGS = {"kernel_portable": KERNEL_FLAGS["kernel_portable"]}
HOST_FLAGS = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-gencode", "arch=compute_90a,code=sm_90a"]
if WERROR:
    FLAGS.append("/WX" if MSVC else "-Werror")
    HOST_FLAGS.append("-Werror")
    NVCC_FLAGS += ["-Werror", "all-warnings"]
if SANITIZE:
    FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g"]
NVCC_FLAGS += ["-Xcompiler", ",".join(HOST_FLAGS)]


def own_flags(source: str) -> list[str]:
    """Return the flags that only this source file is compiled with."""
    return KERNEL_FLAGS.get(Path(source).stem, [])


def leave_out_amx(compiler: list[str]) -> dict[str, str]:
    """Let the AMX file compile to nothing if the compiler or its assembler is too old for it, and say so."""
    flags = KERNEL_FLAGS.get("kernel_amx")
    if not flags:
        return {}
    code = '#include <immintrin.h>\nvoid f() { _tile_dpbf16ps(0, 1, 2); __asm__("tilerelease"); }\n'
    with tempfile.TemporaryDirectory() as folder:
        trial = [*compiler, *flags, "-x", "c++", "-c", "-o", f"{folder}/trial.o", "-"]
        if subprocess.run(trial, input=code, capture_output=True, text=True).returncode == 0:
            return {}
    del KERNEL_FLAGS["kernel_amx"]
    return {"amx": f"left out, {Path(compiler[0]).name} does not know it"}


def run_ninja(library: Path, sources: list[str], compiler: list[str], linker: list[str], libraries: list[str]) -> None:
    """Build the library from the sources by ninja, keeping all intermediate files in the library's folder.

    ninja compiles a source again if it, a header that it includes, or the command has changed.

    Raises:
        CompileError: a command failed; the message is its first error.
    """
    from ninja import BIN_DIR, Writer, escape  # BIN_DIR is "" in an isolated build: ninja is on the path

    folder = library.parent
    folder.mkdir(parents=True, exist_ok=True)
    tool = Path(compiler[0]).name
    compiler, linker, libraries = (escape(shlex.join(part)) for part in (compiler, linker, libraries))
    with open(folder / "build.ninja", "w") as file:
        ninja = Writer(file, width=sys.maxsize)  # a wrapped line would lose spaces of a path
        ninja.variable("builddir", escape(str(folder)))
        ninja.rule("compile", f"{compiler} $flags -MD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        ninja.rule("link", f"{linker} $in {libraries} -o $out")
        objects = []
        for source in sources:
            variables = {"flags": shlex.join(own_flags(source))}
            objects += ninja.build(f"{folder}/{Path(source).stem}.o", "compile", source, variables=variables)
        ninja.build(str(library), "link", objects)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
    command = [os.path.join(BIN_DIR, "ninja"), "--quiet", "-j", jobs, "-f", file.name]
    made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    print(made.stdout, end="", file=sys.stderr)
    if made.returncode:
        error = re.search(r".*\b(error|fatal) *:.*", made.stdout)
        why = error[0].strip() if error else f"exit {made.returncode}"
        raise CompileError(f"{tool} failed: {why}")
