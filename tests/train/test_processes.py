"""Compare two processes, started by torchrun and joined by gloo, with one that has the same batches."""

import subprocess
import sys

from .support import assert_same_training, load, run

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


def test_two_processes_train_as_one(tmp_path, uneven, write):
    one = run(write, uneven, tmp_path, name="one")
    stopped = torchrun(tmp_path, write(uneven), "stop")
    assert stopped.returncode != 0
    assert load(tmp_path / "two" / "epoch-last.pth")["liif_fast"]["step"] == 1
    done = torchrun(tmp_path, write(uneven))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("epoch 3/3, loss ") == 1  # logged once
    assert_same_training(one, tmp_path / "two")


def test_a_signal_after_the_last_look_ends_all_processes_when_all_is_written(tmp_path, uneven, write):
    stopped = torchrun(tmp_path, write(uneven | {"epoch_max": 1}), "late")
    assert "exitcode  : 143" in stopped.stderr
    assert load(tmp_path / "two" / "epoch-last.pth")["epoch"] == 1
