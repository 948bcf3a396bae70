import json
import math

import numpy as np
import pytest
import torch
import yaml

from liif_fast import load_model, models
from liif_fast.train import DivergedError, train
from liif_fast.train.config import check_config
from liif_fast.train.trainer import Run


def load(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    """Equality of nested containers, bit for bit in tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def run(write, config, root, **args):
    return train(write(config), save_root=root, device="cpu", **args)


SGD = {"name": "sgd", "args": {"lr": 0.01, "momentum": 0.9}}
OURS = {"ema": 0.9, "multi_step_lr": None, "cosine": {"warmup": 1}, "val_seed": None}


@pytest.mark.parametrize("extra", [{}, OURS, OURS | {"optimizer": SGD}])
def test_resumed_is_uninterrupted(tmp_path, tiny, write, extra, monkeypatch):
    tiny |= extra
    whole = run(write, tiny, tmp_path / "whole")
    validate, calls = Run.validate, []

    def stop_in_third_epoch(self):
        calls.append(self.epoch)
        if self.epoch == 3:
            raise KeyboardInterrupt
        return validate(self)

    monkeypatch.setattr(Run, "validate", stop_in_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        run(write, tiny, tmp_path / "parts")
    monkeypatch.setattr(Run, "validate", validate)
    torch.manual_seed(99)  # whatever the process did before
    parts = run(write, tiny, tmp_path / "parts", resume=True)
    assert calls == [1, 2, 3]
    steps = [json.loads(line)["steps"] for line in (parts / "log.jsonl").open()]
    assert steps == [2, 4, 6, 8]
    for name in ("epoch-last.pth", "epoch-best.pth", "epoch-2.pth", "epoch-4.pth"):
        assert same(load(whole / name), load(parts / name)), name
    records = [[json.loads(line) for line in (f / "log.jsonl").open()] for f in (whole, parts)]
    for a, b in zip(*records, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_what_was_trained_survives_a_failed_validation(tmp_path, tiny, write, monkeypatch):
    def fail(self):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "validate", fail)
        with pytest.raises(RuntimeError):
            run(write, tiny, tmp_path)
    monkeypatch.setattr(Run, "_train_epoch", fail)
    with pytest.raises(RuntimeError):  # in the second epoch: the first is only validated
        run(write, tiny, tmp_path, resume=True)
    folder = tmp_path / "_tiny"
    assert load(folder / "epoch-last.pth")["epoch"] == 1
    assert load(folder / "epoch-best.pth")["liif_fast"].keys() == {"best", "steps"}
    assert "psnr" in json.loads((folder / "log.jsonl").read_text())


@pytest.mark.parametrize("validated", [True, False])
def test_the_log_of_a_killed_training(tmp_path, tiny, write, monkeypatch, validated):
    """Killed between a log's record and its checkpoint, with half a line more: no epoch is lost or told twice."""
    tiny |= {"epoch_max": 2, "epoch_val": 1 if validated else None}
    from liif_fast.train import trainer

    save = trainer._save

    def kill(state, path):
        if path.name == "epoch-last.pth" and state["epoch"] == 2 and "pending" not in state["liif_fast"]:
            raise KeyboardInterrupt
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_save", kill)
        with pytest.raises(KeyboardInterrupt):
            run(write, tiny, tmp_path)
    log = tmp_path / "_tiny" / "log.jsonl"
    assert len(log.read_text().splitlines()) == 2
    with log.open("a") as file:
        file.write('{"epoch": 3, "st')
    run(write, tiny, tmp_path, resume=True)
    assert [json.loads(line)["epoch"] for line in log.open()] == [1, 2]


def test_run_folder(tmp_path, tiny, write, capsys):
    folder = run(write, tiny, tmp_path / "save", tag="a")
    assert folder == tmp_path / "save" / "_tiny_a"
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.yaml", "log.txt", "log.jsonl", *(f"epoch-{n}.pth" for n in ("last", "best", 2, 4))}
    assert check_config(yaml.safe_load((folder / "config.yaml").read_text())).raw["epoch_max"] == 4
    log = (folder / "log.txt").read_text().splitlines()
    assert len(log) == 5
    assert log[4].startswith("epoch 4/4, loss ")
    with pytest.raises(FileExistsError, match="resume it"):
        run(write, tiny, tmp_path / "save", tag="a")
    assert run(write, tiny, tmp_path / "save", name="mine", resume=True).name == "mine"  # nothing there to resume


def test_checkpoint_has_the_original_format(tmp_path, tiny, write):
    folder = run(write, tiny, tmp_path)
    state = load(folder / "epoch-last.pth")
    assert state["model"]["name"] == "liif"
    assert state["model"]["args"] == tiny["model"]["args"]
    assert state["optimizer"]["name"] == "adam"
    assert state["optimizer"]["args"] == {"lr": 1e-4}
    assert state["epoch"] == 4
    # The original steps its schedule before saving: epoch 2 is a milestone and trains at 1e-4.
    assert load(folder / "epoch-2.pth")["optimizer"]["sd"]["param_groups"][0]["lr"] == 5e-5
    group = state["optimizer"]["sd"]["param_groups"][0]
    assert group["lr"] == 2.5e-5
    assert group["initial_lr"] == 1e-4
    model = models.make(state["model"], load_sd=True)
    assert len(group["params"]) == len(list(model.parameters()))  # the frozen ones are counted
    assert same(load_model(folder / "epoch-last.pth").state_dict(), dict(model.state_dict()))


def test_resume_of_a_checkpoint_of_the_original(tmp_path, tiny, write):
    """What the original writes after epoch 2: no key of ours, and a schedule that has been stepped."""
    model = models.make(tiny["model"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 3], gamma=0.5)
    for _ in range(2):
        model(torch.rand(1, 3, 6, 6), torch.rand(1, 9, 2), torch.rand(1, 9, 2)).mean().backward()
        optimizer.step()
        schedule.step()
    state = {
        "model": {**tiny["model"], "sd": model.state_dict()},
        "optimizer": {"name": "adam", "args": {"lr": 1e-4}, "sd": optimizer.state_dict()},
        "epoch": 2,
    }
    torch.save(state, tmp_path / "original.pth")
    tiny["resume"] = str(tmp_path / "original.pth")
    config = check_config(tiny)
    resumed = Run(config, tmp_path / "run", torch.device("cpu"), tmp_path / "original.pth")
    assert resumed.epoch == 2
    assert same(dict(resumed.model.state_dict()), dict(model.state_dict()))
    assert same(resumed.optimizer.state_dict()["state"], optimizer.state_dict()["state"])
    rates = []
    step = resumed._step
    resumed._step = lambda batch: rates.append(resumed.optimizer.param_groups[0]["lr"]) or step(batch)
    resumed.train()
    assert rates == [5e-5] * 2 + [2.5e-5] * 2  # never halved twice
    del tiny["multi_step_lr"]  # the original cannot resume without milestones
    assert run(write, tiny, tmp_path / "again").is_dir()


def test_resume_with_another_optimizer_is_refused(tmp_path, tiny, write):
    tiny["epoch_max"] = 1
    run(write, tiny, tmp_path)
    tiny["optimizer"] = {"name": "sgd", "args": {"lr": 0.1, "momentum": 0.9}}
    with pytest.raises(ValueError, match=r"optimizer\.name: the checkpoint has 'adam', got 'sgd'"):
        run(write, tiny, tmp_path, resume=True)


def test_an_output_of_another_shape_is_refused(tmp_path, tiny):
    """One channel against three would broadcast, and train on nonsense."""
    one = Run(check_config(tiny), tmp_path / "three", torch.device("cpu"))
    tiny["model"]["args"]["imnet_spec"]["args"]["out_dim"] = 1
    with pytest.raises(ValueError, match=r"shape of the targets \[1, 32, 3\].*got \[1, 32, 1\]"):
        Run(check_config(tiny), tmp_path / "one", torch.device("cpu"))
    assert not (tmp_path / "one").exists()
    one.model = models.make(tiny["model"])
    with pytest.raises(ValueError, match=r"shape of the targets \[4, 32, 3\].*got \[4, 32, 1\]"):
        one.train()
    with pytest.raises(ValueError, match=r"shape of the targets \[2, 64, 3\].*got \[2, 64, 1\]"):
        one.validate()


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta"])
def test_there_is_no_such_device(tmp_path, tiny, write, device):
    with pytest.raises(ValueError, match="device"):
        train(write(tiny), save_root=tmp_path, device=device)
    assert not (tmp_path / "_tiny").exists()


class Malicious:
    def __reduce__(self):
        return print, ("never run",)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: Malicious(), "holds .*print, expected tensors"),
        (lambda state: [1], "holds list, expected the dict"),
        (lambda state: {"model": state["model"]}, "has no optimizer and no epoch"),
        (lambda state: state | {"epoch": "two"}, "epoch must be a whole number"),
        (lambda state: state | {"optimizer": {"name": "adam"}}, "optimizer has no name or no sd"),
        (lambda state: state | {"optimizer": {"name": "adam", "sd": {}}}, "param_groups"),
        (lambda state: state | {"model": state["model"] | {"sd": {}}}, "do not fit model|of more tensors"),
        (lambda state: state["optimizer"]["sd"]["state"][4].update(exp_avg=torch.ones(7)) or state, "has shape"),
        (lambda state: state["optimizer"]["sd"]["param_groups"][0].pop("betas") and state, "lacks betas"),
    ],
)
def test_a_bad_checkpoint_is_one_line_that_names_its_file(tmp_path, tiny, write, spoil, message, capsys):
    folder = run(write, tiny | {"epoch_max": 1}, tmp_path)
    bad = tmp_path / "bad.pth"
    torch.save(spoil(load(folder / "epoch-last.pth")), bad)
    capsys.readouterr()
    with pytest.raises(ValueError, match=rf"bad\.pth: .*({message})") as caught:
        run(write, tiny | {"resume": str(bad)}, tmp_path, name="next")
    assert "\n" not in str(caught.value)
    assert "never run" not in capsys.readouterr().out
    assert not (tmp_path / "next").exists()


