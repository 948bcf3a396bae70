"""Provide helpers for the training tests."""

import pytest
import torch

from liif_fast.train import train
from liif_fast.train.records import read_log


def load(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    """Assert equality of nested containers, bit for bit in tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def run(write, config, root, **args):
    return train(write(config), save_root=root, device="cpu", **args)


def assert_same_training(one, two):
    """Assert that the losses, the validation and the weights of two run folders are equal up to rounding."""
    logs = [read_log(folder / "log.csv") for folder in (one, two)]
    assert len(logs[0]) == len(logs[1]) > 0
    for a, b in zip(*logs, strict=True):
        assert a["steps"] == b["steps"]
        assert b["loss"] == pytest.approx(a["loss"], rel=0, abs=1e-6)
        assert b["psnr"] == pytest.approx(a["psnr"], abs=1e-3)
    states = [load(folder / "epoch-last.pth")["model"]["sd"] for folder in (one, two)]
    for key, value in states[0].items():
        # Adam normalises gradients, so rounding of a small one moves its weight by up to a share of the rate.
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=1e-4)
