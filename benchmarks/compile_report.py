"""Report registers, shared memory, spills and matrix instructions of every compiled Triton kernel, without a GPU.

    python benchmarks/compile_report.py [--json FILE] [--arch 90 ...] [--case NAME ...]
    python benchmarks/compile_report.py --write [--arch 90 ...]

The launchers in kernels/ are called unchanged on small CPU tensors, with kernels that record their arguments instead of
running. So the report cannot drift from the real launches. Each record is compiled for each architecture in a process
of its own, because a compiler may abort. The exit code is 1 if a kernel spills, lacks matrix instructions, needs more
shared memory than the architecture has, contracts the corner plan, or may overwrite what a product still reads.
`--write` searches for forms without these faults and writes them to the table kernels/forms.py for the running version
of Triton.
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
from collections.abc import Callable, Iterator
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
from liif_fast.kernels import (
    attend_corners,
    backward,
    decode,
    fourier_decode,
    fused_mlp,
    gather_corners,
    host,
    project,  # fmt: skip
    render,
    scatter,
)

SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}  # bytes that a block may have
MODULES = (attend_corners, backward, decode, fourier_decode, fused_mlp, gather_corners, project, render, scatter)
NO_MATRIX = ("gather_kernel", "atomic_kernel", "segment_kernel", "waves_back_kernel")
PLANS = ("gather_kernel", "decode_kernel", "render_kernel")  # and the gradients' kernel with the constant PLAN
# Operands, and whether a float32 product may be rounded once.
PRECISIONS = {"fp16": (torch.float16, False), "bf16": (torch.bfloat16, False), "tf32": (torch.float32, True),
              "tf32x3": (torch.float32, False)}  # fmt: skip
# Forms to try, in this order: rows, column block, warps, stages. Many rows read a weight less often; two tiles of four
# warps hide each other's waits; narrow blocks need few registers.
CANDIDATES = {
    "half": [(64, 64, 4, 2), (128, 128, 8, 2), (64, 64, 8, 2), (32, 64, 4, 2), (32, 64, 8, 2), (32, 32, 4, 2)],
    "tf32": [(64, 64, 8, 2), (64, 32, 8, 2), (64, 64, 8, 1), (64, 32, 8, 1), (64, 16, 8, 2), (32, 64, 8, 2),
             (32, 64, 8, 1), (32, 32, 8, 2), (16, 64, 8, 2), (16, 64, 4, 2), (16, 32, 4, 2)],
    "tf32x3": [(16, 32, 4, 2), (16, 32, 8, 2), (16, 32, 8, 1), (16, 32, 4, 1), (16, 32, 4, 3), (16, 32, 8, 3),
               (64, 32, 8, 2), (16, 16, 4, 2), (64, 16, 8, 2), (16, 16, 8, 2), (16, 16, 4, 1)],
}  # fmt: skip
FEW = 4  # accesses of two bytes that a kernel may have in its text: to a few numbers a row
# The instructions that multiply matrices fastest. Strict float32 may take HMMA: HGMMA needs 64 rows, which spill there.
FASTEST = {90: "HGMMA", 100: "UTCMMA"}
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64"}


class Launch(NamedTuple):
    """A kernel as it was launched."""

    name: str  # of the kernel
    case: str
    precision: str
    kernel: Any
    arguments: dict[str, Any]  # without tensors: their types
    options: dict[str, Any]


class Recorder:
    """Stands in for a kernel and writes down its launches."""

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
    """Call an operator's launchers at a real network: C = 64, all switches on, 256 x 4 with 3 outputs or as named.

    A name is operator-width-outputs-layers-corners.
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
        fused_mlp.fused_mlp_backward(out, x, weights, biases, saved)
    elif name == "fourier_decode":
        p, phase = torch.zeros(1, 6, 6, 2 * width), torch.zeros(width // 2, 2)
        weights[0] = torch.zeros(width, width, dtype=dtype)
        where = p, coord, cell, phase, weights, biases
        fourier_decode.fourier_decode(*where, (0, 0, 6, 6), (layers, 0, width))
        out, saved = fourier_decode.fourier_decode(*where, (0, 0, 6, 6), (layers, 128, width))
        fourier_decode.fourier_decode_backward(out, *where, saved, True)
    elif name == "decode":
        p = torch.zeros(1, 6, 6, width, dtype=dtype)
        decode.decode(p, coord, cell, weights, biases, ensemble, (layers, 0, width))
        out, saved = decode.decode(p, coord, cell, weights, biases, ensemble, (layers, 32 * corners, width))
        for deterministic in (False, True):
            with deterministic_algorithms(deterministic):
                decode.decode_backward(out, p, coord, cell, weights, biases, saved, ensemble, True)
    elif name == "render":
        p = torch.zeros(1, 6, 6, width, dtype=dtype)
        grid = (6, 6, 0, 0, 24, 24, 0, 0, 24, 24)
        for rows in (0, 128):
            render.render(p, cell[:, 0], weights, biases, ensemble, grid, (), (layers, rows, width))


def run_attend(depth: int = 1, heads: int = 8, width: int = 64) -> None:
    """Call the launchers of attend_corners at ILN's network, or as named: attend_corners-depth-heads-width."""
    table = torch.zeros(36, (4 * width + 3 if depth else 4) + 1)
    layers = [torch.zeros(width, width + 1) for _ in range(4 * depth)]
    layers[3::4] = [torch.zeros(3 * width if i < depth - 1 else 1, width + 1) for i in range(depth)]
    rest = table, torch.zeros(3, table.shape[1]), layers, [torch.zeros(1, 64, 2)], (1, 6, 6), False, heads
    out, weight = attend_corners.attend_corners(*rest)
    attend_corners.attend_corners_backward(out, weight, *rest)


@contextlib.contextmanager
def deterministic_algorithms(on: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on)
    yield
    torch.use_deterministic_algorithms(before)


def launches_of(case: str, precision: str, arch: int) -> list[Launch]:
    """Every different kernel that a case launches on an architecture."""
    dtype, tf32 = PRECISIONS[precision]
    with recording(arch, tf32) as recorded:
        run_case(case, dtype)
    found = {}
    for kernel, arguments, options in recorded:
        plain = {}
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor):
                plain[name] = f"*{TYPES[value.dtype]}"
            elif kernel.params[kernel.arg_names.index(name)].is_constexpr:
                plain[name] = value
            else:
                plain[name] = float if isinstance(value, float) else int
        launch = Launch(kernel.fn.__name__, case, precision, kernel, plain, options)
        found[str((launch.name, plain, options))] = launch
    return list(found.values())


