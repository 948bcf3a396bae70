"""Upscale a picture with the shipped model, including the encoder, by `liif_fast.upscale`."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import liif_fast
from benchmarks import eager
from benchmarks.bench import Bench, autocast, rows
from benchmarks.bench_bfloat16 import EAGER_FLOAT32, FLOAT32, LOW_TOLERANCES, needs_bfloat16
from benchmarks.common import EAGER, FACTORISED, REFERENCE, Call, Raced, backends
from benchmarks.records import ROOT
from liif_fast.layers import linear_chain
from liif_fast.models.catalogue import shipped_model

PHOTO = ROOT / "liif_fast" / "assets" / "chelsea.png"


SCALE = 2


def _picture(bench: Bench) -> tuple[str, Call, Callable[..., torch.Tensor]]:
    """Return a title, the plain formula's call and ours, which takes a backend and a precision."""
    side = bench.pick(160, 64, 12)
    photo = Image.open(PHOTO).convert("RGB").crop((120, 60, 120 + side, 60 + side))
    image = np.asarray(photo, dtype=np.float32) / 255
    model = liif_fast.load_model(shipped_model(), device=bench.device)
    weights, biases = linear_chain(model.imnet.layers)
    norm = model.norm()

    def plain() -> torch.Tensor:
        """Enlarge as the original's demo does: normalise, encode, decode the plain formula in chunks, undo, clamp."""
        inp = torch.from_numpy(image).to(bench.device).permute(2, 0, 1).unsqueeze(0)
        inp = norm.inp(inp)
        out = eager.render(model.encoder(inp), (side * SCALE,) * 2, weights, biases).float()
        if model.reads_input:  # the shipped model adds a residual that the original does not have
            coord, _ = eager.grid((side * SCALE,) * 2, inp)
            base = F.grid_sample(inp, coord.flip(-1).unsqueeze(1), padding_mode="border", align_corners=False)
            out = out + base.squeeze(2).transpose(1, 2)
        return norm.values(out[0]).clamp(0, 1).cpu()

    def run(backend: str, precision: str = "float32") -> torch.Tensor:
        options = {"device": bench.device, "backend": backend, "precision": precision}
        return torch.from_numpy(liif_fast.upscale(image, model, scale=SCALE, **options)).flatten(0, 1)

    return f"upscale x{SCALE} of a {side}x{side} picture, encoder included", plain, run


@rows(EAGER, FACTORISED)
@torch.no_grad()
def test_upscale(bench: Bench) -> Raced:
    title, plain, run = _picture(bench)
    return bench.race(f"upscale-x{SCALE}", title, backends(run) | {EAGER: plain}, rounds=9)


@rows(FLOAT32, EAGER, EAGER_FLOAT32, FACTORISED)
@torch.no_grad()
def test_upscale_bfloat16(bench: Bench) -> Raced:
    """Race encoding and decoding in bfloat16, as in `upscale --precision bf16`."""
    needs_bfloat16(bench)
    title, plain, run = _picture(bench)
    calls = backends(partial(run, precision="bf16"))
    calls[REFERENCE] = partial(run, "reference")
    calls |= {FLOAT32: partial(run, "auto"), EAGER: autocast(plain, "cpu", torch.bfloat16), EAGER_FLOAT32: plain}
    return bench.race(f"upscale-x{SCALE}-bf16", f"{title}, bfloat16", calls, rounds=9, tolerances=LOW_TOLERANCES)
