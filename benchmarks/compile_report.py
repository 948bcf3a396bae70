"""Report registers, shared memory, spills and matrix instructions of every compiled Triton kernel, without a GPU.

    python benchmarks/compile_report.py [--json FILE] [--arch 90 ...] [--case NAME ...]

The launchers in kernels/ are called unchanged on small CPU tensors, with kernels that record their arguments instead of
running, so the report cannot drift from the real launches. Each launch is compiled for each architecture in a process
of its own, because a compiler may abort. The exit code is 1 if a kernel has a fault (`faults`): for example, it spills,
lacks matrix instructions, contracts the corner plan, or may overwrite what a product still reads.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.cache import triton_key

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import audit_plan, audit_ptx
from benchmarks.kernel_source import digest
from liif_fast.kernels import (
    attend_corners,
    backward,
    decode,
    fourier_decode,
    fused_mlp,
    gather_corners,
    host,
    project,
    render,
    scatter,
)

SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}  # bytes of a block, at most
MODULES = (attend_corners, backward, decode, fourier_decode, fused_mlp, gather_corners, project, render, scatter)
NO_MATRIX = ("gather_kernel", "atomic_kernel", "segment_kernel", "waves_back_kernel", "attention_back_kernel")
# Kernels with a corner plan, beside chain_kernel with the constant PLAN.
PLANS = ("gather_kernel", "decode_kernel", "render_kernel", "fourier_kernel", "attend_kernel")
# Operands, and whether a float32 product may be rounded once.
PRECISIONS = {"fp16": (torch.float16, False), "bf16": (torch.bfloat16, False), "tf32": (torch.float32, True),
              "tf32x3": (torch.float32, False)}  # fmt: skip
FEW = 4  # two-byte accesses that a kernel's text may have, for a few numbers per row
# The fastest matrix instructions. Strict float32 may take HMMA, because HGMMA needs 64 rows, which spill there.
FASTEST = {90: "HGMMA", 100: "UTCMMA"}
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64"}


class Launch(NamedTuple):
    """Describe a kernel's launch."""

    name: str  # of the kernel
    case: str
    precision: str
    kernel: Any
    arguments: dict[str, Any]  # without tensors: their types
    options: dict[str, Any]


