"""Run everything that needs a GPU, in two calls of 340 and 380 seconds.

    python -m benchmarks.gpu_variant build          # first, on a machine with nvcc; copy build/gpu and liif_fast/_C*.so
    python benchmarks/gpu_check.py --call 1         # the Hopper kernel: does it end, is it right, where does time go
    python benchmarks/gpu_check.py --call 2         # accuracy, speed, Triton, a training step

Further options: [--out FILE] [--only SECTION ...] [--seconds N] [--check].

It writes one JSON file (default: benchmarks/results/gpu/DEVICE-COMMIT.json) after every section. Every other second it
adds the partial results of the running section, so that a crash, a hang or a time limit loses almost nothing. Each
section runs in a process of its own with a time limit, because an illegal access ends a CUDA context. A call stops at
once if an extension is missing. Sections that cannot begin in time are left out and reported. A later run of the same
commit on the same device adds to the file; it replaces an earlier result only when it has ended. The exit code is 1 if
a section or a test failed.

--check runs the same code on a CPU at tiny sizes. It measures nothing, and only shows that every step's command works.
Then a step of a section has no time limit of its own, because the CPU may be busy.
"""

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import gpu_attend, gpu_hopper, gpu_sections, pytest_log, records
from liif_fast.backends import cpu, cuda
from liif_fast.files import atomic_file

ROOT = records.ROOT

# The sections of each call, in order, and the seconds that each may take. A backend's tests come before its figures,
# because a wrong answer deserves no figure.
CALLS = {
    1: {"load": 15, "smoke": 35, "hopper_tests": 60, "hopper": 60, "trace": 15, "ncu": 80, "sanitizer": 50,
        "environment": 20},
    2: {"load": 15, "smoke": 35, "triton_tests": 80, "accuracy": 30, "decode": 70, "training": 55, "attend": 40,
        "overhead": 20, "memory": 35},
}  # fmt: skip
SECONDS = {1: 340, 2: 380}
SECTIONS = {**CALLS[1], **CALLS[2], "tests": 240, "step": 150}  # the last two with --only
LEAST = 5  # seconds that a section needs to be worth its start


class Group(NamedTuple):
    """Tests that share a process, so that a hang or a broken CUDA context affects no others."""

    paths: tuple[str, ...]
    backends: str = "torch,triton"
    chosen: str = ""
    first: int = 0  # number of the first random configuration


RANDOM, SHARDS = 300, 6  # random configurations, nearly each with kernels of its own to compile; groups of them
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


TRITON = ("operator", "half precision", "same bits")


def run_tests(check: bool, group: Group, *options: str, log: Path, limit: float | None = None) -> dict[str, Any]:
    """Run pytest on the device; return the counts and the tests that did not pass, with their reasons."""
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
    command = [sys.executable, "-m", "pytest", *group.paths, "-q", "-p", "no:cacheprovider"]
    command += ["-p", "benchmarks.pytest_log", *(["-k", group.chosen] if group.chosen else []), *options]
    code, text = _run(command, None if check else limit, environment)
    outcome: dict[str, Any] = {**pytest_log.read(log), "exit_code": code}
    outcome["ok"] = code == 0 and outcome["passed"] + sum(outcome["skipped"].values()) > 0
    return outcome if outcome["ok"] else {**outcome, "tail": text.splitlines()[-15:]}


