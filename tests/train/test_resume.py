"""A training stopped in any way and resumed equals an uninterrupted one bit for bit."""

import csv
import errno
import os
import select
import signal
import sys
import time

import pytest
import torch

from liif_fast import files, signals
from liif_fast.train import trainer
from liif_fast.train.config import check_config
from liif_fast.train.records import read_log
from liif_fast.train.trainer import Run
from liif_fast.train.validation import Validation

from .. import warm
from .support import load, run, same

SGD = {"name": "sgd", "args": {"lr": 0.01, "momentum": 0.9}}
OURS = {"ema": 0.9, "multi_step_lr": None, "cosine": {"warmup": 1}, "val_seed": None}
CHECKPOINTS = ("epoch-last.pth", "epoch-best.pth", "epoch-2.pth", "epoch-4.pth")


def assert_same_runs(whole, parts):
    for name in CHECKPOINTS:
        assert same(load(whole / name), load(parts / name)), name
    logs = [[row | {"seconds": 0} for row in read_log(folder / "log.csv")] for folder in (whole, parts)]
    assert logs[0] == logs[1]
    assert [row["epoch"] for row in logs[0]] == [1, 2, 3, 4]


@pytest.fixture
def stop_at(monkeypatch):
    """Send this process a signal during a step of a given number."""

    def arrange(number, signum=signal.SIGINT, times=1):
        step, count = Run._set_rate, []

        def counted(self, epochs):
            count.append(epochs)
            if len(count) == number:
                for _ in range(times):
                    os.kill(os.getpid(), signum)
            step(self, epochs)

        monkeypatch.setattr(Run, "_set_rate", counted)

    return arrange


KEYS = [
    {},
    OURS,
    OURS | {"optimizer": SGD},
    {"grad_accum": 2, "grad_clip": 0.1},
    {"amp": "fp16", "num_workers": 1},
    {"data_device": "cpu"},
]


@pytest.mark.parametrize("extra", KEYS, ids=str)
def test_ctrl_c_in_the_midst_of_an_epoch(tmp_path, tiny, write, extra, stop_at, monkeypatch):
    tiny["train_dataset"]["dataset"]["args"]["repeat"] = 5  # five steps per epoch, or three
    tiny["train_dataset"]["wrapper"]["args"]["degrade"] = True
    tiny |= extra
    whole = run(write, tiny, tmp_path / "whole")
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context():
        stop_at(9)
        with pytest.raises(KeyboardInterrupt):
            run(write, tiny, tmp_path / "parts")
    assert signal.getsignal(signal.SIGINT) is handler
    folder = tmp_path / "parts" / "_tiny"
    steps = 3 if "grad_accum" in extra else 5
    stopped = load(folder / "epoch-last.pth")
    # each epoch ends with one more call, for the rate of the next
    assert (stopped["epoch"], stopped["liif_fast"]["step"]) == divmod(9 - 9 // (steps + 1), steps)
    assert "; --resume continues from there" in (folder / "log.txt").read_text()
    monkeypatch.undo()
    torch.manual_seed(99)  # regardless of the process's past
    assert_same_runs(whole, run(write, tiny, tmp_path / "parts", resume=True))
    assert "and" in (folder / "log.txt").read_text().split("resumed from")[1].split("\n")[0]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str)
def test_other_signals_end_with_their_codes(tmp_path, tiny, write, stop_at, signum, code):
    stop_at(1, signum)
    with pytest.raises(SystemExit) as caught:
        run(write, tiny, tmp_path)
    assert caught.value.code == code
    assert load(tmp_path / "_tiny" / "epoch-last.pth")["liif_fast"]["step"] == 1


@pytest.mark.parametrize("later", [True, False])
def test_a_second_signal_ends_at_once_unless_it_belongs_to_the_first(
    tmp_path, tiny, write, stop_at, monkeypatch, later
):
    """A terminal that a shell closes sends SIGHUP twice, and the checkpoint must still be written."""
    if later:
        monkeypatch.setattr(signals, "AT_ONCE", 0)
    stop_at(1, times=2)
    with pytest.raises(KeyboardInterrupt):
        run(write, tiny, tmp_path)
    assert (tmp_path / "_tiny" / "epoch-last.pth").exists() is not later