class Recorder:
    """Stand in for a kernel and record its launches."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, dict[str, Any], dict[str, Any]]]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*args: Any, **named: Any) -> None:
            names = self.kernel.arg_names
            arguments = {**dict(zip(names, args, strict=False)), **{k: v for k, v in named.items() if k in names}}
            options = {k: v for k, v in named.items() if k not in names}
            self.launches.append((self.kernel, arguments, options))

        return launch


@contextlib.contextmanager
def recording(arch: int, tf32: bool) -> Iterator[list[Any]]:
    """Record launches as on a GPU of compute capability arch / 10."""
    launches: list[Any] = []
    replaced = [(host, "architecture", host.architecture), (host, "tf32_allowed", host.tf32_allowed)]
    for module in MODULES:
        replaced += [(module, name, value) for name, value in vars(module).items() if name.endswith("_kernel")]
    try:
        host.architecture, host.tf32_allowed = lambda device: arch, lambda: tf32
        for module, name, value in replaced[2:]:
            setattr(module, name, Recorder(value, launches))
        yield launches
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


def run_case(case: str, dtype: torch.dtype) -> None:
    """Call an operator's launchers for a real network: C = 64, all switches on, 256 x 4 with 3 outputs by default.

    A case's name is operator-width-outputs-layers-corners.
    """
    given = case.split("-")
    if given[0] == "attend_corners":
        if dtype == torch.float32:  # in which it always computes
            run_attend(*map(int, given[1:]))
        return
    name, *numbers = given + ["256", "3", "4", "4"][len(given) - 1 :]
    width, outs, layers, corners = map(int, numbers)
    hidden, ensemble = [width] * layers, corners == 4
    feat, coord, cell = torch.zeros(1, 64, 6, 6, dtype=dtype), torch.zeros(1, 64, 2), torch.zeros(1, 64, 2)
    widths = [580, *hidden, outs]
    weights = [torch.zeros(outs, ins, dtype=dtype) for ins, outs in itertools.pairwise(widths)]
    biases = [torch.zeros(outs, dtype=dtype) for outs in widths[1:]]
    if name == "project":
        p = project.project(feat, weights[0], biases[0], True, (0, 0, 6, 6))
        project.project_backward(p.float(), feat, weights[0], True, 0, 0, (True, True, True))
    elif name == "gather_corners":
        x, _ = gather_corners.gather_corners(feat, coord, cell, True, True)
        gather_corners.gather_corners_backward(x, coord, 64, 6, 6, True, True)
    elif name == "fused_mlp":
        x = torch.zeros(64, 580, dtype=dtype)
        fused_mlp.fused_mlp(x, weights, biases, (layers, 0, width))
        out, saved = fused_mlp.fused_mlp(x, weights, biases, (layers, 32, width))
        fused_mlp.fused_mlp_backward(out, x, weights, biases, saved, [True] * (1 + 2 * len(weights)))
    elif name == "fourier_decode":
        p, phase = torch.zeros(1, 6, 6, 2 * width), torch.zeros(width // 2, 2)
        weights[0] = torch.zeros(width, width, dtype=dtype)
        where = p, coord, cell, phase, weights, biases
        fourier_decode.fourier_decode(*where, (0, 0, 6, 6), (layers, 0, width))
        out, saved = fourier_decode.fourier_decode(*where, (0, 0, 6, 6), (layers, 128, width))
        fourier_decode.fourier_decode_backward(out, *where, saved, [True] * (3 + 2 * len(weights)))
    elif name == "decode":
        p = torch.zeros(1, 6, 6, width, dtype=dtype)
        decode.decode(p, coord, cell, weights, biases, ensemble, (layers, 0, width))
        out, saved = decode.decode(p, coord, cell, weights, biases, ensemble, (layers, 32 * corners, width))
        wanted = [True] * (1 + 2 * len(weights))
        for deterministic in (False, True):
            with deterministic_algorithms(deterministic):
                decode.decode_backward(out, p, coord, cell, weights, biases, saved, ensemble, wanted)
    elif name == "render":
        p = torch.zeros(1, 6, 6, width, dtype=dtype)
        grid = (6, 6, 0, 0, 24, 24, 0, 0, 24, 24)
        for rows in (0, 128):
            render.render(p, cell[:, 0], weights, biases, ensemble, grid, (), (layers, rows, width))


def run_attend(depth: int = 1, heads: int = 8, width: int = 64) -> None:
    """Call the launchers of attend_corners for ILN's network by default; a name is attend_corners-depth-heads-width."""
    table = torch.zeros(36, (4 * width + 3 if depth else 4) + 1)
    layers = [torch.zeros(width, width + 1) for _ in range(4 * depth)]
    layers[3::4] = [torch.zeros(3 * width if i < depth - 1 else 1, width + 1) for i in range(depth)]
    rest = table, torch.zeros(3, table.shape[1]), layers, [torch.zeros(1, 64, 2)], (1, 6, 6), False, heads
    out, weight = attend_corners.attend_corners(*rest)
    attend_corners.attend_corners_backward(out, weight, *rest, [True] * (2 + len(layers)))


@contextlib.contextmanager
def deterministic_algorithms(on: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on)
    yield
    torch.use_deterministic_algorithms(before)


def launches_of(case: str, precision: str, arch: int) -> list[Launch]:
    """Return every different launch of a case on an architecture."""
    dtype, tf32 = PRECISIONS[precision]
    with recording(arch, tf32) as recorded:
        run_case(case, dtype)
    found = {}
    for kernel, arguments, options in recorded:
        launch = Launch(kernel.fn.__name__, case, precision, kernel, without_tensors(kernel, arguments), options)
        found[str((launch.name, launch.arguments, options))] = launch
    return list(found.values())


