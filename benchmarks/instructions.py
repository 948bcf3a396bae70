"""Count the instructions of the CPU kernels, which noise does not change: python -m benchmarks.instructions.

valgrind's callgrind counts them with one thread and AVX2. A test keeps the counts within 5 % of instructions.json. The
test counts again only if the sources have changed since. After a deliberate change, or so that later runs need not
count:

    python -m benchmarks.instructions --accept

valgrind has no AVX-512. For the kernels in bfloat16 the instructions in the compiled functions are counted instead
(`sizes`). A register tile that spills, or a loop that is no longer vectorised, has more of them.

Counts belong to a compiler and to the C library under valgrind; with another compiler the test only warns. Counts
reveal additional work, but nothing about caches or instructions per cycle. The benchmarks measure time.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import liif_fast
from benchmarks.instructions_driver import WANTED

ROOT = Path(__file__).parents[1]
ACCEPTED = ROOT / "benchmarks" / "instructions.json"
ALLOWED = 0.05
ISA = "avx2"
# The operators of csrc/cpu/operators.h that the driver calls, and those that it calls once for each entry of WANTED.
OPERATORS = ("project", "decode", "decode_backward", "render", "gather_corners", "fused_mlp", "conv3x3")
FORWARD = ("decode", "fourier_decode", "modulated_decode", "fused_mlp", "attend_corners", "conv3x3")
BACKWARD = tuple(f"{each}_backward" for each in FORWARD)
ALIKE = "rows alike"  # the driver's second dump: csrc/cpu/terms_impl.h
COUNTED = (*OPERATORS, f"fused_mlp: {ALIKE}", *(f"{operator}: {which}" for which in WANTED for operator in BACKWARD))
# The functions of kernel_avx512bf16.cpp: of the register tile, only the whole one, with packed and with other weights.
LOW = (
    r"tile<liif::Bf16, [\w:]+, 12, (?:2, false|1, true)>|multiply_terms<liif::Bf16, [\w:]+>|sum_rows<liif::Bf16>"
    r"|affine_of<\d>|narrow|widen|pair_rows"
)
SWITCH = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void stop(void) { CALLGRIND_STOP_INSTRUMENTATION; }
void dump(void) { CALLGRIND_DUMP_STATS; }
"""


def missing() -> str:
    """Return why counting is impossible here; "" if it is possible."""
    if not shutil.which("valgrind"):
        return "valgrind is not installed (Debian: apt-get install valgrind)"
    if not build():
        return "the C++ kernels are not built"
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):  # AVX2 or AVX512
        return f"this processor has no {ISA}"
    with tempfile.TemporaryDirectory() as folder:
        return "" if _switch(Path(folder)) else "there is no C compiler `cc`, or it does not find valgrind/callgrind.h"


def _switch(folder: Path) -> Path | None:
    """Build the library that turns counting on and off; None if that fails."""
    source, library = folder / "switch.c", folder / "switch.so"
    source.write_text(SWITCH)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return library


def build() -> dict[str, Any]:
    """Return the compiler, flags and instruction set that counts belong to; {} if the kernels are not built."""
    path = Path(liif_fast.__file__).with_name("_build_info.json")
    how = json.loads(path.read_text()).get("cpu", {}) if path.exists() else {}
    if not how.get("built"):
        return {}
    flags = [flag for flag in how["flags"] if not flag.startswith("-W")]
    return {"compiler": how["compiler"], "flags": " ".join(flags), "isa": ISA}


def sources() -> str:
    """Return a fingerprint of the kernels, their callers and PyTorch, on which the counts depend beside the build."""
    found = hashlib.sha256(torch.__version__.encode())
    callers = ("functional.py", "backends/*.py", "ops/*.py")
    patterns = ("csrc/cpu/*", *(f"liif_fast/{each}" for each in callers), "benchmarks/instructions*.py")
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def parse(annotated: str) -> dict[str, int]:
    """Return the instructions of each operator, callees included, from callgrind_annotate's list of functions."""
    found = re.findall(r"^ *([\d,]+) .*?[ :]liif::(\w+)\(", annotated, re.MULTILINE)
    return {operator: int(number.replace(",", "")) for number, operator in found if operator in OPERATORS + BACKWARD}


def count() -> dict[str, int]:
    """Return the instructions of each operator over the calls of instructions_driver.py, by the names of COUNTED.

    Raises:
        RuntimeError: valgrind or the calls inside it failed.
    """
    with tempfile.TemporaryDirectory(prefix="liif_fast-instructions-") as name:
        folder = Path(name)
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
        done = subprocess.run(
            [*command, sys.executable, "-m", "benchmarks.instructions_driver", str(_switch(folder))],
            cwd=ROOT,
            env={**os.environ, "LIIF_FAST_CPU_ISA": ISA, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"callgrind ended with {done.returncode}:\n{done.stderr[-2000:]}")
        counts = {}
        for number, which in enumerate(("", ALIKE, *WANTED), 1):  # the driver's dumps
            annotate = ["callgrind_annotate", "--inclusive=yes", "--threshold=100", f"{folder}/out.{number}"]
            found = parse(subprocess.run(annotate, check=True, capture_output=True, text=True).stdout)
            counts |= {f"{operator}: {which}" if which else operator: value for operator, value in found.items()}
    if set(counts) != set(COUNTED):
        raise RuntimeError(f"callgrind counted {counts}, expected a count of each of {', '.join(COUNTED)}")
    return counts


def sizes(disassembly: str) -> dict[str, int]:
    """Return the instructions of each function for bfloat16, from the output of `disassemble`."""
    found = {}
    for function in disassembly.split("\n\n"):
        head, _, body = function.partition("\n")
        name = re.search(rf"::({LOW})\(.*liif::Bf16\b", head)
        if name:
            found[name[1].replace("liif::", "")] = len(body.splitlines())
    return found


def disassemble() -> str:
    """Return the extension's instructions, one a line; "" without binutils."""
    library = next(Path(liif_fast.__file__).parent.glob("_C.*"), None)
    if library is None or not shutil.which("objdump"):
        return ""
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", library]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compare(counts: dict[str, int], accepted: dict[str, int]) -> list[str]:
    """Return a line for each count that differs by more than 5 % from the accepted one, or exists on one side only."""
    lines = []
    for operator in dict.fromkeys((*accepted, *counts)):
        before, after = accepted.get(operator), counts.get(operator)
        if before is None or after is None:
            lines.append(f"{operator}: {before} accepted, {after} counted")
        elif abs(after - before) > ALLOWED * before:
            lines.append(f"{operator}: {after:,} instructions, {after / before - 1:+.1%} from the {before:,} accepted")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__.split("\n")[0])
    parser.add_argument("--accept", action="store_true", help="write the counts into instructions.json")
    args = parser.parse_args()
    if why := missing():
        parser.exit(1, f"error: {why}\n")
    if not (low := sizes(disassemble())) and args.accept:
        parser.exit(1, "error: --accept needs objdump to find the kernels' sizes (Debian: apt-get install binutils)\n")
    counts, accepted = count(), json.loads(ACCEPTED.read_text())
    for operator, found in (counts | low).items():
        before = (accepted["counts"] | accepted.get("sizes", {})).get(operator)
        print(f"{operator:<38}{found:>14,}" + (f"  {found / before - 1:+.2%}" if before else "  new"))
    if args.accept:
        found = {**build(), "sources": sources(), "counts": counts, "sizes": low}
        ACCEPTED.write_text(json.dumps(found, indent=2) + "\n")
        print(f"accepted: {ACCEPTED.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