def test_a_run_goes_on_after_ctrl_c(tmp_path, tiny, stop_at):
    """A run can train again after a stop, and the old signal does not count as the first one."""
    tiny["train_dataset"]["dataset"]["args"]["repeat"] = 5
    training = Run(check_config(tiny | {"epoch_max": 1}), tmp_path / "run", torch.device("cpu"))
    stop_at(1)
    with pytest.raises(KeyboardInterrupt):
        training.train()
    assert training.progress.step == 1
    training.train()
    assert training.progress.epoch == 1


def test_ctrl_c_in_the_last_step_of_an_epoch_loses_nothing(tmp_path, tiny, write, stop_at, monkeypatch):
    whole = run(write, tiny, tmp_path / "whole")
    stop_at(2)
    with pytest.raises(KeyboardInterrupt):
        run(write, tiny, tmp_path / "parts")
    assert load(tmp_path / "parts" / "_tiny" / "epoch-last.pth")["liif_fast"]["step"] == 2
    monkeypatch.undo()
    assert_same_runs(whole, run(write, tiny, tmp_path / "parts", resume=True))


def test_ctrl_c_after_the_last_look_is_not_lost(tmp_path, tiny, write, monkeypatch):
    """A signal may come while a checkpoint is written."""
    whole = run(write, tiny, tmp_path / "whole")
    look = Run._look

    def late(self, bar):
        look(self, bar)
        if self.progress.step == self.steps:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_look", late)
        with pytest.raises(KeyboardInterrupt):
            run(write, tiny, tmp_path / "parts")
    stopped = load(tmp_path / "parts" / "_tiny" / "epoch-last.pth")
    assert (stopped["epoch"], stopped["liif_fast"]["step"]) == (0, 2)
    assert_same_runs(whole, run(write, tiny, tmp_path / "parts", resume=True))