def test_a_checkpoint_that_is_cut_short_or_junk(tmp_path, tiny, write):
    folder = run(write, tiny | {"epoch_max": 1}, tmp_path)
    whole = (folder / "epoch-last.pth").read_bytes()
    for content in (whole[:-200], b"junk", b""):
        (folder / "epoch-last.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"epoch-last\.pth: not a readable file of torch\.save"):
            run(write, tiny, tmp_path, resume=True)


def test_best_is_not_forgotten(tmp_path, tiny, write):
    tiny["epoch_max"] = 1
    folder = run(write, tiny, tmp_path)
    state = load(folder / "epoch-last.pth")
    state["liif_fast"]["best"] = 99.0
    torch.save(state, folder / "epoch-last.pth")
    tiny["epoch_max"] = 2
    run(write, tiny, tmp_path, resume=True)
    assert load(folder / "epoch-last.pth")["liif_fast"]["best"] == 99.0
    assert load(folder / "epoch-best.pth")["epoch"] == 1


def test_validation_is_fixed_and_measures_psnr(tmp_path, tiny):
    tiny["model"]["args"]["residual"] = "bilinear"
    run = Run(check_config(tiny), tmp_path, torch.device("cpu"))
    for parameter in run.model.imnet.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)  # what is left is the bilinear interpolation
    values = []
    for index in range(3):
        sample = run.val_set[index]
        grid = sample["coord"].flip(-1)[None, None]
        pred = torch.nn.functional.grid_sample(sample["inp"][None], grid, padding_mode="border", align_corners=False)
        values.append((pred[0, :, 0].T - sample["gt"]).square().mean().item())
    per_image = [-10 * math.log10(v) for v in values]
    pooled = [-10 * math.log10(np.mean(values[:2])), per_image[2]]
    assert run.validate() == pytest.approx(((2 * pooled[0] + pooled[1]) / 3, np.mean(per_image)), abs=1e-3)
    assert run.validate() == run.validate()
    run.config = check_config(tiny | {"val_seed": None})
    first = run.validate()
    run.epoch = 1
    assert run.validate() != first


