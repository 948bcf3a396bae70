"""Upscale a picture with the shipped model, including the encoder, by `liif_fast.upscale`."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import liif_fast
from benchmarks import eager
from benchmarks.bench import Bench, rows
from benchmarks.common import EAGER, FACTORISED, Raced, backends
from benchmarks.records import ROOT
from liif_fast.layers import linear_chain
from liif_fast.models.catalogue import shipped_model

PHOTO = ROOT / "liif_fast" / "assets" / "chelsea.png"


@rows(EAGER, FACTORISED)
@torch.no_grad()
def test_upscale(bench: Bench) -> Raced:
    side, scale = bench.pick(160, 64, 12), 2
    photo = Image.open(PHOTO).convert("RGB").crop((120, 60, 120 + side, 60 + side))
    image = np.asarray(photo, dtype=np.float32) / 255
    model = liif_fast.load_model(shipped_model(), device=bench.device)
    weights, biases = linear_chain(model.imnet.layers)
    norm = model.norm()

    def plain() -> torch.Tensor:
        """Enlarge as the original's demo does: normalise, encode, decode the plain formula in chunks, undo, clamp."""
        inp = torch.from_numpy(image).to(bench.device).permute(2, 0, 1).unsqueeze(0)
        inp = norm.inp(inp)
        out = eager.render(model.encoder(inp), (side * scale,) * 2, weights, biases)
        if model.reads_input:  # the shipped model's residual, which the original has not
            coord, _ = eager.grid((side * scale,) * 2, inp)
            base = F.grid_sample(inp, coord.flip(-1).unsqueeze(1), padding_mode="border", align_corners=False)
            out = out + base.squeeze(2).transpose(1, 2)
        return norm.values(out[0]).clamp(0, 1).cpu()

    def run(backend: str) -> torch.Tensor:
        out = liif_fast.upscale(image, model, scale=scale, device=bench.device, backend=backend)
        return torch.from_numpy(out).flatten(0, 1)

    return bench.race(
        f"upscale-x{scale}",
        f"upscale x{scale} of a {side}x{side} picture, encoder included",
        backends(run) | {EAGER: plain},
        rounds=9,
    )
