"""Measure a tile of the viewer: the first one of a photograph, and those after it.

`python -m benchmarks.view` measures a whole request, server included.
"""

import numpy as np
import torch
from PIL import Image

import liif_fast
from benchmarks.bench import Bench, rows
from benchmarks.common import FACTORISED, Raced, backends
from benchmarks.records import ROOT
from liif_fast import Upscaler

PHOTO = ROOT / "liif_fast" / "assets" / "chelsea.png"
SCALE = 4


def _race(bench: Bench, key: str, title: str, kept: bool) -> Raced:
    side = bench.pick(256, 128, 16)
    with Image.open(PHOTO) as photo:
        image = np.asarray(photo.convert("RGB"), np.float32) / 255
    model = liif_fast.load_model(liif_fast.models.catalogue.shipped_model(), device=bench.device)
    region = (SCALE * 20, SCALE * 20, side, side)
    opened: dict[str, Upscaler] = {}

    def run(backend: str) -> torch.Tensor:
        if not kept or backend not in opened:
            opened[backend] = Upscaler(image, model, backend=backend)
        return torch.from_numpy(opened[backend].render(scale=SCALE, region=region)).flatten(0, 1)

    return bench.race(key, title.format(side), backends(run), rounds=9)


@rows(FACTORISED)
def test_first_tile(bench: Bench) -> Raced:
    return _race(bench, "view-first", f"view: the first {{0}}x{{0}} tile at x{SCALE}, encoding its surroundings", False)


@rows(FACTORISED)
def test_next_tile(bench: Bench) -> Raced:
    return _race(bench, "view-tile", f"view: a {{0}}x{{0}} tile at x{SCALE}, surroundings already encoded", True)
