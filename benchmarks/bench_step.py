"""Measure a training step in the paper's setting: EDSR-baseline-LIIF, 16 samples of 2,304 queries, L1 loss, Adam.

The learning rate is 0, so that every step does all the work on the same weights. On a GPU there is also the usual
setting, autocast to bfloat16 and a compiled encoder, with every backend for GPUs, against the plain model in float32
and under the same autocast.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from benchmarks import eager
from benchmarks.bench import Bench, rows
from benchmarks.common import EAGER, GRADIENT_TOLERANCE, OURS, REFERENCE, TOLERANCE, Call, Raced, make_queries
from benchmarks.gpu_sections import FUSED
from liif_fast import models
from liif_fast.layers import linear_chain
from liif_fast.train.config import Config
from liif_fast.train.stepper import Stepper

CHOSEN = {f"liif_fast, {backend}": backend for backend in FUSED}
HALF = {"sub": [0.5], "div": [0.5]}
# bfloat16 rounds operands to 8 bits, by up to 4e-3; errors of about twenty layers add up in the first one's gradient.
BFLOAT_TOLERANCES = (2e-2, 2e-1)


def make_config(blocks: int, feats: int, hidden: tuple[int, ...], half: bool) -> Config:
    """Return what a stepper reads of a configuration."""
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": blocks, "n_feats": feats, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": list(hidden)}}
    values: dict[str, Any] = dict.fromkeys(Config.__dataclass_fields__)
    values |= {"model": {"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}}
    values |= {"optimizer": {"name": "adam", "args": {"lr": 1e-4}}, "data_norm": {"inp": HALF, "gt": HALF}}
    values |= {"amp": "bf16", "compile": True} if half else {}
    return Config(**values | {"channels_last": True, "grad_accum": 1})


@rows(EAGER, *CHOSEN, half=True)
def test_step(bench: Bench) -> Raced:
    half = bench.heat.half
    side, samples, count = bench.pick(48, 48, 9), bench.pick(16, 4, 2), bench.pick(2304, 2304, 60)
    size = (*bench.pick((16, 64), (16, 64), (1, 8)), bench.hidden)
    torch.manual_seed(0)
    model = models.make(make_config(*size, half).model).to(bench.device)
    coord, cell = make_queries(samples, count, side, bench.device)
    inp, gt = (torch.rand(samples, *shape, device=bench.device) for shape in ((3, side, side), (count, 3)))
    plain = copy.deepcopy(model)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.0)
    batch = [{"inp": inp, "coord": coord, "cell": cell, "gt": gt}]

    def ours(backend: str, half: bool = half) -> Call:
        trained: Any = copy.deepcopy(model).to(memory_format=torch.channels_last)
        trained.backend = backend
        stepper = Stepper(trained, make_config(*size, half))
        stepper.set_rate(0.0)
        return lambda: [stepper.step([batch], [True]).loss, *(p.grad for p in stepper.parameters if p.grad is not None)]

    def theirs() -> list[Tensor]:
        feat = plain.encoder((inp - 0.5) / 0.5)
        loss = (eager.decode(feat, coord, cell, *linear_chain(plain.imnet.layers)) - (gt - 0.5) / 0.5).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return [loss.detach(), *(p.grad for p in plain.parameters() if p.requires_grad)]

    def theirs_half() -> list[Tensor]:
        with torch.autocast(bench.device.type, torch.bfloat16):
            return theirs()

    return bench.race(
        "train-step-half" if half else "train-step",
        f"training step, EDSR-baseline-LIIF, B = {samples}, Q = {count:,}, {side}x{side}"
        + (", bfloat16, compiled encoder" if half else ""),
        {
            OURS: ours("auto"),
            REFERENCE: ours("reference", half=False),
            EAGER: theirs_half if half else theirs,
            **({name: ours(backend) for name, backend in CHOSEN.items()} if half else {}),
        },
        rounds=5,
        tolerances=BFLOAT_TOLERANCES if half else (TOLERANCE, GRADIENT_TOLERANCE),
    )