def test_a_failed_validation_loses_no_epoch(tmp_path, tiny, write, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of memory")

    whole = run(write, tiny, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Validation, "psnr", fail)
        with pytest.raises(RuntimeError):
            run(write, tiny, tmp_path / "parts")
    assert load(tmp_path / "parts" / "_tiny" / "epoch-last.pth")["liif_fast"]["step"] == 2
    assert_same_runs(whole, run(write, tiny, tmp_path / "parts", resume=True))


def test_a_log_ahead_of_its_checkpoint(tmp_path, tiny, write, monkeypatch):
    """After a stop between an epoch's row and its checkpoint, with half a row more, no epoch is lost or repeated."""
    whole = run(write, tiny, tmp_path / "whole")
    save = trainer.write_checkpoint

    def stop(content, path):
        if path.name == "epoch-last.pth" and content["epoch"] == 2 and "step" not in content["liif_fast"]:
            raise KeyboardInterrupt
        save(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            run(write, tiny, tmp_path / "parts")
    log = tmp_path / "parts" / "_tiny" / "log.csv"
    assert len(list(csv.reader(log.open()))) == 3
    with log.open("a") as file:
        file.write("3,6,0.1")
    assert_same_runs(whole, run(write, tiny, tmp_path / "parts", resume=True))


def test_another_order_starts_the_epoch_again(tmp_path, tiny, write, stop_at, monkeypatch, capsys):
    stop_at(1)
    with pytest.raises(KeyboardInterrupt):
        run(write, tiny, tmp_path)
    monkeypatch.undo()
    tiny["train_dataset"]["batch_size"] = 2
    folder = run(write, tiny | {"epoch_max": 1}, tmp_path, resume=True)
    assert "the unfinished epoch starts again" in capsys.readouterr().out
    assert [row["steps"] for row in read_log(folder / "log.csv")] == [1 + 4]


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, tiny, write, monkeypatch):
    folder = run(write, tiny | {"epoch_max": 2}, tmp_path)
    before = (folder / "epoch-last.pth").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run(write, tiny, tmp_path, resume=True)
    assert (folder / "epoch-last.pth").read_bytes() == before
    assert not list(folder.glob("*.part"))
    run(write, tiny, tmp_path, resume=True)
    assert load(folder / "epoch-last.pth")["epoch"] == 4


# In a process of its own, with a configuration and where to save.
START = """
import resource, sys, time
from liif_fast.cli import main
from liif_fast.train.stepper import Stepper
import liif_fast.train as package
step = Stepper.step
if "slow" in sys.argv:
    Stepper.step = lambda *args: (time.sleep(0.3), step(*args))[1]
train = package.train
package.train = lambda *args, root=sys.argv[2], **options: train(*args, save_root=root, **options)
if "limited" in sys.argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
options = ["--resume"] if "--resume" in sys.argv else []
sys.argv[1:] = ["train", "--config", sys.argv[1], "--device", "cpu", *options]
sys.exit(main())
"""


def test_files_that_cannot_grow(tmp_path, tiny, write):
    """A file-size limit in a process gives one line, exit code 1, and an unchanged old checkpoint."""
    folder = run(write, tiny | {"epoch_max": 1}, tmp_path)
    before = (folder / "epoch-last.pth").read_bytes()
    assert len(before) > 20_000
    done = warm.run("-c", START, write(tiny), tmp_path, "--resume", "limited", modules=warm.OPTIMIZERS)
    assert done.returncode == 1, done.stderr
    assert "liif-fast: error: " in done.stderr and "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "epoch-last.pth").read_bytes() == before
    assert not list(folder.glob("*.part"))


def test_killed_at_any_moment(tmp_path, tiny, write):
    """Kill with -9 twice, at any step or write, with a checkpoint after every step."""
    tiny["train_dataset"]["dataset"]["args"]["repeat"] = 15
    tiny |= {"save_minutes": 0, "ema": 0.9}
    path = write(tiny)
    whole = run(write, tiny, tmp_path / "whole")
    parts = tmp_path / "parts" / "_tiny"
    for delay in (0.0, 0.11):
        before = seen(parts)
        with warm.Process("-c", START, path, tmp_path / "parts", "--resume", modules=warm.OPTIMIZERS) as process:
            while process.poll() is None and seen(parts) == before:
                time.sleep(0.01)
            time.sleep(delay)
            process.kill()
    stopped = load(parts / "epoch-last.pth")
    assert 0 < stopped["liif_fast"]["steps"] < 60
    run(write, tiny, tmp_path / "parts", resume=True)
    assert_same_runs(whole, parts)


def seen(folder):
    try:
        return (folder / "epoch-last.pth").stat().st_mtime_ns
    except FileNotFoundError:
        return None


@pytest.mark.parametrize(
    ("signum", "code", "message"),
    [(signal.SIGINT, 130, "liif-fast: interrupted\n"), (signal.SIGTERM, 143, "")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_signal_to_the_command_and_its_workers(tmp_path, tiny, write, signum, code, message):
    """Ctrl-C from a terminal or SIGTERM from a job manager gives a checkpoint, the exit code, and at most one line."""
    tiny["train_dataset"]["dataset"]["args"]["repeat"] = 200
    tiny |= {"save_minutes": 0, "num_workers": 1, "epoch_max": 1}
    with open(tmp_path / "out", "w+") as out, open(tmp_path / "err", "w+") as err:
        start = "-c", START, write(tiny), tmp_path, "slow"  # a worker's end would be noticed within a step
        with warm.Process(*start, stdout=out, stderr=err, modules=warm.OPTIMIZERS) as process:
            while not seen(tmp_path / "_tiny"):
                assert process.poll() is None
                time.sleep(0.01)
            os.killpg(process.pid, signum)
            ended = process.wait_for_all()  # the workers write to the same file
        out.seek(0)
        err.seek(0)
        assert (ended, err.read()) == (code, message)
        assert "stopped after step" in out.read()
    assert 0 < load(tmp_path / "_tiny" / "epoch-last.pth")["liif_fast"]["step"] < 200


@pytest.mark.skipif(sys.platform == "win32", reason="no terminals of this kind there")
def test_a_closed_terminal(tmp_path, tiny, write):
    """After the signal every print fails."""
    tiny["train_dataset"]["dataset"]["args"]["repeat"] = 200
    tiny |= {"save_minutes": 0, "epoch_max": 1}
    ours, theirs = os.openpty()
    start = "-c", TERMINAL + START, write(tiny), tmp_path, "slow"
    with warm.Process(*start, stdin=theirs, stdout=theirs, stderr=theirs, modules=warm.OPTIMIZERS) as process:
        os.close(theirs)
        while not seen(tmp_path / "_tiny"):
            assert process.poll() is None
            if select.select([ours], [], [], 0.05)[0]:
                os.read(ours, 4096)  # an unread pipe would stop it
        os.close(ours)
        assert process.wait() == 129
    assert "stopped after step" in (tmp_path / "_tiny" / "log.txt").read_text()
    assert 0 < load(tmp_path / "_tiny" / "epoch-last.pth")["liif_fast"]["step"] < 200


TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # this session's terminal, whose end it is told of
"""
