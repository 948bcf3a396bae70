"""Two hosts train together, and one is killed or cut off."""

import time

import pytest

from . import hosts
from .support import assert_same_training, load, run

SCRIPT = """
import sys, time
from liif_fast.cli import main
from liif_fast.train.stepper import Stepper
step = Stepper.step
if "slow" in sys.argv:  # so that it is in the midst when its host ends
    Stepper.step = lambda *args: (time.sleep(0.2), step(*args))[1]
sys.exit(main(["train", "--config", sys.argv[1], "--name", "two", "--device", "cpu", "--resume"]))
"""


@pytest.fixture(scope="module")
def possible():
    problem = hosts.problem()
    if problem is not None:
        pytest.skip(problem)


@pytest.fixture
def trained(possible, tmp_path, uneven, write, monkeypatch):
    """Return one process's training, the script of two with its configuration, and the folder that those write."""
    monkeypatch.chdir(tmp_path)
    uneven["train_dataset"]["dataset"]["args"]["repeat"] = 6  # 21 steps, 7 an epoch
    uneven |= {"save_minutes": 0}
    one = run(write, uneven, tmp_path / "save", name="one")
    return one, (SCRIPT, write(uneven)), tmp_path / "save" / "two"


def await_a_step(two, processes):
    """Wait for the first checkpoint within a training."""
    while not (two / "epoch-last.pth").exists():
        assert all(process.poll() is None for process, _ in processes)
        time.sleep(0.05)


def assert_one_line(process, said):
    """Assert that there is one line and no traceback."""
    code = process.wait()
    said.seek(0)
    errors = said.read()
    assert code == 1, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("liif-fast: ")]
    assert "lost the other processes: " in line
    assert "; --resume continues from the last checkpoint" in line
    assert "liif_fast/train" not in errors


def test_a_killed_host(trained, write, uneven, tmp_path):
    one, command, two = trained
    with hosts.Hosts() as pair:
        first, second = pair.start(*command, "slow", LIIF_FAST_TIMEOUT="5")
        await_a_step(two, (first, second))
        pair.kill(0)
        assert_one_line(*second)
    assert 0 < load(two / "epoch-last.pth")["liif_fast"]["steps"] < 21
    run(write, uneven, tmp_path / "save", name="two", resume=True)  # one process
    assert_same_training(one, two)


def test_a_cut_cable(trained, write, uneven, tmp_path):
    one, command, two = trained
    with hosts.Hosts() as pair:
        processes = pair.start(*command, "slow", LIIF_FAST_TIMEOUT="5")
        await_a_step(two, processes)
        pair.cut()
        for process, said in processes:
            assert_one_line(process, said)
    assert 0 < load(two / "epoch-last.pth")["liif_fast"]["steps"] < 21
    run(write, uneven, tmp_path / "save", name="two", resume=True)  # test_processes.py continues with two
    assert_same_training(one, two)
