"""Test the trial of a sample before a training, and the backend that it chooses."""

import copy

import pytest
import torch
from torch import nn

from liif_fast import backends, distributed, models
from liif_fast.backends import cpu, verdict
from liif_fast.train.config import check_config
from liif_fast.train.trainer import Run
from liif_fast.train.trial import automatic

from .support import load, run, same


def resumed(tmp_path, tiny, write, recorded, name="next", **keys):
    """Resume from a checkpoint that records a backend; return the run and its remarks."""
    folder = run(write, tiny | {"epoch_max": 1, "backend": "torch"}, tmp_path, name=name)
    checkpoint = load(folder / "epoch-last.pth")
    assert checkpoint["liif_fast"]["backend"] == "torch"
    checkpoint["liif_fast"]["backend"] = recorded
    torch.save(checkpoint, folder / "epoch-last.pth")
    config = check_config(copy.deepcopy(tiny) | keys)
    going_on = Run(config, folder, torch.device("cpu"), folder / "epoch-last.pth")
    lines = (folder / "log.txt").read_text().splitlines()
    return going_on, [line for line in lines if line.startswith("backend: ")]


def test_a_resumed_run_keeps_the_backend(tmp_path, tiny, write):
    tiny |= {"ema": 0.9}
    going_on, lines = resumed(tmp_path, tiny, write, "torch")
    assert lines == []
    assert going_on.stepper.model.backend == going_on.stepper.average.backend == "torch"
    going_on.train()
    whole = run(write, tiny | {"backend": "torch"}, tmp_path, name="whole")
    for name in ("epoch-last.pth", "epoch-best.pth"):
        assert same(load(whole / name), load(tmp_path / "next" / name))


def test_auto_is_the_fastest_that_trains_and_validates(tmp_path, tiny, write, monkeypatch):
    monkeypatch.setattr(cpu, "can_run", lambda call: (call.autocast is None, "not under autocast"))
    folder = run(write, tiny | {"epoch_max": 1, "amp": "bf16"}, tmp_path)
    assert load(folder / "epoch-last.pth")["liif_fast"]["backend"] == "torch"
    monkeypatch.setattr(cpu, "can_run", lambda call: (call.requires_grad, "trains only"))
    going_on = Run(check_config(tiny), tmp_path / "run", torch.device("cpu"))
    assert going_on.stepper.backend == "torch"
    assert "; backend: torch" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("asked", ["reference", "auto"])
def test_another_is_asked_for(tmp_path, tiny, write, asked):
    going_on, lines = resumed(tmp_path, tiny, write, "triton", backend=asked)
    used = going_on.stepper.backend
    assert used == asked or (asked == "auto" and used in backends.AUTO)
    assert lines == [f"backend: {used} from here on, it was triton"]


@pytest.mark.parametrize(
    ("recorded", "why"),
    [
        ("cuda", "backend 'cuda' cannot run this decode: "),
        ("tpu", "there is no backend 'tpu' here"),
        (3, "there is no backend 3 here"),
    ],
)
def test_the_recorded_one_cannot_run_here(tmp_path, tiny, write, recorded, why):
    going_on, (line,) = resumed(tmp_path, tiny, write, recorded)
    assert going_on.stepper.backend in backends.AUTO
    assert line.startswith(f"backend: {going_on.stepper.backend} from here on, it was {recorded}: {why}")


def test_nothing_is_recorded(tmp_path, tiny, write):
    going_on, lines = resumed(tmp_path, tiny, write, None)
    assert going_on.stepper.backend in backends.AUTO
    assert lines == []


def test_the_one_asked_for_cannot_run_here(tmp_path, tiny, write):
    with pytest.raises(ValueError, match=r"^backend 'cuda' cannot run this decode: runs on cuda tensors"):
        run(write, tiny | {"backend": "cuda"}, tmp_path)
    assert not (tmp_path / "_tiny").exists()
    with pytest.raises(ValueError, match=r"line [0-9]+: backend: expected null, auto, "):
        run(write, tiny | {"backend": "tpu"}, tmp_path)


def test_a_model_that_leaves_no_choice(tmp_path, tiny, monkeypatch):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inp, coord, cell):
            return self.layer(torch.cat((coord, cell), -1))

    monkeypatch.setitem(models.registry._registry.factories, "plain", Plain)
    tiny["model"] = {"name": "plain"}
    going_on = Run(check_config(tiny), tmp_path / "run", torch.device("cpu"))
    assert going_on.checkpoint()["liif_fast"]["backend"] is None
    with pytest.raises(ValueError, match="backend: torch has no effect"):
        Run(check_config(tiny | {"backend": "torch"}), tmp_path / "asked", torch.device("cpu"))


def test_resume_that_finds_nothing_says_so(tmp_path, tiny, write):
    folder = run(write, tiny | {"epoch_max": 1}, tmp_path, resume=True)
    line = f"--resume: {folder} has no epoch-last.pth; training starts from the beginning"
    assert line in (folder / "log.txt").read_text().splitlines()
    tiny["resume"] = str(folder / "epoch-last.pth")
    other = run(write, tiny, tmp_path, name="other", resume=True)
    assert f"has no epoch-last.pth; training continues from {tiny['resume']}" in (other / "log.txt").read_text()
    run(write, tiny, tmp_path, name="other", resume=True)
    assert (other / "log.txt").read_text().count("--resume: ") == 1


RIGHT = {"correct": True, "taken": True, "ratio": 3.0, "than": "torch"}
TRAINS = {"decode, bfloat16, training": RIGHT}
VALIDATES = {f"{op}, float32": {**RIGHT, "taken": False} for op in ("decode", "render")}


@pytest.mark.parametrize(("results", "first"), [(TRAINS | VALIDATES, "triton"), (TRAINS, "cpu"), (VALIDATES, "cpu")])
def test_what_has_qualified_to_train_and_to_validate_is_tried_first(results, first, monkeypatch):
    """Validation is in float32, where a kernel must be correct but need not be faster."""
    found = verdict.Verdict(None, {}, "", {"triton": results})
    monkeypatch.setattr(verdict, "read", lambda kind, index: found)
    assert automatic(torch.device("cpu"), torch.bfloat16)[0] == first


@pytest.mark.parametrize(
    ("main", "others", "first"), [(True, "same", "triton"), (True, "another", "cpu"), (False, "same", "triton")]
)
def test_the_main_process_reads_the_verdict_for_all(main, others, first, monkeypatch):
    """The verdict counts if all processes have its hardware and software; only the main process reads it."""
    reads = []

    def read(kind, index):
        reads.append(kind)
        return verdict.Verdict(None, {}, "", {"triton": TRAINS | VALIDATES})

    def gather(value):
        mine = ((), verdict.key("cpu", None)) if main else (("triton", *backends.AUTO), verdict.key("cpu", None))
        return [value, ((), mine[1] if others == "same" else {})] if main else [mine, value]

    monkeypatch.setattr(verdict, "read", read)
    monkeypatch.setattr(distributed, "is_main", lambda: main)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather", gather)
    assert automatic(torch.device("cpu"), torch.bfloat16)[0] == first
    assert bool(reads) == main
