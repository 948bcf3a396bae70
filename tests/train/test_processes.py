"""Compare two processes, joined by gloo, with one that has the same batches."""

import numpy as np
from torch.distributed import TCPStore

from liif_fast.lidar import Sensor
from liif_fast.lidar.scan import write_image

from .. import warm
from .support import assert_same_training, load, run

# Trains some times in two processes with torchrun's variables, forked from one that has PyTorch: torchrun and both of
# its processes would import it each time. tests/test_distributed.py has torchrun itself.
SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from liif_fast.cli import main
import liif_fast.train as package
from liif_fast.train.trainer import Run

root, *runs = sys.argv[1:]
train = package.train

def stop(self, epochs, step=Run._set_rate):
    Run._set_rate = step
    os.kill(os.getpid(), signal.SIGTERM)
    step(self, epochs)

def late(self, bar, look=Run._look):
    look(self, bar)
    if self.progress.epoch + 1 == self.config.epoch_max and self.progress.step == self.steps:
        os.kill(os.getpid(), signal.SIGTERM)

def work(rank, port, way, name, config):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    package.train = lambda *args, **options: train(*args, save_root=Path(root), **options)
    if rank == 1 and way == "stop":  # one of them gets the signal: all stop after the same step
        Run._set_rate = stop
    if rank == 1 and way == "late":  # after the last look of the last epoch
        Run._look = late
    return main(["train", "--config", config, "--name", name, "--device", "cpu", "--resume"])

for way, name, config, port in zip(*[iter(runs)] * 4):
    processes = []
    for rank in (0, 1):
        processes.append(os.fork())
        if not processes[-1]:
            code = 1
            try:
                code = work(rank, port, way, name, config)
            except SystemExit as ended:
                code = ended.code
            finally:
                sys.stdout.flush()
                os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in processes]
    done = torch.load(Path(root, name, "epoch-last.pth"), weights_only=True)
    print(f"{way}: codes {codes}, epoch {done['epoch']}, step {done['liif_fast'].get('step')}", flush=True)
"""


def lidar(tiny, root):
    """Return the configuration of an ILN on range images of 4 and of 8 lines, in batches of 3, 3 and 1."""
    rng = np.random.default_rng(0)
    for name, lines, columns in (("low", 4, 16), ("high", 8, 32)):
        (root / "ranges" / "Town01" / name).mkdir(parents=True)
        sensor = Sensor(tuple(np.linspace(-15, 15, lines)), columns)
        for number in range(7):
            image = rng.uniform(3, 70, (lines, columns)).astype(np.float32)
            write_image(root / "ranges" / "Town01" / name / f"{number}.rimg", image, sensor)
    split = {
        "dataset": {"name": "lidar-folders", "args": {"root_path": str(root / "ranges"), "low": "low", "high": "high"}},
        "wrapper": {"name": "lidar-implicit", "args": {"sample_q": 40, "columns": 8, "margin": 4, "augment": True}},
        "batch_size": 3,
    }
    encoder = {"name": "edsr-lidar", "args": {"n_resblocks": 1, "n_feats": 4}}
    # Without dropout, whose masks each process draws for itself.
    model = {"name": "iln", "args": {"d": 1, "h": 2, "encoder_spec": encoder, "dropout": 0.0}}
    # SGD: Adam would blow up the rounding in gradients that are 0, those of a shift of all four logits.
    optimizer = {"name": "sgd", "args": {"lr": 0.1}}
    return tiny | {
        "train_dataset": split,
        "val_dataset": split,
        "model": model,
        "optimizer": optimizer,
        "epoch_max": 2,
    }


def test_two_processes_train_as_one_and_stop_together(tmp_path, tiny, uneven, write):
    iln = lidar(tiny, tmp_path)
    scans = run(write, iln, tmp_path, name="scans")
    one, config = run(write, uneven, tmp_path, name="one"), write(uneven)
    short = write(uneven | {"epoch_max": 1}, "short.yaml")
    runs = [("stop", "two", config), ("resume", "two", config), ("late", "late", short)]
    runs += [("iln", "scans of two", write(iln, "iln.yaml"))]
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in runs]  # one a run, as torchrun
    words = [word for way, store in zip(runs, stores, strict=True) for word in (*way, store.port)]
    done = warm.run("-c", SCRIPT, tmp_path, *words, timeout=200, modules=warm.OPTIMIZERS)
    assert done.returncode == 0, done.stderr
    assert "stop: codes [143, 143], epoch 0, step 1\n" in done.stdout
    assert "resume: codes [0, 0], epoch 3, " in done.stdout, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("epoch 3/3, loss ") == 1  # logged once
    assert_same_training(one, tmp_path / "two")
    assert_same_training(scans, tmp_path / "scans of two")
    assert "late: codes [143, 143], epoch 1, " in done.stdout  # and no process is left waiting
    assert load(tmp_path / "late" / "epoch-last.pth")["epoch"] == 1
