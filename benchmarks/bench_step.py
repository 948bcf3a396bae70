"""A whole training step in the paper's setting: EDSR-baseline-LIIF, 16 samples of 2,304 queries, L1 loss, Adam.

The rate is 0, so that every step does all the work and finds the same weights.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import eager
from benchmarks.common import EAGER, make_queries
from liif_fast import models
from liif_fast.layers import linear_chain
from liif_fast.train.config import Config
from liif_fast.train.stepper import Stepper

HALF = {"sub": [0.5], "div": [0.5]}


def make_config(blocks: int, feats: int, hidden: tuple[int, ...]) -> Config:
    """Return what a stepper reads of a configuration."""
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": blocks, "n_feats": feats, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": list(hidden)}}
    values: dict[str, Any] = dict.fromkeys(Config.__dataclass_fields__)
    values |= {"model": {"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}}
    values |= {"optimizer": {"name": "adam", "args": {"lr": 1e-4}}, "data_norm": {"inp": HALF, "gt": HALF}}
    return Config(**values | {"channels_last": True, "grad_accum": 1})


def test_step(device: torch.device, race: Callable[..., Any], pick: Callable[..., Any]) -> None:
    side, samples, count = pick(48, 48, 9), pick(16, 4, 2), pick(2304, 2304, 60)
    size = pick((16, 64, (256,) * 4), (16, 64, (256,) * 4), (1, 8, (16, 16)))
    config = make_config(*size)
    torch.manual_seed(0)
    model = models.make(config.model).to(device)
    coord, cell = make_queries(samples, count, side, device)
    inp, gt = (torch.rand(samples, *shape, device=device) for shape in ((3, side, side), (count, 3)))
    plain = copy.deepcopy(model)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.0)
    stepper = Stepper(model.to(memory_format=torch.channels_last), config)
    stepper.set_rate(0.0)
    batch = [{"inp": inp, "coord": coord, "cell": cell, "gt": gt}]

    def ours() -> list[Tensor]:
        loss = stepper.step([batch], [True]).loss
        return [loss, *(p.grad for p in stepper.parameters)]

    def theirs() -> list[Tensor]:
        feat = plain.encoder((inp - 0.5) / 0.5)
        loss = (eager.decode(feat, coord, cell, *linear_chain(plain.imnet.layers)) - (gt - 0.5) / 0.5).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return [loss.detach(), *(p.grad for p in plain.parameters() if p.requires_grad)]

    race(
        "train-step",
        f"training step, EDSR-baseline-LIIF, B = {samples}, Q = {count:,}, {side}x{side}",
        ours,
        {EAGER: theirs},
        theirs(),
        rounds=5,
    )