def test_validation_of_whole_images(tmp_path, tiny):
    wrapper = {"name": "sr-implicit-downsampled", "args": {"scale_min": 2}}
    tiny["val_dataset"] |= {"wrapper": wrapper, "batch_size": 1}
    tiny |= {"eval_type": "benchmark-2", "eval_bsize": 500}
    run = Run(check_config(tiny), tmp_path, torch.device("cpu"))
    assert all(math.isfinite(value) for value in run.validate())
    run.config = check_config(tiny | {"eval_type": "benchmark-3"})
    with pytest.raises(ValueError, match="benchmark-3 needs all 60 x 60 pixels, got 1600 queries"):
        run.validate()


def test_loss_that_is_not_finite_names_the_step(tmp_path, tiny, write):
    tiny["optimizer"] = {"name": "sgd", "args": {"lr": 1e30}}
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step \d of epoch 1"):
        run(write, tiny, tmp_path)
    assert not (tmp_path / "_tiny" / "epoch-last.pth").exists()


def test_average_follows_the_weights(tmp_path, tiny):
    """After one step of decay min(0.999, 2 / 11) the average is 2/11 of the old and 9/11 of the new weights."""
    run = Run(check_config(tiny | {"ema": 0.999}), tmp_path, torch.device("cpu"))
    old = [p.detach().clone() for p in run.model.parameters()]
    run._set_rate(0)
    run._step(next(iter(run._loader(run.train_set, 4))))
    new, mean = list(run.model.parameters()), list(run.average.parameters())
    assert not torch.equal(old[-1], new[-1])
    for a, b, c in zip(old, new, mean, strict=True):
        torch.testing.assert_close(c, (2 * a + 9 * b) / 11, rtol=0, atol=1e-6)


def test_bfloat16(tmp_path, tiny):
    run = Run(check_config(tiny | {"amp": "bfloat16", "epoch_max": 1}), tmp_path, torch.device("cpu"))
    run.train()
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_training_learns(tmp_path, tiny):
    """Forty steps on four images bring the loss down."""
    tiny |= {"multi_step_lr": None, "epoch_max": 20}
    tiny["optimizer"]["args"]["lr"] = 3e-3
    tiny["model"]["args"]["residual"] = "bilinear"
    run = Run(check_config(tiny), tmp_path, torch.device("cpu"))
    before = run.validate()[0]
    run.train()
    assert run.validate()[0] > before + 1


def test_samples_do_not_depend_on_the_workers(tmp_path, tiny):
    batches = []
    for workers in (0, 2):
        run = Run(check_config(tiny | {"num_workers": workers}), tmp_path, torch.device("cpu"))
        run.train_set.set_epoch(3)
        batches.append(list(run._loader(run.train_set, 4, torch.Generator().manual_seed(1))))
    assert same(*batches)
