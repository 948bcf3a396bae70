"""Compile the kernels without a GPU, with every version of Triton for which the table has forms.

Compiling everything takes too long for every change. With the pinned version of Triton `make ptx` compiles every kernel
on sm_90, decode and strict float32 on sm_80, render on the other architectures, and a small network; with the other
versions a part. LIIF_FAST_TEST_COMPILE=all compiles everything.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compile_report
from benchmarks.kernel_source import digest
from liif_fast.kernels import attend_corners, host, scatter

ROOT = Path(__file__).parents[2]
PINNED = [
    line.split("==")[1].split()[0]
    for name in ("constraints.txt", "constraints-triton.txt")
    for line in (ROOT / name).read_text().splitlines()
    if line.startswith("triton==")
]
MAIN, *OTHERS = PINNED
LONG = os.environ.get("LIIF_FAST_TEST_COMPILE") == "all"
ALL = (
    "decode render fused_mlp attend_corners gather_corners project decode-128 decode-64 decode-16 "
    "decode-100 decode-192 decode-256-64 decode-256-3-1 decode-256-3-8 decode-256-3-4-1"
)
# Options of the report; those of one list share a process.
SOME = ["--arch 90 --case decode gather_corners fused_mlp fourier_decode project --precision fp16",
        "--arch 80 --case render --precision tf32x3"]  # fmt: skip
MORE = ["--arch 80 --case decode --precision fp16", "--arch 90 --case decode-64-8 --precision fp16",
        "--arch 89 100 120 --case render --precision bf16"]  # fmt: skip
OTHER = ["--arch 90 80 --case decode --precision fp16", "--arch 80 --case render --precision tf32x3"]
if LONG:
    RUNS = [
        (version, [f"--arch {arch} --case {ALL} --precision {precision}"])
        for version, arch, precision in itertools.product(PINNED, host.ARCHITECTURES, compile_report.PRECISIONS)
    ]
else:
    RUNS = [(MAIN, SOME), (MAIN, MORE), *((version, OTHER) for version in OTHERS)]
CODE = """
import sys
from benchmarks.compile_report import main
sys.exit(max([main([*run.split(), "--json", f"{number}.json"]) for number, run in enumerate(sys.argv[1:])]))
"""
LAUNCHED = {
    "decode": {"decode_kernel", "chain_kernel", "segment_kernel", "atomic_kernel"},
    "render": {"render_kernel"},
    "fused_mlp": {"mlp_kernel", "chain_kernel"},
    "attend_corners": {"attend_kernel", "attend_back_kernel", "attention_back_kernel", "atomic_kernel"},
    "fourier_decode": {"fourier_kernel", "chain_kernel", "waves_back_kernel", "atomic_kernel"},
    "gather_corners": {"gather_kernel", "segment_kernel"},
    "project": {"project_kernel"},
}


def environment(version, **more):
    """Return the environment of a process with another version of Triton, installed by the Makefile."""
    found = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if version != MAIN:
        folder = Path(sys.prefix, "tritons", version)
        if not folder.exists():
            pytest.skip(f"Triton {version} is not installed: make test does")
        found["PYTHONPATH"] = str(folder)
    return {**found, **more}


@pytest.mark.ptx
@pytest.mark.parametrize(("version", "runs"), RUNS)
def test_no_kernel_spills_or_lacks_matrix_instructions(version, runs, tmp_path):
    variables = environment(version, TRITON_CACHE_DIR=str(tmp_path / "cache"))
    variables["PYTHONPATH"] = f"{variables.get('PYTHONPATH', '')}:{ROOT}"
    command = [sys.executable, "-c", CODE, *runs]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = []
    for number, run in enumerate(runs):
        report = json.loads((tmp_path / f"{number}.json").read_text())
        arches, cases, _ = (part.split()[1:] for part in run.split("--")[1:])
        for arch, case in itertools.product(arches, cases):
            kernels = {e["kernel"] for e in report if e["arch"] == f"sm_{arch}" and e["config"].startswith(f"{case} ")}
            assert LAUNCHED[case.split("-")[0]] <= kernels, (arch, case)
        entries += report
    assert {entry["triton"] for entry in entries} == {version}
    for entry in entries:
        assert entry["spill_bytes"] == 0  # repeated here, because the script might drop it
        assert entry["long_divisions"] <= 2  # of a block's scalars, not of each row
        if entry["matrix"]:
            assert entry["matrix_instructions"] > 0
            assert entry["narrow_accesses"] <= 4
            assert not entry["warnings"] or " blocks=1 " in entry["config"]  # small networks have one form
            attends = entry["kernel"].startswith("attend")  # between rows
            assert (
                attends or entry["shuffles"] <= 18
            )  # shuffles sum the corners of 3 outputs over lanes, not of 256 hidden values
            if entry["arch"] == "sm_90" and " tf32x3 " not in entry["config"]:
                assert entry["instructions"]["HGMMA"] > 0


@pytest.mark.parametrize("version", PINNED)
def test_the_full_report_is_of_this_table(version):
    """Every form of the table has been compiled, and its recorded results show no faults."""
    entries = json.loads((ROOT / f"benchmarks/results/triton-{version}.json").read_text())
    reported = set()
    for entry in entries:
        assert entry["triton"] == version
        assert not compile_report.faults(entry), entry
        _, precision, *settings = entry["config"].split()
        values = dict(setting.split("=") for setting in settings)
        if values.get("widest") == "256":
            form = tuple(int(values[name]) for name in ("rows", "block", "num_warps", "num_stages"))
            reported.add((int(entry["arch"][3:]), precision, form))
    expected = {
        (arch, each, form)
        for (*numbers, arch, precision), forms in host.FORMS.items()
        if version.startswith("{}.{}.".format(*numbers))
        for each in (("fp16", "bf16") if precision == "half" else (precision,))
        for form in forms
    }
    assert reported == expected


def test_the_attention_is_in_the_report():
    """The record has both directions on sm_80 and sm_90 in the pinned version; compiling them here takes too long."""
    entries = json.loads((ROOT / f"benchmarks/results/triton-{MAIN}.json").read_text())
    found = {(e["arch"], e["kernel"]) for e in entries if e["config"].startswith("attend_corners ")}
    assert found >= set(itertools.product(("sm_80", "sm_90"), LAUNCHED["attend_corners"]))
    for entry in entries:
        if entry["config"].startswith("attend_corners "):
            kernel = getattr(attend_corners, entry["kernel"], None) or getattr(scatter, entry["kernel"])
            assert entry.get("source") == digest(kernel), f"{entry['kernel']} changed since its record; run the report"
    assert "attend_corners" in compile_report.CASES and "attend_kernel" in compile_report.PLANS


@pytest.mark.ptx
@pytest.mark.parametrize("version", OTHERS)
def test_interpreter(version):
    """Run some of the operator's tests with another version of Triton and its interpreter."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_operator.py", "-k"]
    command += ["test_render or (test_fused_mlp and dtype0) or test_atomic"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(version), capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    command = [sys.executable, "-c", "from importlib import metadata; print(metadata.version('triton'))"]
    said = subprocess.run(command, env=environment(version), capture_output=True, text=True, check=True).stdout
    assert said.strip() == version


def test_every_entry_of_the_table():
    """Each pinned version, architecture and precision has forms; others take a neighbour's."""
    versions = [tuple(map(int, version.split(".")[:2])) for version in PINNED]
    assert set(host.FORMS) == {
        (*version, arch, precision)
        for version in versions
        for arch in host.ARCHITECTURES
        for precision in host.PRECISIONS
    }
    assert all(len(forms) == len(host.KERNELS) for forms in host.FORMS.values())
    assert host.entry(86, (3, 7)) == (3, 7, 89)
    assert host.entry(75, (3, 5)) == (3, 6, 80)
    assert host.entry(121, (3, 8)) == (3, 7, 120)
    assert host.entry(103, (4, 0)) == (3, 9, 100)
    for version in versions:
        for arch in host.ARCHITECTURES:
            for width in (1, 16, 33, 65, 130, 256):
                form = host.network_form("forward", width, "tf32x3", arch, version)
                assert form.padded >= width
                assert form.rows % 4 == 0
