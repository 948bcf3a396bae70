"""Run the section `attend` of gpu_check.py: ILN's decoder, `attend_corners`, forward and backward."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import bench_attend, gpu_sections
from liif_fast import functional
from liif_fast.models import make
from liif_fast.qualification import checks
from liif_fast.qualification.problems import NETWORKS, PRECISIONS, Unit, extent

LINES, COLUMNS = 16, 1024  # of the input; the frame has four times the lines


def attend(check: bool) -> dict[str, Any]:
    """Run the checks of `liif-fast qualify`, including hostile inputs; then race a frame and a training step."""
    device = torch.device("cpu" if check else "cuda", None if check else 0)
    networks = NETWORKS[extent(device)][: 1 if check else None]
    found: dict[str, Any] = {"ok": True, "checks": {}}
    for precision, training in itertools.product(PRECISIONS[device.type], (False, True)):
        unit = Unit("torch" if check else "triton", "attend_corners", precision, training)
        try:
            checks.examine(unit, device, networks, 1, lambda step: None)
            found["checks"][unit.name] = "right"
        except (checks.Wrong, RuntimeError, *_errors()) as reason:  # other errors are mistakes of this script
            found["checks"][unit.name] = gpu_sections.reason_of(reason)
            found["ok"] = False
        gpu_sections.keep(found)
    return found | races(check, device)


def _errors() -> tuple[type[Exception], ...]:
    """Return the errors that Triton raises if it cannot compile or launch a kernel; none without Triton."""
    try:
        from triton.errors import TritonError
    except ImportError:
        return ()
    return (TritonError,)


def races(check: bool, device: torch.device) -> dict[str, Any]:
    """Race the backends and the authors' form in float32, with and without TF32, in inference and training."""
    torch.manual_seed(0)
    lines, columns = (2, 16) if check else (LINES, COLUMNS)
    model: Any = make({"name": "iln", "args": {"d": 1, "h": 8}}).eval().to(device)
    feat = torch.randn(1, 64, lines, columns, device=device)
    values = torch.rand(1, 1, lines, columns, device=device)
    coord = torch.rand(1, 4 * lines * columns, 2, device=device) * 2 - 1
    net = model.attention.transformer_of()
    leaves = [feat, *(tensor for _, tensor in net.tensors())]

    def ours(backend: str) -> Callable[[], Tensor]:
        return lambda: functional.attend_corners(feat, values, coord, net, backend=backend)[0]

    calls = {name: ours(name) for name in ("triton", "torch")}
    calls["authors' form"] = lambda: bench_attend.plain(feat, values, coord, net)[..., None]

    def step(call: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(call().sum(), leaves, allow_unused=True)

    found: dict[str, Any] = {}
    for tf32 in (False, True):
        words = "TF32" if tf32 else "float32"
        with gpu_sections._tf32(tf32):
            with torch.no_grad():
                found[f"frame, {words}"] = gpu_sections._race(calls, check)
            feat.requires_grad_()
            found[f"step, {words}"] = gpu_sections._race({name: step(call) for name, call in calls.items()}, check)
            feat.requires_grad_(False)
        gpu_sections.keep(found)
    return found
