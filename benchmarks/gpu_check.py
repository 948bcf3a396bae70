"""Everything that only a GPU can show, in one command and under ten minutes:

    python benchmarks/gpu_check.py [--out FILE] [--only SECTION ...] [--check]

Writes one JSON (default: benchmarks/results/gpu/DEVICE-COMMIT.json) after every section, so that a crash or a time
limit loses no more than the section it happens in; each section runs in a process of its own, since an illegal access
ends a CUDA context. Exit code 1 if a section failed or a test did.

--check runs the same code on a CPU at tiny sizes: it measures nothing, it only shows that the script works.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import gpu_hopper, gpu_sections, records

ROOT = records.ROOT

# What runs, in the order of what matters most, and the seconds that each may take. Tests of a backend come before its
# figures: there is no figure of a wrong answer.
SECTIONS = {
    "environment": 60,
    "tests": 240,
    "accuracy": 60,
    "hopper": 90,
    "decode": 120,
    "training": 120,
    "step": 90,
    "memory": 60,
    "overhead": 60,
    "sanitizer": 120,
}
TESTS = ("tests/gpu", *(f"tests/ops/test_{name}.py" for name in ("plan", "random", "accuracy", "same_bits")))


def run_tests(check: bool, *options: str, wrapper: tuple[str, ...] = (), paths: tuple[str, ...] = TESTS) -> Any:
    """Run pytest on the device and return counts and what did not pass, each with its reason."""
    environment = {
        **os.environ,
        "LIIF_FAST_TEST_DEVICE": "cpu" if check else "cuda",
        "LIIF_FAST_TEST_BACKENDS": "torch" if check else "torch,triton",
        "LIIF_FAST_TEST_CONFIGS": "3" if check else "300",
    }
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*wrapper, sys.executable, "-m", "pytest", *paths, "-q", "-p", "no:cacheprovider", *options]
        done = subprocess.run(
            [*command, f"--junit-xml={report}"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        tail = (done.stdout + done.stderr).splitlines()[-15:]
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    outcome: dict[str, Any] = {"passed": 0, "failed": {}, "skipped": {}, "exit_code": done.returncode}
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        if bad is not None:
            outcome["failed"][name] = (bad.get("message") or "")[:400]
        elif skipped is not None:
            reason = skipped.get("message") or ""
            outcome["skipped"][reason] = outcome["skipped"].get(reason, 0) + 1
        else:
            outcome["passed"] += 1
    outcome["ok"] = done.returncode == 0 and outcome["passed"] > 0
    return outcome if outcome["ok"] else {**outcome, "tail": tail}


def tests(check: bool) -> dict[str, Any]:
    """Every test of the operator on this device."""
    return run_tests(check, *(("-k", "128 or test_plan or seed") if check else ()))


def step(check: bool) -> dict[str, Any]:
    """A whole training step and the data path, by the benchmarks of the same name."""
    options = ["--check", "--threads", "1"] if check else ["--device", "cuda"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        suites = [str(ROOT / "benchmarks" / f"bench_{name}.py") for name in ("step", "data")]
        command = [sys.executable, "-m", "pytest", *suites, "-q", "-p", "no:cacheprovider", *options]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        done = subprocess.run(
            [*command, f"--benchmark-json={report}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        runs = json.loads(report.read_text())["benchmarks"] if report.exists() and report.stat().st_size else []
    found: dict[str, Any] = {run["extra_info"].get("name", run["name"]): run["extra_info"] for run in runs}
    ok = done.returncode == 0 and bool(found)
    return {**found, "ok": ok, **({} if ok else {"tail": (done.stdout + done.stderr).splitlines()[-15:]})}


def sanitizer(check: bool) -> dict[str, Any]:
    """A reduced suite under compute-sanitizer: reads and writes out of bounds, and races in shared memory."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if check or tool is None:
        return {"missing": "compute-sanitizer is not on the PATH" if not check else "not in --check"}
    found = {}
    for kind in ("memcheck", "racecheck"):
        wrapper = (tool, "--tool", kind, "--error-exitcode", "9", "--target-processes", "all")
        chosen = "test_nan_stays or (test_half_precision and switches7)"
        found[kind] = run_tests(False, "-k", chosen, "-x", wrapper=wrapper, paths=("tests/gpu",))
    return {**found, "ok": all(each["ok"] for each in found.values())}


def section(name: str, check: bool) -> dict[str, Any]:
    """Run one section in this process."""
    here: dict[str, Callable[[bool], dict[str, Any]]] = {
        "tests": tests,
        "step": step,
        "sanitizer": sanitizer,
        "hopper": gpu_hopper.hopper,
    }
    return (here.get(name) or getattr(gpu_sections, name))(check)


def in_a_process(name: str, check: bool, limit: float) -> dict[str, Any]:
    """Run one section in a process of its own and return what it found, or how it ended."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, __file__, "--section", name, "--out", str(answer), *(["--check"] if check else [])]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
            ended, output = f"exit code {done.returncode}", done.stdout + done.stderr
        except subprocess.TimeoutExpired as late:
            ended, output = f"stopped after {limit:.0f} s", str(late.stdout or "") + str(late.stderr or "")
        found = json.loads(answer.read_text()) if answer.exists() else {"ok": False, "ended": ended}
    if not found.get("ok", True):
        found["output"] = output.splitlines()[-25:]
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="the JSON to write")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="only these sections")
    parser.add_argument("--check", action="store_true", help="on a CPU, tiny: shows that the script works")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        options.out.write_text(json.dumps(section(options.section, options.check)))
        return 0
    if not options.check and not torch.cuda.is_available():
        parser.error(f"PyTorch {torch.__version__} finds no CUDA GPU; --check shows on a CPU that the script works")
    device = "cpu" if options.check else torch.cuda.get_device_name()
    record: dict[str, Any] = {**records.environment(), "device": device, "check": options.check, "sections": {}}
    name = "-".join([*device.lower().split(), record["commit"] or "unknown"])
    out = options.out or records.RESULTS / "gpu" / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    for each in options.only or SECTIONS:
        found = record["sections"][each] = in_a_process(each, options.check, SECTIONS[each])
        out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{each}: {'ok' if found.get('ok', True) else 'FAILED'} in {found['seconds']} s", flush=True)
        if not found.get("ok", True):
            print(json.dumps(found, indent=1)[:6000], flush=True)
    print(gpu_sections.summary(record))
    print(f"written to {out}")
    return 0 if all(found.get("ok", True) for found in record["sections"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