def without_tensors(kernel: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Replace arguments by their types, except the constants that a kernel is compiled with."""
    plain = {}
    for parameter in kernel.params:
        value = arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            plain[parameter.name] = f"*{TYPES[value.dtype]}"
        elif parameter.is_constexpr:
            plain[parameter.name] = value
        else:
            plain[parameter.name] = float if isinstance(value, float) else int
    return plain


def source_of(launch: Launch) -> ASTSource:
    """Return what Triton compiles: pointers are aligned unless the kernel waives it, and sizes are arbitrary."""
    assert launch.options["enable_fp_fusion"] is False, f"{launch.name} may be contracted, or Triton 3.9 warns"
    signature, constants, attributes = {}, {}, {}
    for at, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(at,)] = "constexpr", value
        elif value in (int, float):
            signature[parameter.name] = "i32" if value is int else "fp32"
            assert value is float or parameter.do_not_specialize, (
                f"{launch.name} is compiled anew for each {parameter.name}"
            )
        else:
            signature[parameter.name] = value
            if not parameter.do_not_specialize_on_alignment:
                attributes[(at,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def compiled(launch: Launch, arch: int) -> Any:
    """Compile a kernel as the launch would."""
    target = GPUTarget("cuda", arch, 32)
    triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: target))  # for `lacks_fence`
    return triton.compile(source_of(launch), target=target, options=launch.options)


def inspect(launch: Launch, arch: int) -> dict[str, Any]:
    """Compile a launch, and return the facts about its binary and the warnings of ptxas."""
    triton.knobs.nvidia.dump_ptxas_log = triton.knobs.compilation.always_compile = True
    with contextlib.redirect_stdout(StringIO()) as log:
        kernel = compiled(launch, arch)
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [tools / "cuobjdump", "-res-usage", "-sass", file.name]
        dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = Counter(
        re.sub(r"^UTC\w*MMA$", "UTCMMA", name) for name in re.findall(r"\b(?:HGMMA|UTC\w*MMA|HMMA)\b", dump)
    )
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", dump).groups())
    return {
        "registers": registers,
        "shared_bytes": kernel.metadata.shared,
        "spill_bytes": stack + local,
        "matrix_instructions": sum(found.values()),
        "instructions": dict(found),  # UTCMMA stands for UTCHMMA and the like on sm_100
        "warnings": sorted(set(re.findall(r"\bC75\d\d\b", log.getvalue()))),
        "shuffles": kernel.asm["ptx"].count("shfl.sync"),
        "long_divisions": len(re.findall(r"\b(?:div|rem)\.[su]64", kernel.asm["ptx"])),
        "narrow_accesses": len(re.findall(r"(?:ld|st)\.global[.\w]*\.b16", kernel.asm["ptx"])),
        "unordered_writes": audit_ptx.unordered_writes(kernel.asm["ptx"], kernel.metadata.num_warps),
        "plan_fma": len(audit_plan.contractions(dump)) if launch.name in PLANS or launch.arguments.get("PLAN") else 0,
    }


def described(launch: Launch) -> str:
    """Return the configuration in one line: the constants and options that distinguish launches."""
    names = ("ROWS", "BLOCK", "BLOCKS", "DEPTH", "WIDEST", "LAYERS", "SAVE", "KEEP", "WRITE", "PLAN", "TAPS")
    parts = [f"{name.lower()}={launch.arguments[name]}" for name in names if name in launch.arguments]
    parts += [f"{name}={launch.options[name]}" for name in ("num_warps", "num_stages") if name in launch.options]
    return " ".join([launch.case, launch.precision, *parts])


def multiplies(launch: Launch) -> bool:
    """Return whether a launch has a matrix product; with one hidden layer, some have none."""
    values = launch.arguments
    if launch.name == "chain_kernel":
        return values["LAYERS"] > 0 or values["OUT"] > host.FEW.value
    if launch.name == "decode_kernel":
        return values["LAYERS"] > 0 or values["WRITE"]
    if launch.name.startswith("attend"):
        return values["DEPTH"] > 0
    return launch.name not in NO_MATRIX


def report_one(launch: Launch, arch: int) -> dict[str, Any]:
    """Inspect a launch in a process of its own, and return its entry of the report."""
    triton_key()  # hashes Triton's files, once for all processes
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def work() -> None:
        try:
            theirs.send(inspect(launch, arch))
        except Exception as error:
            theirs.send({"error": f"{type(error).__name__}: {error}"[:500]})

    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = {"error": "the compiler aborted"}
    process.join()
    head = {"kernel": launch.name, "arch": f"sm_{arch}", "config": described(launch)}
    return {**head, "matrix": multiplies(launch), **found, "source": digest(launch.kernel)}


def faults(entry: dict[str, Any]) -> list[str]:
    """Return the faults of an entry of the report."""
    if "error" in entry:
        return [entry["error"]]
    arch, wrong = int(entry["arch"][3:]), []
    if entry["spill_bytes"]:
        wrong.append(f"spills {entry['spill_bytes']} bytes")
    if entry["shared_bytes"] > SHARED_LIMIT[arch]:
        wrong.append(f"needs {entry['shared_bytes']} bytes of shared memory, of {SHARED_LIMIT[arch]}")
    if entry["matrix"] and not entry["matrix_instructions"]:
        wrong.append("multiplies matrices without matrix instructions")
    if entry["matrix"] and arch in FASTEST and " tf32x3 " not in entry["config"]:
        if not entry["instructions"].get(FASTEST[arch]):
            wrong.append(f"multiplies matrices without {FASTEST[arch]}")
    if entry.get("narrow_accesses", 0) > FEW and entry["matrix"]:
        wrong.append(f"accesses global memory two bytes at a time in {entry['narrow_accesses']} places")
    if " blocks=1 " not in entry["config"]:  # small networks have only one form
        wrong += [f"ptxas serialises its products: {each}" for each in entry.get("warnings", ())]
    wrong += [f"overwrites shared memory unordered: {each}" for each in entry.get("unordered_writes", ())]
    if entry["plan_fma"]:
        wrong.append(f"has {entry['plan_fma']} fused multiply-adds in the plan")
    return wrong


CASES = ("decode", "render", "fused_mlp", "fourier_decode", "attend_corners", "gather_corners", "project")


def report(arches: list[int], cases: list[str], precisions: list[str]) -> Iterator[dict[str, Any]]:
    """Yield an entry for each kernel, configuration and architecture."""
    for arch in arches:
        for case in cases:
            for precision in precisions:
                for launch in launches_of(case, precision, arch):
                    yield report_one(launch, arch)


def line(entry: dict[str, Any], wrong: list[str]) -> str:
    """Return an entry as text."""
    names = ("registers", "shared_bytes", "spill_bytes", "matrix_instructions")
    numbers = " ".join(f"{name} {entry[name]}" for name in names if name in entry)
    return " | ".join(
        [f"{entry['kernel']} {entry['arch']} {entry['config']}", numbers, *(f"WRONG: {each}" for each in wrong)]
    )


def main(options: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--arch", type=int, nargs="+", default=list(host.ARCHITECTURES), help="default: all")
    parser.add_argument("--case", nargs="+", default=list(CASES), help="operators, optionally with a width: decode-64")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    arguments = parser.parse_args(options)
    print(f"Triton {triton.__version__}")
    return written(report(arguments.arch, arguments.case, arguments.precision), arguments.json)


def written(found: Iterable[dict[str, Any]], to: Path | None) -> int:
    """Print entries, write them to a file if one is given, and return the exit code."""
    entries, code = [], 0
    for entry in found:
        wrong = faults(entry)
        code = 1 if wrong else code
        entries.append({**entry, "triton": triton.__version__})
        print(line(entry, wrong), flush=True)
    if to:
        to.write_text("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
