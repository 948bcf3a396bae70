"""Compare a resumed run with an uninterrupted plain loop, for every memory layout of the file.

test_stepper.py tests the optimizers' steps alone; here are the file, the model built from it and the average.
"""

import copy

import pytest
import torch

from liif_fast import models
from liif_fast.train.config import check_config
from liif_fast.train.trainer import Run

from .test_stepper import batches, plain_error

ADAM = {"name": "adam", "args": {"lr": 1e-3, "betas": [0.5, 0.9]}}
SGD = {"name": "sgd", "args": {"lr": 1e-2, "momentum": 0.9}}
OPTIMIZERS = {"adam": ADAM, "adam, foreach": {"name": "adam", "args": ADAM["args"] | {"foreach": True}}, "sgd": SGD}
BEFORE, AFTER, DECAY = 3, 4, 0.9


class Plain:
    """Train by the formulas, PyTorch's optimizer without options for its kernels, and the documented average."""

    def __init__(self, config):
        torch.manual_seed(0)
        self.model = models.make(config.model)
        self.average = copy.deepcopy(self.model)
        args = {key: value for key, value in config.optimizer["args"].items() if key not in ("fused", "foreach")}
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.optimizer["name"]]
        self.optimizer = kind(self.model.parameters(), **args, foreach=False, fused=False)
        self.steps = 0

    def step(self, batch):
        total, count = plain_error("liif", self.model, batch)
        self.optimizer.zero_grad()
        (total / count).backward()
        self.optimizer.step()
        self.steps += 1
        decay = min(DECAY, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.model.parameters(), strict=True):
                kept.copy_(decay * kept + (1 - decay) * new)
        return (total / count).item()

    def checkpoint(self, config):
        """Write a checkpoint as the original's train_liif.py does."""
        optimizer = {**config.optimizer, "sd": self.optimizer.state_dict()}
        return {"model": {**config.model, "sd": self.model.state_dict()}, "optimizer": optimizer, "epoch": 0}


def resumed(tmp_path, config, checkpoint):
    torch.save(checkpoint, tmp_path / "epoch-last.pth")
    return Run(config, tmp_path / "resumed", torch.device("cpu"), tmp_path / "epoch-last.pth")


def assert_goes_on(run, plain, given):
    run.stepper.set_rate(run.config.rate(0))
    for batch in given:
        assert run.stepper.step([batch], [True]).loss.item() == pytest.approx(plain.step(batch), rel=0, abs=1e-6)
    pairs = [(run.stepper.model, plain.model)]
    pairs += [(run.stepper.average, plain.average)] if run.config.ema else []
    for ours, expected in pairs:
        for (key, value), right in zip(ours.state_dict().items(), expected.state_dict().values(), strict=True):
            torch.testing.assert_close(value, right, rtol=0, atol=3e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.fixture
def tiny(tiny):
    tiny["train_dataset"]["dataset"]["args"]["repeat"] = 4  # enough for seven batches
    return tiny


def configure(tiny, optimizer, **keys):
    return check_config(copy.deepcopy(tiny) | {"optimizer": copy.deepcopy(optimizer), "epoch_max": 1} | keys)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_originals_file(tmp_path, tiny, name, channels_last):
    config = configure(tiny, OPTIMIZERS[name], channels_last=channels_last)
    plain, given = Plain(config), batches(tiny, 2, BEFORE + AFTER)
    for batch in given[:BEFORE]:
        plain.step(batch)
    run = resumed(tmp_path, config, plain.checkpoint(config))
    assert_goes_on(run, plain, given[BEFORE:])


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_our_file_in_another_layout(tmp_path, tiny, name, before, after):
    config = configure(tiny, OPTIMIZERS[name], channels_last=before, ema=DECAY)
    plain, given = Plain(config), batches(tiny, 2, BEFORE + AFTER)
    run = Run(config, tmp_path / "first", torch.device("cpu"))
    assert_goes_on(run, plain, given[:BEFORE])
    config = configure(tiny, OPTIMIZERS[name], channels_last=after, ema=DECAY)
    assert_goes_on(resumed(tmp_path, config, run.checkpoint()), plain, given[BEFORE:])


def test_a_state_with_gaps(tmp_path, tiny):
    """Return tensors with the strides of saved views."""
    config = configure(tiny, ADAM, channels_last=False)
    plain, given = Plain(config), batches(tiny, 2, BEFORE + AFTER)
    for batch in given[:BEFORE]:
        plain.step(batch)
    checkpoint = copy.deepcopy(plain.checkpoint(config))
    for values in checkpoint["optimizer"]["sd"]["state"].values():
        pair = torch.stack((values["exp_avg"], values["exp_avg_sq"]), -1)
        values["exp_avg"], values["exp_avg_sq"] = pair.unbind(-1)
    assert_goes_on(resumed(tmp_path, config, checkpoint), plain, given[BEFORE:])
