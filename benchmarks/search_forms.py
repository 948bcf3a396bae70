"""Search for forms of the network kernels without faults, and write them to the table kernels/forms.py.

    python -m benchmarks.search_forms [--arch 90 ...] [--json FILE]

The script tries candidates for each kernel, precision and architecture with the installed version of Triton.
compile_report.py defines what a fault is.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton

from benchmarks.compile_report import PRECISIONS, Launch, faults, launches_of, line, report_one, written
from liif_fast.kernels import host

# Forms to try, in this order: rows, column block, warps, stages. With many rows a weight is read less often. Two tiles
# of four warps hide each other's waits. Narrow blocks need few registers.
CANDIDATES = {
    "half": [(64, 64, 4, 2), (128, 128, 8, 2), (64, 64, 8, 2), (32, 64, 4, 2), (32, 64, 8, 2), (32, 32, 4, 2)],
    "tf32": [(64, 64, 8, 2), (64, 32, 8, 2), (64, 64, 8, 1), (64, 32, 8, 1), (64, 16, 8, 2), (32, 64, 8, 2),
             (32, 64, 8, 1), (32, 32, 8, 2), (16, 64, 8, 2), (16, 64, 4, 2), (16, 32, 4, 2)],
    "tf32x3": [(16, 32, 4, 2), (16, 32, 8, 2), (16, 32, 8, 1), (16, 32, 4, 1), (16, 32, 4, 3), (16, 32, 8, 3),
               (64, 32, 8, 2), (16, 16, 4, 2), (64, 16, 8, 2), (16, 16, 8, 2), (16, 16, 4, 1)],
}  # fmt: skip


def kind(launch: Launch) -> str | None:
    """Return the entry of host.KERNELS that gives a launch its form, if one does."""
    if launch.name == "chain_kernel":
        return "backward"
    if "SAVE" not in launch.arguments:
        return None
    if not launch.arguments.get("WRITE", True):
        return "recompute"
    mlp, save = launch.name in ("mlp_kernel", "fourier_kernel"), launch.arguments["SAVE"]
    return ("mlp_save" if save else "mlp") if mlp else "save" if save else "forward"


def clean(kernel: str, precisions: list[str], arch: int) -> list[dict[str, Any]] | None:
    """Return the entries of all launches with the table's form of `kernel`; None if one has a fault."""
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


def search(arches: list[int], wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Put the first clean candidate for each architecture, precision and kernel into the table.

    A candidate that is in the table already and still clean stays. Yield the entries of the chosen forms.
    """
    for arch, (name, candidates) in itertools.product(arches, CANDIDATES.items()):
        precisions = [each for each in (("fp16", "bf16") if name == "half" else (name,)) if each in wanted]
        if not precisions:
            continue
        row = (*host.TRITON, arch, name)
        present, forms = host.FORMS.get(row, ()), []
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
    """Rewrite kernels/forms.py."""
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


def main(options: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report on the chosen forms to this file")
    parser.add_argument("--arch", type=int, nargs="+", default=list(host.ARCHITECTURES), help="default: all")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    arguments = parser.parse_args(options)
    print(f"Triton {triton.__version__}")
    return written(search(arguments.arch, arguments.precision), arguments.json)


if __name__ == "__main__":
    sys.exit(main())
