"""Run the measurements of gpu_check.py; each takes `check` (a CPU, tiny sizes) and returns its part of the record."""

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import eager
from benchmarks.common import make_problem, quantiles
from benchmarks.limits import decode_work
from liif_fast import functional, info

FUSED = ("triton", "cuda")
MIB = 2**20
HIDDEN = (256,) * 4
L2_BYTES = 256 * MIB  # written between two laps, more than any L2 holds, so that no lap finds its inputs there

Call = Callable[[], Any]


def keep(found: dict[str, Any]) -> None:
    """Store a section's partial results; gpu_check.py replaces this by a function that writes them."""


def folder() -> Path:
    """Return the folder of reports; gpu_check.py replaces this by the record's folder."""
    return Path()


def reason_of(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def _device(check: bool) -> torch.device:
    return torch.device("cpu" if check else "cuda")


def _wait(check: bool) -> None:
    if not check:
        torch.cuda.synchronize()


def _race(calls: dict[str, Call], check: bool, rounds: int = 15) -> dict[str, Any]:
    """Time calls in turn, in milliseconds; one that raises gets its reason instead of a figure."""
    rounds, found = 2 if check else rounds, {}
    running: dict[str, Call] = {}
    for name, call in calls.items():
        try:
            for _ in range(3):  # compiles, packs, warms up
                call()
            _wait(check)
            running[name] = call
        except Exception as reason:
            found[name] = {"missing": reason_of(reason)}
    flush = torch.empty(16 if check else L2_BYTES // 4, device=_device(check))
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, call in running.items():
            flush.normal_()
            if check:
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1e3)
            else:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                call()
                end.record()
                end.synchronize()
                times[name].append(begin.elapsed_time(end))
    return {**{name: {"ms": quantiles(values)} for name, values in times.items()}, **found}


def environment(check: bool) -> dict[str, Any]:
    """Describe the environment, and measure the machine's limits: its rates of copies and matrix products."""
    device, side = _device(check), 64 if check else 8192
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError as reason:
        found["triton"] = str(reason)
    if not check:
        properties = torch.cuda.get_device_properties(0)
        found |= {key: getattr(properties, key) for key in ("name", "multi_processor_count", "total_memory")}
        found["capability"] = torch.cuda.get_device_capability()
        query = [
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        ]
        try:
            found["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as reason:
            found["nvidia_smi"] = str(reason)
    source = torch.randn(1 << (10 if check else 28), device=device)
    target = torch.empty_like(source)
    copy = _race({"copy": lambda: target.copy_(source)}, check)["copy"]["ms"]["median"]
    found["copy_gb_s"] = round(2 * source.nbytes / copy / 1e6, 1)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        lap = _race({"mm": lambda a=a, b=b: a @ b}, check)["mm"]["ms"]["median"]
        found[f"matrix_tflops_{str(dtype).removeprefix('torch.')}"] = round(2 * side**3 / lap / 1e9, 1)
    feat, weights, biases = _problem(check, 48, 1, torch.float16)
    coord, cell = _queries(check, 1, 1000)
    found["explain"] = str(functional.explain(feat, coord, cell, weights, biases)).splitlines()
    found["info"] = [f"{name}: {value}" for name, value in info.describe()]
    return found


def _problem(check: bool, side: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    feat, weights, biases = make_problem((7, 7) if check else (side, side), batch=batch, hidden=HIDDEN)
    device = _device(check)

    def ready(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype)

    return ready(feat), [ready(w) for w in weights], [ready(b) for b in biases]


def _queries(check: bool, batch: int, queries: int, side: int = 48) -> tuple[Tensor, Tensor]:
    queries = min(queries, 50) if check else queries
    generator = torch.Generator().manual_seed(1)
    coord = torch.rand(batch, queries, 2, generator=generator) * 2 - 1
    scale = torch.empty(batch, 1, 1).uniform_(1, 4, generator=generator)
    cell = (2 / side / scale).expand(batch, queries, 2).contiguous()
    return coord.to(_device(check)), cell.to(_device(check))


def _tf32(allowed: bool) -> AbstractContextManager[Any]:
    """Allow TF32 in float32 products by PyTorch's switch."""

    class Switch(nullcontext[None]):
        def __enter__(self) -> None:
            self.before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = allowed

        def __exit__(self, *_: object) -> None:
            torch.backends.cuda.matmul.allow_tf32 = self.before

    return Switch()


def accuracy(check: bool) -> dict[str, Any]:
    """Measure the error of every backend and precision against float64 on the CPU, relative to the largest output."""
    found: dict[str, Any] = {}
    coord, cell = _queries(check, 2, 4097)
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("float16", torch.float16, False),
        ("bfloat16", torch.bfloat16, False),
    ):
        feat, weights, biases = _problem(check, 48, 2, dtype)
        double = [feat.cpu().double(), [w.cpu().double() for w in weights], [b.cpu().double() for b in biases]]
        exact = functional.liif_decode(double[0], coord.cpu(), cell.cpu(), *double[1:], backend="reference")
        for backend in ("reference", "torch", *FUSED):
            try:
                with torch.no_grad(), _tf32(tf32):
                    out = functional.liif_decode(feat, coord, cell, weights, biases, backend=backend)
            except Exception as reason:  # Triton's errors are not RuntimeErrors
                found[f"{name}, {backend}"] = {"missing": reason_of(reason)}
                continue
            error = out.cpu().double() - exact
            found[f"{name}, {backend}"] = {
                "largest": float(f"{(error.abs().max() / exact.abs().max()).item():.2e}"),
                "rms": float(f"{(error.square().mean().sqrt() / exact.square().mean().sqrt()).item():.2e}"),
            }
        keep(found)
    found["ok"] = check or "rms" in found["float16, triton"]
    for name in ("float32", "float16", "bfloat16"):
        allowed = 2 * found[f"{name}, reference"].get("rms", 0)
        for backend in FUSED:
            figures = found[f"{name}, {backend}"]
            refused = "cannot run this" in figures.get("missing", "")
            found["ok"] &= refused or figures.get("rms", float("inf")) <= allowed  # NaN fails
    return found


def _compiled(function: Callable[..., Any], check: bool) -> Callable[..., Any]:
    return function if check else torch.compile(function, dynamic=False)  # the fastest mode, a graph per size


def decode(check: bool) -> dict[str, Any]:
    """Race a 4K frame from 960x540 and a million random queries in float16 against every baseline."""
    found: dict[str, Any] = {}
    height, width = (7, 9) if check else (540, 960)
    frame = (height * 4, width * 4)
    half = torch.float16
    feat, weights, biases = _problem(check, 48, 1, half)
    feat = torch.randn(1, 64, height, width, device=feat.device).to(half)
    wide = [feat.float(), [w.float() for w in weights], [b.float() for b in biases]]
    coord, cell = _queries(check, 1, 1 << 20)
    factorised = _compiled(lambda *a: functional.liif_decode(*a, backend="torch"), check)
    plain = _compiled(eager.decode, check)

    def autocast(run: Callable[..., Any], *arguments: Any) -> Any:
        with torch.autocast(feat.device.type, half):
            return run(*arguments)

    queries = {backend: _ours(functional.liif_decode, feat, coord, cell, weights, biases, backend) for backend in FUSED}
    frames = {backend: _ours(functional.liif_render, feat, frame, weights, biases, backend) for backend in FUSED}
    with torch.no_grad():
        small = min(coord.shape[1], 30_000)  # the plain forms take the queries in the original's chunks
        chunk = (coord[:, :small], cell[:, :small])
        found["frame"] = _race(
            {
                **frames,
                "torch": _ours(functional.liif_render, feat, frame, weights, biases, "torch"),
                "eager float32": lambda: eager.render(wide[0], frame, *wide[1:], chunks=4),
                "eager autocast": lambda: autocast(eager.render, wide[0], frame, *wide[1:]),
            },
            check,
            rounds=7,
        )
        keep(found)
        found["queries"] = _race(
            {**queries, "factorised, compiled": lambda: factorised(feat, coord, cell, weights, biases)}, check
        )
        keep(found)
        found["chunk of 30,000"] = _race(
            {
                **{b: _ours(functional.liif_decode, feat, *chunk, weights, biases, b) for b in FUSED},
                "eager float32": lambda: eager.decode(wide[0], *chunk, *wide[1:]),
                "eager autocast": lambda: autocast(eager.decode, wide[0], *chunk, *wide[1:]),
                "plain, compiled": lambda: autocast(plain, wide[0], *chunk, *wide[1:]),
                "factorised, compiled": lambda: factorised(feat, *chunk, weights, biases),
            },
            check,
        )
    counts = {"frame": frame[0] * frame[1], "queries": coord.shape[1], "chunk of 30,000": small}
    for name, count in counts.items():
        work = decode_work(count, 0, weights).flop
        for each in (*FUSED, "torch"):
            if "ms" in found[name].get(each, {}):
                found[name][each]["tflops"] = round(work / found[name][each]["ms"]["median"] / 1e9, 1)
    found["note"] = "eager float32 of the frame: its first four chunks of 30,000 only"
    return found


def _ours(function: Callable[..., Any], feat: Tensor, *arguments: Any) -> Call:
    *positional, backend = arguments
    return lambda: function(feat, *positional, backend=backend)


def training(check: bool) -> dict[str, Any]:
    """Race the decoder's forward and backward in the paper's setting, 16 x 2304 queries, bfloat16 autocast."""
    batch = 2 if check else 16
    feat, weights, biases = _problem(check, 48, batch, torch.float32)
    leaves = [t.requires_grad_() for t in (feat, *weights, *biases)]
    coord, cell = _queries(check, batch, 2304)
    grad = torch.randn(*coord.shape[:2], 3, device=feat.device)

    def step(run: Callable[..., Tensor], dtype: torch.dtype | None, **options: Any) -> Call:
        def call() -> Sequence[Tensor]:
            with torch.autocast(feat.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                out = run(feat, coord, cell, weights, biases, **options)
            return torch.autograd.grad(out, leaves, grad.to(out.dtype))

        return call

    def factorised(*arguments: Any) -> Tensor:
        return functional.liif_decode(*arguments, backend="torch")

    half = torch.bfloat16
    calls = {
        "triton": step(functional.liif_decode, half, backend="triton"),
        "torch": step(functional.liif_decode, half, backend="torch"),
        "eager autocast": step(eager.decode, half),
    }
    found = {"step": _race(calls, check)}
    keep(found)
    calls["plain, compiled"] = step(_compiled(eager.decode, check), half)  # compilers take most of the time from here
    calls["factorised, compiled"] = step(_compiled(factorised, check), half)
    found["step"] = _race(calls, check)
    keep(found)
    float32 = {"triton": step(functional.liif_decode, None, backend="triton"), "eager": step(eager.decode, None)}
    return {**found, "step in float32": _race(float32, check)}


def memory(check: bool) -> dict[str, Any]:
    """Measure the peak memory of a 4K frame and of a million training queries, beyond inputs, output and P."""
    if check:
        return {"missing": "not in --check"}
    found: dict[str, Any] = {}
    for backend in (*FUSED, "torch"):
        for name, measure in (("frame", _frame_peak), ("million training queries", _training_peak)):
            try:
                found[f"{name}, {backend}"] = measure(backend)
            except Exception as reason:
                found[f"{name}, {backend}"] = {"missing": reason_of(reason)}
            keep(found)
    return found


def _frame_peak(backend: str) -> dict[str, float]:
    _, weights, biases = _problem(False, 48, 1, torch.float16)
    feat = torch.randn(1, 64, 540, 960, device="cuda", dtype=torch.float16)
    p = 540 * 960 * HIDDEN[0] * feat.itemsize
    return _peak(_ours(functional.liif_render, feat, (2160, 3840), weights, biases, backend), p)


def _training_peak(backend: str) -> dict[str, float]:
    feat, weights, biases = _problem(False, 48, 16, torch.float32)
    leaves = [t.requires_grad_() for t in (feat, *weights, *biases)]
    coord, cell = _queries(False, 16, 62_500)

    def step() -> Sequence[Tensor]:
        with torch.autocast("cuda", torch.bfloat16):
            out = functional.liif_decode(feat, coord, cell, weights, biases, backend=backend)
        return torch.autograd.grad(out.float().sum(), leaves)

    return _peak(step, 2 * 16 * 48 * 48 * HIDDEN[0] * 4)  # P and its gradient


def _peak(call: Call, p_bytes: int) -> dict[str, float]:
    """Return the MiB by which a call's peak exceeds the memory before, its result, and P."""
    call()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    parts = [result] if isinstance(result, Tensor) else result
    beyond = torch.cuda.max_memory_allocated() - before - sum(part.nbytes for part in parts)
    return {"beyond_output_mib": round(beyond / MIB, 1), "beyond_p_mib": round((beyond - p_bytes) / MIB, 1)}


def overhead(check: bool) -> dict[str, Any]:
    """Measure the host time of a small call: the time until it returns, because the queue is never full."""
    feat, weights, biases = _problem(check, 8, 1, torch.float16)
    coord, cell = _queries(check, 1, 64)
    found: dict[str, Any] = {}
    for backend in (*FUSED, "torch"):
        try:
            with torch.no_grad():
                call = _ours(functional.liif_decode, feat, coord, cell, weights, biases, backend)
                for _ in range(5):
                    call()
                laps = []
                for _ in range(3 if check else 200):
                    _wait(check)
                    start = time.perf_counter()
                    call()
                    laps.append((time.perf_counter() - start) * 1e6)
            found[backend] = {"us": quantiles(laps)}
        except Exception as reason:
            found[backend] = {"missing": reason_of(reason)}
        keep(found)
    return found


def summary(record: dict[str, Any]) -> str:
    """Return the figures of a record as a short table."""
    lines = [f"{record['device']}, torch {record['torch']}, commit {record['commit']}"]
    for name, found in record["sections"].items():
        for key, value in found.items():
            if not isinstance(value, dict):
                continue
            if "passed" in value:
                lines.append(f"  {name:<10} {key:<34} passed {value['passed']}, failed {len(value['failed'])}")
                lines += [f"{'':<13}{count} skipped: {why[:120]}" for why, count in value["skipped"].items()]
                continue
            races = (
                value
                if name in ("decode", "training", "attend") or key == "tune"
                else value.get("figures", {"": value})
            )
            for variant, figures in races.items():
                if isinstance(figures, dict) and (said := _said(figures)):
                    lines.append(f"  {name:<10} {key:<34} {variant:<22} {said}")
    return "\n".join(lines)


def _said(figures: dict[str, Any]) -> str:
    """Return the figures of one variant in a line; those of the benchmarks are seconds and a ratio."""
    units = ("ms", "us", "median", "tflops", "largest", "rms", "beyond_output_mib", "beyond_p_mib", "ratio", "missing")
    values = {unit: figures[unit] for unit in units if unit in figures}
    return ", ".join(f"{u} {v['median'] if isinstance(v, dict) else v}" for u, v in values.items())
