"""Run everything that needs a GPU in one command and under ten minutes:

    python benchmarks/gpu_check.py [--out FILE] [--only SECTION ...] [--seconds N] [--check]

It writes one JSON (default: benchmarks/results/gpu/DEVICE-COMMIT.json) after every section, and every other second the
partial results of the running one, so that a crash, a hang or a time limit loses almost nothing. Each section runs in a
process of its own, because an illegal access ends a CUDA context. Sections that do not begin within --seconds (default
560) are left out and reported. A later run of the same commit on the same device, with or without --only, adds to the
file and replaces an earlier result only when it has ended. The exit code is 1 if a section or a test failed.

--check runs the same code on a CPU at tiny sizes. It measures nothing and only shows that the script works.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import gpu_hopper, gpu_sections, pytest_log, records
from liif_fast.files import atomic_file

ROOT = records.ROOT

# The sections by importance, with the seconds that each may take. Tests of a backend come before its figures, because a
# wrong answer gets no figure.
SECTIONS = {
    "environment": 60,
    "tests": 240,
    "accuracy": 60,
    "hopper": 60,
    "decode": 120,
    "training": 120,
    "step": 150,
    "memory": 60,
    "overhead": 40,
    "sanitizer": 120,
}
SECONDS = 560
LEAST = 15  # seconds that a section needs to be worth its start


class Group(NamedTuple):
    """Tests that share a process, so that a hang or a broken CUDA context affects no others."""

    paths: tuple[str, ...]
    backends: str = "torch,triton"
    chosen: str = ""
    first: int = 0  # of the random configurations


RANDOM, SHARDS = 300, 6  # configurations, nearly each of which compiles kernels of its own
GROUPS = {
    "operator": Group(("tests/gpu/test_operator.py",), chosen="not test_half_precision"),
    "half precision": Group(("tests/gpu/test_operator.py",), chosen="test_half_precision"),
    "hopper": Group(("tests/gpu/test_operator.py", "tests/gpu/test_hopper.py"), "cuda"),
    "pipeline": Group(("tests/gpu/test_pipeline.py", "tests/gpu/test_data.py")),
    "plan": Group(("tests/ops/test_plan.py",)),
    "accuracy": Group(("tests/ops/test_accuracy.py",)),
    "same bits": Group(("tests/ops/test_same_bits.py",)),
    **{
        f"random from {first}": Group(("tests/ops/test_random.py",), first=first)
        for first in range(0, RANDOM, RANDOM // SHARDS)
    },
}


def run_tests(check: bool, group: Group, *options: str, log: Path, wrapper: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run pytest on the device and return counts and what did not pass, each with its reason."""
    environment = {
        **os.environ,
        "LIIF_FAST_TEST_DEVICE": "cpu" if check else "cuda",
        "LIIF_FAST_TEST_BACKENDS": "torch" if check else group.backends,
        "LIIF_FAST_TEST_CONFIGS": "1" if check else str(RANDOM // SHARDS),
        "LIIF_FAST_TEST_SEED": str(group.first),
        "LIIF_FAST_TEST_LOG": str(log),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it, cuBLAS refuses deterministic algorithms
        "OMP_NUM_THREADS": "2",
    }
    command = [*wrapper, sys.executable, "-m", "pytest", *group.paths, "-q", "-p", "no:cacheprovider"]
    command += ["-p", "benchmarks.pytest_log", *(["-k", group.chosen] if group.chosen else []), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    outcome: dict[str, Any] = {**pytest_log.read(log), "exit_code": done.returncode}
    outcome["ok"] = done.returncode == 0 and outcome["passed"] + sum(outcome["skipped"].values()) > 0
    return outcome if outcome["ok"] else {**outcome, "tail": (done.stdout + done.stderr).splitlines()[-15:]}


def tests(check: bool) -> dict[str, Any]:
    """Run every test of the operator on this device in parallel, because most of the time goes to compilers."""
    few = ("-k", "test_corner_plan or test_random or test_resize") if check else ()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2)) as pool:
        logs = {name: Path(folder) / f"{number}.jsonl" for number, name in enumerate(GROUPS)}
        runs = {name: pool.submit(run_tests, check, group, *few, log=logs[name]) for name, group in GROUPS.items()}
        while wait(runs.values(), timeout=1).not_done:
            gpu_sections.keep({name: pytest_log.read(log) for name, log in logs.items()})
        found: dict[str, Any] = {name: run.result() for name, run in runs.items()}
    none = 5 if check else None  # pytest's exit code where nothing was chosen
    ok = all(each["ok"] or each["exit_code"] == none for each in found.values())
    return {**found, "passed": sum(each["passed"] for each in found.values()), "ok": ok}


def step(check: bool) -> dict[str, Any]:
    """Measure a training step and the data path by the benchmarks of the same name."""
    found: dict[str, Any] = {}
    for suite, chosen in (("step", "not half"), ("data", ""), ("step", "half")):  # the last compiles longest
        if check and chosen == "half":
            continue
        name = f"{suite}, {chosen}" if chosen else suite
        more, tail = _benchmark(suite, chosen, check)
        gpu_sections.keep({**found, **more})
        found |= more
        if tail:
            found.setdefault("tail", {})[name] = tail
    return {**found, "ok": "tail" not in found}


