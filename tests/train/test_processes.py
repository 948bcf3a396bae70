"""Two processes, started by torchrun and joined by gloo, against one with the same batches."""

import subprocess
import sys

import pytest
import torch

from liif_fast.train.records import read_log

from .support import load, run

SCRIPT = """
import os, signal, sys
from pathlib import Path
from liif_fast import distributed
from liif_fast.cli import main
import liif_fast.train as package
from liif_fast.train.trainer import Run
train = package.train
package.train = lambda *args, **options: train(*args, save_root=Path(sys.argv[1]).parent, **options)
if "stop" in sys.argv and distributed.rank() == 1:  # one of them gets the signal: all stop after the same step
    step, count = Run._set_rate, []
    def counted(self, epochs):
        count.append(epochs)
        if len(count) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, epochs)
    Run._set_rate = counted
if "late" in sys.argv and distributed.rank() == 1:  # after the last look of the last epoch
    look = Run._look
    def late(self, bar):
        look(self, bar)
        if self.progress.epoch + 1 == self.config.epoch_max and self.progress.step == self.steps:
            os.kill(os.getpid(), signal.SIGTERM)
    Run._look = late
code = main(["train", "--config", sys.argv[1], "--name", "two", "--device", "cpu", "--resume"])
sys.exit(code)
"""


def torchrun(tmp_path, config, *options):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run([*command, script, config, *options], capture_output=True, text=True, timeout=200)


@pytest.fixture
def uneven(tiny):
    """Batches of 3, 3 and 1 samples, of all pixels of crops of several sizes, two to a step."""
    tiny["train_dataset"]["dataset"]["args"] |= {"count": 7, "repeat": 1}
    tiny["train_dataset"]["wrapper"]["args"]["sample_q"] = "all"
    tiny["train_dataset"]["batch_size"] = 3
    tiny["optimizer"]["args"]["lr"] = 1e-3
    return tiny | {"grad_accum": 2, "epoch_max": 3, "ema": 0.9}


def test_two_processes_train_as_one(tmp_path, uneven, write):
    one = run(write, uneven, tmp_path, name="one")
    stopped = torchrun(tmp_path, write(uneven), "stop")
    assert stopped.returncode != 0
    assert load(tmp_path / "two" / "epoch-last.pth")["liif_fast"]["step"] == 1
    done = torchrun(tmp_path, write(uneven))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("epoch 3/3, loss ") == 1  # told once
    logs = [read_log(folder / "log.csv") for folder in (one, tmp_path / "two")]
    assert len(logs[0]) == len(logs[1]) == 3
    for a, b in zip(*logs, strict=True):
        assert a["steps"] == b["steps"]
        assert b["loss"] == pytest.approx(a["loss"], rel=0, abs=1e-6)
        assert b["psnr"] == pytest.approx(a["psnr"], abs=1e-3)
    states = [load(folder / "epoch-last.pth")["model"]["sd"] for folder in (one, tmp_path / "two")]
    for key, value in states[0].items():
        # Adam normalises the gradients: rounding of a small one moves its weight by up to a part of the rate.
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=1e-4)


def test_a_signal_after_the_last_look_ends_all_processes_when_all_is_written(tmp_path, uneven, write):
    stopped = torchrun(tmp_path, write(uneven | {"epoch_max": 1}), "late")
    assert "exitcode  : 143" in stopped.stderr
    assert load(tmp_path / "two" / "epoch-last.pth")["epoch"] == 1
