"""Measure a training step in the paper's setting: EDSR-baseline-LIIF, 16 samples of 2,304 queries, L1 loss, Adam.

The learning rate is 0, so that every step does all the work on the same weights. A second race runs under autocast to
bfloat16. On a GPU it compiles the encoder, as is usual, and includes every GPU backend. On a CPU with bfloat16
instructions it includes the plain model, and ours in float32.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from benchmarks import eager
from benchmarks.bench import Bench, rows
from benchmarks.bench_bfloat16 import EAGER_FLOAT32, FLOAT32, LOW_TOLERANCES, needs_bfloat16
from benchmarks.common import EAGER, GRADIENT_TOLERANCE, OURS, REFERENCE, TOLERANCE, Call, Raced, make_queries
from benchmarks.gpu_sections import FUSED
from liif_fast import models
from liif_fast.layers import linear_chain
from liif_fast.train.config import Config
from liif_fast.train.stepper import Stepper

CHOSEN = {f"liif_fast, {backend}": backend for backend in FUSED}
HALF = {"sub": [0.5], "div": [0.5]}


def make_config(blocks: int, feats: int, hidden: tuple[int, ...], amp: bool, compiled: bool) -> Config:
    """Return a configuration with the settings that a stepper reads."""
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": blocks, "n_feats": feats, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": list(hidden)}}
    values: dict[str, Any] = dict.fromkeys(Config.__dataclass_fields__)
    values |= {"model": {"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}}
    values |= {"optimizer": {"name": "adam", "args": {"lr": 1e-4}}, "data_norm": {"inp": HALF, "gt": HALF}}
    values |= {"amp": "bf16"} if amp else {}
    return Config(**values | {"compile": compiled, "channels_last": True, "grad_accum": 1})


class Steps:
    """Make the steps of one model on one batch."""

    def __init__(self, bench: Bench) -> None:
        side, samples, count = bench.pick(48, 48, 9), bench.pick(16, 4, 2), bench.pick(2304, 2304, 60)
        self.size = (*bench.pick((16, 64), (16, 64), (1, 8)), bench.hidden)
        self.title = f"training step, EDSR-baseline-LIIF, B = {samples}, Q = {count:,}, {side}x{side}"
        self.device = bench.device
        torch.manual_seed(0)
        self.model = models.make(make_config(*self.size, amp=False, compiled=False).model).to(self.device)
        coord, cell = make_queries(samples, count, side, self.device)
        inp, gt = (torch.rand(samples, *shape, device=self.device) for shape in ((3, side, side), (count, 3)))
        self.batch = {"inp": inp, "coord": coord, "cell": cell, "gt": gt}

    def ours(self, backend: str, amp: bool = False, compiled: bool = False) -> Call:
        """Return a step of this package's trainer."""
        trained: Any = copy.deepcopy(self.model).to(memory_format=torch.channels_last)
        trained.backend = backend
        stepper = Stepper(trained, make_config(*self.size, amp, compiled))
        stepper.set_rate(0.0)
        batches = [self.batch]
        return lambda: [
            stepper.step([batches], [True]).loss,
            *(p.grad for p in stepper.parameters if p.grad is not None),
        ]

    def theirs(self, amp: bool = False) -> Call:
        """Return a step as the original computes it."""
        plain, (inp, coord, cell, gt) = copy.deepcopy(self.model), self.batch.values()
        optimizer = torch.optim.Adam(plain.parameters(), lr=0.0)

        def run() -> list[Tensor]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=amp):
                feat = plain.encoder((inp - 0.5) / 0.5)
                out = eager.decode(feat, coord, cell, *linear_chain(plain.imnet.layers))
                loss = (out - (gt - 0.5) / 0.5).abs().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return [loss.detach(), *(p.grad for p in plain.parameters() if p.requires_grad)]

        return run


@rows(EAGER, *CHOSEN, half=True)
def test_step(bench: Bench) -> Raced:
    half, steps = bool(bench.heat.half), Steps(bench)
    return bench.race(
        "train-step-half" if half else "train-step",
        steps.title + (", bfloat16, compiled encoder" if half else ""),
        {
            OURS: steps.ours("auto", half, half),
            REFERENCE: steps.ours("reference", compiled=half),
            EAGER: steps.theirs(half),
            **({name: steps.ours(backend, half, half) for name, backend in CHOSEN.items()} if half else {}),
        },
        rounds=5,
        tolerances=LOW_TOLERANCES if half else (TOLERANCE, GRADIENT_TOLERANCE),
    )


@rows(EAGER, EAGER_FLOAT32, FLOAT32)
def test_step_bfloat16(bench: Bench) -> Raced:
    needs_bfloat16(bench)
    steps = Steps(bench)
    return bench.race(
        "train-step-bf16",
        f"{steps.title}, bfloat16",
        {
            OURS: steps.ours("auto", amp=True),
            REFERENCE: steps.ours("reference"),
            EAGER: steps.theirs(amp=True),
            EAGER_FLOAT32: steps.theirs(),
            FLOAT32: steps.ours("auto"),
        },
        rounds=5,
        tolerances=LOW_TOLERANCES,
    )