def compiled(launch: Launch, arch: int) -> Any:
    """Compile as the launch would have: pointers are aligned but where the kernel waives that, sizes are any."""
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
    source = ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", arch, 32)
    triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: target))  # a kernel asks for it
    return triton.compile(source, target=target, options=launch.options)


def inspect(launch: Launch, arch: int) -> dict[str, Any]:
    """Compile, and read off the binary and what ptxas said of it."""
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
        "instructions": dict(found),  # UTCMMA stands for UTCHMMA and its like, of sm_100
        "warnings": sorted(set(re.findall(r"\bC75\d\d\b", log.getvalue()))),
        "shuffles": kernel.asm["ptx"].count("shfl.sync"),
        "long_divisions": len(re.findall(r"\b(?:div|rem)\.[su]64", kernel.asm["ptx"])),
        "narrow_accesses": len(re.findall(r"(?:ld|st)\.global[.\w]*\.b16", kernel.asm["ptx"])),
        "unordered_writes": audit_ptx.unordered_writes(kernel.asm["ptx"], kernel.metadata.num_warps),
        "plan_fma": len(audit_plan.contractions(dump)) if launch.name in PLANS or launch.arguments.get("PLAN") else 0,
    }


def described(launch: Launch) -> str:
    """The configuration in a line: what of its constants and options tells one launch from another."""
    names = ("ROWS", "BLOCK", "BLOCKS", "DEPTH", "WIDEST", "LAYERS", "SAVE", "KEEP", "WRITE", "PLAN", "TAPS")
    parts = [f"{name.lower()}={launch.arguments[name]}" for name in names if name in launch.arguments]
    parts += [f"{name}={launch.options[name]}" for name in ("num_warps", "num_stages") if name in launch.options]
    return " ".join([launch.case, launch.precision, *parts])


def multiplies(launch: Launch) -> bool:
    """Return whether a kernel has a matrix product: with one hidden layer, few have."""
    values = launch.arguments
    if launch.name == "chain_kernel":
        return values["LAYERS"] > 0 or values["OUT"] > host.FEW.value
    if launch.name == "decode_kernel":
        return values["LAYERS"] > 0 or values["WRITE"]
    if launch.name.startswith("attend"):
        return values["DEPTH"] > 0
    return launch.name not in NO_MATRIX


def report_one(launch: Launch, arch: int) -> dict[str, Any]:
    """Inspect in a process of its own."""
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
    return {**head, "matrix": multiplies(launch), **found}


def faults(entry: dict[str, Any]) -> list[str]:
    """What is wrong with an entry of the report."""
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
    if " blocks=1 " not in entry["config"]:  # small networks take one form, with no other to choose
        wrong += [f"ptxas serialises its products: {each}" for each in entry.get("warnings", ())]
    wrong += [f"overwrites shared memory unordered: {each}" for each in entry.get("unordered_writes", ())]
    if entry["plan_fma"]:
        wrong.append(f"has {entry['plan_fma']} fused multiply-adds in the plan")
    return wrong


