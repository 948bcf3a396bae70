"""Measure a LIIF exported by `liif-fast export` in ONNX Runtime and OpenVINO against ours, encoder included, on a CPU.

"Whole" calls the whole graph once. "Strips" takes the two graphs that --parts writes: it runs the encoder once, then
the decoder strip by strip. A strip has about as many queries as the other suites give these runtimes at a time.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import liif_fast
from benchmarks.bench import Bench, rows
from benchmarks.common import FACTORISED, Raced, backends
from benchmarks.runtimes import FACTORISED_CHUNK, LOADERS
from liif_fast.export import PLAN
from liif_fast.export.plan import graph_inputs
from liif_fast.models.liif import LIIF

WHOLE, STRIPS = "whole, {}", "strips, {}"
RUNTIMES = [form.format(runtime) for form in (WHOLE, STRIPS) for runtime in LOADERS]


@cache
def make_model(blocks: int, features: int, hidden: tuple[int, ...]) -> LIIF:
    """Return a LIIF with PyTorch's initial weights."""
    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": blocks, "n_feats": features, "no_upsampling": True}}
    return LIIF(encoder, {"name": "mlp", "args": {"out_dim": 3, "hidden_list": list(hidden)}}).eval()


@cache
def graph(model: LIIF, runtime: str, form: str, part: int, *inputs: str) -> Callable[..., Tensor]:
    """Return a graph of a form as a function of tensors of any size."""
    return LOADERS[runtime](export(model, form)[part], inputs)


@cache
def export(model: LIIF, form: str) -> list[Path]:
    folder = tempfile.mkdtemp(prefix="liif_fast-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return liif_fast.export_onnx(model, Path(folder) / "model.onnx", form=form)


def exported(model: LIIF, image: Tensor, size: tuple[int, int]) -> dict[str, Callable[[], Tensor]]:
    """Return the calls of every runtime; the first call of a graph exports and loads it."""
    made = graph_inputs(image.shape[2:], size)
    plan = {name: torch.from_numpy(made[name]) for name in PLAN}

    def whole(runtime: str) -> Tensor:
        return graph(model, runtime, "whole", 0, "image", *plan)(image, *plan.values())

    def strips(runtime: str) -> Tensor:
        latents = graph(model, runtime, "parts", 0, "image")(image)
        decode = graph(model, runtime, "parts", 1, "image", "latents", *plan)
        step = max(1, FACTORISED_CHUNK // size[1])
        found = []
        for top in range(0, size[0], step):
            part = {k: v[:, top : top + step].contiguous() if k.startswith("row") else v for k, v in plan.items()}
            found.append(decode(image, latents, *part.values()))
        return torch.cat(found, 2)

    calls = {WHOLE: whole, STRIPS: strips}
    return {form.format(runtime): partial(call, runtime) for form, call in calls.items() for runtime in LOADERS}


@rows(FACTORISED, *RUNTIMES, cases=[(2,), (4,)], ids="x{}")
@torch.no_grad()
def test_export(bench: Bench, scale: int) -> Raced:
    if bench.device.type != "cpu":
        pytest.skip("the runtimes run on the CPU here")
    side = bench.pick(48, 24, 5)
    model = make_model(*bench.pick((16, 64), (16, 64), (1, 4)), bench.hidden)
    image, size = torch.rand(1, 3, side, side), (side * scale, side * scale)

    def run(backend: str) -> Tensor:
        model.backend = backend
        return model.predict(image, size).clamp(0, 1)

    return bench.race(
        f"export-x{scale}",
        f"EDSR-baseline-LIIF, x{scale} of {side}x{side}, encoder included",
        backends(run) | exported(model, image, size),
        rounds=7,
        seconds=16.0,
        keepers=RUNTIMES,
    )