def _run(command: list[str], limit: float | None = None, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command to its end or its time limit; return its exit code, 124 after the limit, and its output."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        # It stays in the section's process group, so that whatever is left ends with the section.
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = 124
            process.kill()
        output.seek(0)
        return code, output.read()


def _groups(
    check: bool, names: Sequence[str], at_once: int, limit: float | None = None, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Run groups of tests, some at once, because compilers take most of the time."""
    few = ("-k", "test_corner_plan and 40 or test_random or test_resize") if check else options
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_once) as pool:
        logs = {name: Path(folder) / f"{number}.jsonl" for number, name in enumerate(names)}
        runs = {name: pool.submit(run_tests, check, GROUPS[name], *few, log=logs[name], limit=limit) for name in names}
        while wait(runs.values(), timeout=1).not_done:
            gpu_sections.keep({name: pytest_log.read(log) for name, log in logs.items()})
        found: dict[str, Any] = {name: run.result() for name, run in runs.items()}
    none = 5 if check else None  # pytest's exit code if nothing was selected
    ok = all(each["ok"] or each["exit_code"] == none for each in found.values())
    return {**found, "passed": sum(each["passed"] for each in found.values()), "ok": ok}


def load(check: bool) -> dict[str, Any]:
    """Report missing extensions; a call stops here if one is missing."""
    reasons = {name: backend._missing for name, backend in (("_C", cpu), ("_C_sm90", cuda)) if backend._missing}
    return {"missing extensions": reasons, "ok": check or not reasons}


def smoke(check: bool) -> dict[str, Any]:
    """Run every kernel of the trap build on few and many tiles."""
    return _variant(check, "smoke")


def trace(check: bool) -> dict[str, Any]:
    """Return the clock at each turn of a block, measured by the trace build."""
    return _variant(check, "trace")


def _variant(check: bool, *step: str, wrapper: tuple[str, ...] = (), limit: float | None = None) -> dict[str, Any]:
    command = [*wrapper, sys.executable, "-m", "benchmarks.gpu_variant", *step, *(["--check"] if check else [])]
    code, text = _run(command, None if check else limit)
    lines = text.splitlines()
    found = next((json.loads(line) for line in reversed(lines) if line.startswith("{") and '"ok"' in line), {})
    if code == 0 and found:
        return found
    return {**found, "ok": False, "exit_code": code, "tail": lines[-15:]}


def ncu(check: bool) -> dict[str, Any]:
    """Profile a frame and a million queries with each variant; ncu's reports go beside the record."""
    tool = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    found: dict[str, Any] = {}
    for what, cluster in [*itertools.product(("frame", "queries"), (1, 2))][: 1 if check else None]:
        report = gpu_sections.folder() / f"ncu-{what}-{cluster}"
        wrapper = (tool, "--set", "full", "--clock-control", "none", "-c", "1", "-k", "regex:decode_sm90", "-f", "-o",
                   str(report)) if tool and not check else ()  # fmt: skip
        if not wrapper and not check:
            return {"missing": "ncu is not on the path; see the section trace instead"}
        step = ("profile", what, "--cluster", str(cluster))
        found[f"{what}, cluster {cluster}"] = _variant(check, *step, wrapper=wrapper, limit=25)
        gpu_sections.keep(found)
    return {**found, "ok": all(each["ok"] for each in found.values())}


def hopper_tests(check: bool) -> dict[str, Any]:
    """Test the Hopper kernel alone, so that another kernel's hang does not cost its time."""
    return _groups(check, ("hopper",), 1)


def triton_tests(check: bool) -> dict[str, Any]:
    """Test the Triton kernels; each group has its own time limit and several processes, because compiling is slow."""
    processes = (os.cpu_count() or 1) // len(TRITON)
    options = () if check or processes < 2 or not importlib.util.find_spec("xdist") else ("-n", str(processes))
    return _groups(check, TRITON[: 1 if check else None], len(TRITON), SECTIONS["triton_tests"] - 10, options)


def tests(check: bool) -> dict[str, Any]:
    """Run all other tests of the operator on this device."""
    rest = [name for name in GROUPS if name != "hopper" and name not in TRITON]
    return _groups(check, rest, max(2, (os.cpu_count() or 2) // 2))


def step(check: bool) -> dict[str, Any]:
    """Measure a training step and the data path by the benchmarks `step` and `data`."""
    found: dict[str, Any] = {}
    suites = (("step", "not half"), ("data", ""), ("step", "half"))  # the slowest to compile comes last
    for suite, chosen in suites[: 1 if check else None]:
        name = f"{suite}, {chosen}" if chosen else suite
        more, tail = _benchmark(suite, chosen, check)
        gpu_sections.keep({**found, **more})
        found |= more
        if tail:
            found.setdefault("tail", {})[name] = tail
    return {**found, "ok": "tail" not in found}


def _benchmark(suite: str, chosen: str, check: bool) -> tuple[dict[str, Any], list[str]]:
    """Run a suite; return its results and, if it failed, the end of its output."""
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
    """Run the Hopper kernel once under compute-sanitizer, which finds accesses out of bounds and misused barriers."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None and not check:
        return {"missing": "compute-sanitizer is not on the path"}
    found = {}
    for kind in ("memcheck", "synccheck")[: 1 if check else None]:
        options = ("--tool", kind, "--error-exitcode", "9", "--target-processes", "all")
        wrapper = (tool, *options) if tool and not check else ()
        found[kind] = _variant(check, "profile", "few", "--cluster", "2", wrapper=wrapper, limit=25)
        gpu_sections.keep(found)
    return {**found, "ok": all(each["ok"] for each in found.values())}


def section(name: str, check: bool) -> dict[str, Any]:
    """Run one section in this process."""
    sections = (load, smoke, hopper_tests, trace, ncu, sanitizer, triton_tests, tests, step)
    here: dict[str, Callable[[bool], dict[str, Any]]] = {
        each.__name__: each for each in (*sections, gpu_hopper.hopper, gpu_attend.attend)
    }
    return (here.get(name) or getattr(gpu_sections, name))(check)


def in_a_process(
    name: str,
    check: bool,
    limit: float,
    tell: Callable[[dict[str, Any]], None] = lambda found: None,
    reports: Path | None = None,
) -> dict[str, Any]:
    """Run one section in a process of its own; return its results, or how it ended and its results until then."""
    start, ended = time.monotonic(), ""
    with tempfile.TemporaryDirectory() as folder:
        answer, output = Path(folder) / "answer.json", Path(folder) / "output"
        command = [sys.executable, __file__, "--section", name, "--out", str(answer)]
        command += ["--parent", str(os.getpid()), *(["--check"] if check else [])]
        command += [] if reports is None else ["--reports", str(reports)]
        with output.open("w") as file:  # in a session of its own, so that all that it started ends with it
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
    with suppress(subprocess.TimeoutExpired):  # a driver may hold a process forever
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
    parser.add_argument("--out", type=Path, help="the JSON file to write or to add to")
    parser.add_argument("--call", type=int, choices=CALLS, default=1, help="which of the two calls (default: 1)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="run only these sections")
    parser.add_argument("--seconds", type=float, help="time limit of the run (default: the call's)")
    parser.add_argument("--check", action="store_true", help="run on a CPU at tiny sizes, to test the script")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--reports", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # because it may end before torch is imported
    options = parser.parse_args()
    if options.section:
        threading.Thread(target=_end_with, args=(options.parent,), daemon=True).start()
        gpu_sections.keep = lambda found: _write(options.out, found)
        gpu_sections.folder = lambda: options.out.parent if options.reports is None else options.reports
        _write(options.out, section(options.section, options.check))
        return 0
    if not options.check and not torch.cuda.is_available():
        parser.error(f"PyTorch {torch.__version__} finds no CUDA GPU; --check shows on a CPU that the script works")
    for each in (signal.SIGTERM, signal.SIGHUP):  # SIGHUP is a lost connection; the section ends with this process
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
    seconds = SECONDS[options.call] if options.seconds is None else options.seconds
    for each in options.only or CALLS[options.call]:
        left = seconds - (time.monotonic() - begun)
        if left < LEAST:
            ended[each] = False
            print(f"no time left for {each}: run it with --only {each}", flush=True)
            continue

        def tell(found: dict[str, Any], each: str = each) -> None:
            _write(out, {**record, "unfinished": {each: found}})

        limit = min(SECTIONS[each], left)
        found = record["sections"][each] = in_a_process(each, options.check, limit, tell, out.parent)
        _write(out, record)
        ok, why = found.get("ok", True), found.get("missing")
        ended[each] = ok
        verdict = "FAILED" if not ok else f"not measured ({why})" if why else "ok"
        print(f"{each}: {verdict} in {found['seconds']} s", flush=True)
        if not ok:
            print(json.dumps(found, indent=1)[:3000], flush=True)
            if each == "load":
                break
    print(gpu_sections.summary(record))
    print(f"written to {out}")
    return 0 if all(ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