def kind(launch: Launch) -> str | None:
    """Which of host.KERNELS a launch takes its form from, if from any."""
    if launch.name == "chain_kernel":
        return "backward"
    if "SAVE" not in launch.arguments:
        return None
    if not launch.arguments.get("WRITE", True):
        return "recompute"
    mlp, save = launch.name in ("mlp_kernel", "fourier_kernel"), launch.arguments["SAVE"]
    return ("mlp_save" if save else "mlp") if mlp else "save" if save else "forward"


def clean(kernel: str, precisions: list[str], arch: int) -> list[dict[str, Any]] | None:
    """Entries of all launches that take the form of `kernel`, as the table has it; None if one has a fault."""
    entries = []
    for precision, case in itertools.product(precisions, ("decode", "fourier_decode", "fused_mlp", "render")):
        for launch in launches_of(case, precision, arch):
            if kind(launch) == kernel:
                found = report_one(launch, arch)
                wrong = faults(found)
                if wrong:
                    print(" ", line(found, wrong), flush=True)
                    return None
                entries.append(found)
    return entries


def search(arches: list[int], wanted: list[str], anew: bool = False) -> Iterator[dict[str, Any]]:
    """Put into the table, for each architecture, precision and kernel, the first candidate that is clean.

    A candidate that is there already and still clean stays, if not `anew`. Yields the entries of what was chosen.
    """
    for arch, (name, candidates) in itertools.product(arches, CANDIDATES.items()):
        precisions = [each for each in (("fp16", "bf16") if name == "half" else (name,)) if each in wanted]
        if not precisions:
            continue
        row = (*host.TRITON, arch, name)
        present, forms = () if anew else host.FORMS.get(row, ()), []
        for index, kernel in enumerate(host.KERNELS):
            for form in dict.fromkeys((*(set(present[index : index + 1]) & set(candidates)), *candidates)):
                host.FORMS[row] = (form,) * len(host.KERNELS)
                entries = clean(kernel, precisions, arch)
                if entries is not None:
                    break
            else:
                raise SystemExit(f"no candidate is clean: {kernel}, {name}, sm_{arch}")
            forms.append(form)
            yield from entries
        host.FORMS[row] = tuple(forms)
        write_table()


def write_table() -> None:
    """Write kernels/forms.py anew."""
    path = Path(__file__).parents[1] / "kernels/forms.py"
    head, _ = path.read_text().split("FORMS: ")
    order = sorted(host.FORMS, key=lambda key: (*key[:3], host.PRECISIONS.index(key[3])))
    lines = []
    for *numbers, precision in order:
        forms = ", ".join(str(form).replace(" ", "") for form in host.FORMS[(*numbers, precision)])
        lines.append(f'    ({", ".join(map(str, numbers))}, "{precision}"): ({forms}),')
    head += "FORMS: dict[tuple[int, int, int, str], tuple[tuple[int, int, int, int], ...]] = {\n"
    head += f"    # Triton, architecture, precision: {', '.join(host.KERNELS)}\n"
    path.write_text(head + "\n".join(lines) + "\n}\n")


CASES = ("decode", "render", "fused_mlp", "fourier_decode", "gather_corners", "project", "attend_corners")


def report(arches: list[int], cases: list[str], precisions: list[str]) -> Iterator[dict[str, Any]]:
    """Yield an entry for each kernel, configuration and architecture."""
    for arch in arches:
        for case in cases:
            for precision in precisions:
                for launch in launches_of(case, precision, arch):
                    yield report_one(launch, arch)


def line(entry: dict[str, Any], wrong: list[str]) -> str:
    """An entry as text."""
    names = ("registers", "shared_bytes", "spill_bytes", "matrix_instructions")
    numbers = " ".join(f"{name} {entry[name]}" for name in names if name in entry)
    return " | ".join(
        [f"{entry['kernel']} {entry['arch']} {entry['config']}", numbers, *(f"WRONG: {each}" for each in wrong)]
    )


def main(options: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report there")
    parser.add_argument("--arch", type=int, nargs="+", default=list(host.ARCHITECTURES), help="default: all")
    parser.add_argument("--case", nargs="+", default=list(CASES), help="operators, perhaps with a width: decode-64")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--write", action="store_true", help="look for clean forms and write them into the table")
    arguments = parser.parse_args(options)
    print(f"Triton {triton.__version__}")
    wanted, wrong = (arguments.arch, arguments.precision), 0
    entries = []
    for entry in search(*wanted) if arguments.write else report(arguments.arch, arguments.case, arguments.precision):
        found = faults(entry)
        entries.append({**entry, "triton": triton.__version__})
        wrong += bool(found)
        print(line(entry, found), flush=True)
    if arguments.json:
        arguments.json.write_text("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
