"""Build and run variants of the Hopper kernel, each in a process of its own, because a build registers operators.

    python -m benchmarks.gpu_variant build         # trap and trace, into build/gpu; needs nvcc, no GPU
    python -m benchmarks.gpu_variant smoke         # trap: every kernel and tile count; a hang prints where and ends
    python -m benchmarks.gpu_variant trace         # trace: cycles between a tile's last product and the next's first
    python -m benchmarks.gpu_variant profile frame --cluster 2     # one launch, for ncu

It prints one line of JSON. --check does the same on a CPU, with the backend `torch` in the kernel's place.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

FOLDER = ROOT / "build" / "gpu"
BUILDS = {"trap": "LIIF_TRAP", "trace": "LIIF_TRACE"}
TILES = (1, 2, 131, 132, 133, 1000)  # below, at and above the SMs of an H100 and of an H200


def library(name: str) -> Path:
    """Return a build's file, in a folder named after the sources, because a copy of a file may have another date."""
    digest = hashlib.sha256()
    for source in sorted((ROOT / "csrc" / "cuda").iterdir()):
        digest.update(source.read_bytes())
    return FOLDER / f"{name}-{digest.hexdigest()[:12]}" / "_C_sm90.abi3.so"


def build(name: str) -> None:
    """Compile a build with nvcc, unless these sources have been compiled."""
    from csrc.build import MACROS, NVCC_FLAGS

    if library(name).exists():
        return
    for older in FOLDER.glob(f"{name}*"):
        shutil.rmtree(older)
    library(name).parent.mkdir(parents=True, exist_ok=True)
    torch_folder = Path(torch.__file__).parent
    command = ["nvcc", *MACROS, f"-D{BUILDS[name]}", "-isystem", str(torch_folder / "include"), *NVCC_FLAGS, "-shared"]
    part = library(name).with_suffix(".part")
    command += [str(ROOT / "csrc/cuda/decode_sm90.cu"), "-o", str(part), f"-L{torch_folder / 'lib'}"]
    subprocess.run([*command, "-ltorch_cpu"], check=True)
    part.replace(library(name))


def use(name: str) -> None:
    """Let the package load a build instead of its own extension."""
    from liif_fast import extension

    load = extension.load

    def other(wanted: str) -> str:
        if wanted != "_C_sm90":
            return load(wanted)
        folder, extension.FOLDER = extension.FOLDER, library(name).parent
        try:
            return load(wanted)
        finally:
            extension.FOLDER = folder

    extension.load = other


def smoke(check: bool) -> dict[str, Any]:
    """Compare each kernel's error with that of the backend `torch` for every number of tiles; the ratio may be 2."""
    from benchmarks import gpu_sections
    from liif_fast import functional
    from liif_fast.backends import cuda

    found, ok = {}, True
    for dtype, ensemble, cluster in itertools.product((torch.float16, torch.bfloat16), (True, False), (1, 2)):
        feat, weights, biases = gpu_sections._problem(check, 48, 1, dtype)
        double = [feat.double(), [w.double() for w in weights], [b.double() for b in biases]]
        cuda.CLUSTER, worst = cluster, 0.0
        for tiles in TILES[: 2 if check else None]:
            coord, cell = gpu_sections._queries(check, 1, tiles * (32 if ensemble else 128) - 5)
            options = {"local_ensemble": ensemble}
            with torch.no_grad():
                plain, ours = (
                    functional.liif_decode(feat, coord, cell, weights, biases, backend=backend, **options)
                    for backend in ("torch", "torch" if check else "cuda")
                )
                exact = functional.liif_decode(double[0], coord, cell, *double[1:], backend="torch", **options)
            errors = [(out.double() - exact).square().mean().sqrt().item() for out in (ours, plain)]
            ok &= errors[0] <= 2 * errors[1]  # NaN fails
            worst = max(worst, errors[0] / max(errors[1], 1e-30))
        name = f"{str(dtype).removeprefix('torch.')}, ensemble {ensemble}, cluster {cluster}"
        found[name] = round(worst, 3)
        print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    return {"error, of torch's": found, "ok": ok}


def trace(check: bool) -> dict[str, Any]:
    """Measure the turns of block 0 in a frame: the gap between tiles, the wait for a turn, and the products."""
    from benchmarks import gpu_sections
    from liif_fast import functional

    feat, weights, biases = gpu_sections._problem(check, 96, 1, torch.float16)
    backend, products = "torch" if check else "cuda", len(weights) - 2
    functional.liif_render(feat, (9, 11) if check else (1536, 1536), weights, biases, backend=backend)
    if check:
        notes = torch.arange(2 * 8 * products * 3).view(2, -1, 3)
    else:
        torch.ops.liif_fast.trace_sm90(feat)  # the first launch loads the module
        functional.liif_render(feat, (1536, 1536), weights, biases, backend=backend)
        notes = torch.ops.liif_fast.trace_sm90(feat).cpu()
    turns = int((notes[0, :, 2] > 0).sum()) // products * products
    asked, given, complete = notes[:, :turns].unbind(2)
    last = slice(products - 1, turns - 1, products)
    cycles = {
        "gap between tiles": given[:, products::products] - complete[:, last],
        "of it, work": asked[:, products::products] - complete[:, last],
        "wait for a turn": given - asked,
        "products of a turn": complete - given,
    }
    names = ("q20", "median", "q80")
    found = {
        name: {n: each.double().quantile(q).item() for n, q in zip(names, (0.2, 0.5, 0.8), strict=True)}
        for name, each in cycles.items()
        if each.numel()
    }
    return {"cycles": found, "turns": turns, "ok": turns > products}


def profile(what: str, cluster: int, check: bool) -> dict[str, Any]:
    """Launch the kernel once: a 4K frame, a million random queries, or a thousand."""
    from benchmarks import gpu_sections
    from liif_fast import functional
    from liif_fast.backends import cuda

    cuda.CLUSTER = cluster
    feat, weights, biases = gpu_sections._problem(check, 48, 1, torch.float16)
    backend = "torch" if check else "cuda"
    if what != "frame":
        coord, cell = gpu_sections._queries(check, 1, 1 << 20 if what == "queries" else 1000)
        functional.liif_decode(feat, coord, cell, weights, biases, backend=backend)
    else:
        feat = torch.randn(1, 64, *((7, 9) if check else (540, 960)), device=feat.device, dtype=feat.dtype)
        size = feat.shape[2] * 4, feat.shape[3] * 4
        functional.liif_render(feat, size, weights, biases, backend=backend)
    if not check:
        torch.cuda.synchronize()
    return {"ok": True}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("step", choices=("build", "smoke", "trace", "profile"))
    parser.add_argument("what", nargs="?", choices=("frame", "queries", "few"), default="frame")
    parser.add_argument("--cluster", type=int, choices=(1, 2), default=1)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.step == "build":
        for name in BUILDS:
            build(name)
        return 0
    if options.step == "profile":
        found = profile(options.what, options.cluster, options.check)
    else:
        name = "trap" if options.step == "smoke" else "trace"
        if not options.check:
            build(name)
            use(name)
        found = (smoke if options.step == "smoke" else trace)(options.check)
    print(json.dumps(found))
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