def _benchmark(suite: str, chosen: str, check: bool) -> tuple[dict[str, Any], list[str]]:
    """Run a suite; return its results, and if it failed the end of what it said."""
    options = ["--check", "--threads", "1"] if check else ["--device", "cuda"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        path = str(ROOT / "benchmarks" / f"bench_{suite}.py")
        command = [sys.executable, "-m", "pytest", path, "-q", "-p", "no:cacheprovider", *options]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        done = subprocess.run(
            [*command, *(["-k", chosen] if chosen else []), f"--benchmark-json={report}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        runs = json.loads(report.read_text())["benchmarks"] if report.exists() and report.stat().st_size else []
    found: dict[str, Any] = {}
    for row in (run["extra_info"] for run in runs):
        found.setdefault(row["name"], row)["figures"].update(row["figures"])
    failed = done.returncode != 0 or not found
    return found, (done.stdout + done.stderr).splitlines()[-15:] if failed else []


def sanitizer(check: bool) -> dict[str, Any]:
    """Run a reduced suite under compute-sanitizer, which finds accesses out of bounds and races in shared memory."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if check or tool is None:
        return {"missing": "compute-sanitizer is not on the PATH" if not check else "not in --check"}
    chosen = "test_nan_stays or (test_half_precision and switches7)"
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("memcheck", "racecheck"):
            for backend in ("triton", "cuda"):
                wrapper = (tool, "--tool", kind, "--error-exitcode", "9", "--target-processes", "all")
                group, log = Group(("tests/gpu/test_operator.py",), backend, chosen), Path(folder) / f"{kind}-{backend}"
                found[f"{kind}, {backend}"] = run_tests(False, group, "-x", log=log, wrapper=wrapper)
                gpu_sections.keep(found)
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


def in_a_process(
    name: str, check: bool, limit: float, tell: Callable[[dict[str, Any]], None] = lambda found: None
) -> dict[str, Any]:
    """Run one section in a process of its own and return what it found, or how it ended and what it had till then."""
    start, ended = time.monotonic(), ""
    with tempfile.TemporaryDirectory() as folder:
        answer, output = Path(folder) / "answer.json", Path(folder) / "output"
        command = [sys.executable, __file__, "--section", name, "--out", str(answer)]
        command += ["--parent", str(os.getpid()), *(["--check"] if check else [])]
        with output.open("w") as file:  # a session of its own: what the section started ends with it
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            while not ended:
                try:
                    ended = f"exit code {process.wait(2)}"
                except subprocess.TimeoutExpired:
                    tell(_read(answer))
                    if time.monotonic() - start > limit:
                        ended = f"stopped after {limit:.0f} s"
        finally:
            _kill(process)
        found = _read(answer)
        if process.returncode != 0:
            found |= {"ok": False, "ended": ended}
        if not found.get("ok", True):
            found["output"] = output.read_text(errors="replace").splitlines()[-25:]
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a section and whatever it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a driver may hold on to a process for ever
        process.wait(10)


def _end_with(parent: int) -> None:
    """End a section and its processes when its parent is gone, for any reason."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def main() -> int:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="the JSON to write, or to add to")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="only these sections")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all of it (default {SECONDS})")
    parser.add_argument("--check", action="store_true", help="on a CPU, tiny: shows that the script works")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # who may be gone before torch is imported
    options = parser.parse_args()
    if options.section:
        threading.Thread(target=_end_with, args=(options.parent,), daemon=True).start()
        gpu_sections.keep = lambda found: _write(options.out, found)
        _write(options.out, section(options.section, options.check))
        return 0
    if not options.check and not torch.cuda.is_available():
        parser.error(f"PyTorch {torch.__version__} finds no CUDA GPU; --check shows on a CPU that the script works")
    for each in (signal.SIGTERM, signal.SIGHUP):  # a lost connection, too; the section ends with this process
        signal.signal(each, lambda number, frame: sys.exit(128 + number))
    device = "cpu" if options.check else torch.cuda.get_device_name()
    record: dict[str, Any] = {**records.environment(), "device": device, "check": options.check, "sections": {}}
    name = "-".join([*device.lower().split(), record["commit"] or "unknown"])
    out = options.out or records.RESULTS / "gpu" / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    before = _read(out)
    if all(before.get(key) == record[key] for key in ("device", "commit", "check")) and record["commit"]:
        record["sections"] = before["sections"]
    ended: dict[str, bool] = {}
    for each in options.only or SECTIONS:
        left = options.seconds - (time.monotonic() - begun)
        if left < LEAST:
            ended[each] = False
            print(f"no time left for {each}: run it with --only {each}", flush=True)
            continue

        def tell(found: dict[str, Any], each: str = each) -> None:
            _write(out, {**record, "unfinished": {each: found}})

        found = record["sections"][each] = in_a_process(each, options.check, min(SECTIONS[each], left), tell)
        _write(out, record)
        ok, why = found.get("ok", True), found.get("missing")
        ended[each] = ok
        verdict = "FAILED" if not ok else f"not measured ({why})" if why else "ok"
        print(f"{each}: {verdict} in {found['seconds']} s", flush=True)
        if not ok:
            print(json.dumps(found, indent=1)[:3000], flush=True)
    print(gpu_sections.summary(record))
    print(f"written to {out}")
    return 0 if all(ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
