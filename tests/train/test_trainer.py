import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from liif_fast import distributed, load_model, models
from liif_fast.train import DivergedError, train
from liif_fast.train import stepper as stepper_module
from liif_fast.train.config import check_config
from liif_fast.train.trainer import Run

from .support import load, run, same


def test_run_folder(tmp_path, tiny, write, capsys):
    folder = run(write, tiny, tmp_path / "save", tag="a")
    assert folder == tmp_path / "save" / "_tiny_a"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.yaml", "log.txt", "log.csv"),
        *(f"epoch-{n}.pth" for n in ("last", "best", 2, 4)),
        *(f"epoch-{n}.png" for n in ("last", 2, 4)),
    }
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
    """A checkpoint of the original after epoch 2 has none of our keys, and its schedule has been stepped."""
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
    assert resumed.progress.epoch == 2
    assert same(dict(resumed.stepper.model.state_dict()), dict(model.state_dict()))
    assert same(resumed.stepper.optimizer.state_dict()["state"], optimizer.state_dict()["state"])
    rates = []
    step = resumed.stepper.step
    resumed.stepper.step = lambda *args: rates.append(resumed._rate()) or step(*args)
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


def test_resume_with_other_settings_of_the_optimizer(tmp_path, tiny, write):
    """The configuration's settings hold, including defaults, and differences are logged."""
    tiny["epoch_max"] = 1
    tiny["optimizer"]["args"] |= {"eps": 1e-6, "betas": [0.8, 0.99]}
    run(write, tiny, tmp_path)
    del tiny["optimizer"]["args"]["eps"]
    tiny["optimizer"]["args"]["weight_decay"] = 0.5
    tiny["epoch_max"] = 2
    folder = run(write, tiny, tmp_path, resume=True)
    group = load(folder / "epoch-last.pth")["optimizer"]["sd"]["param_groups"][0]
    assert (group["eps"], group["weight_decay"], tuple(group["betas"])) == (1e-8, 0.5, (0.8, 0.99))
    remarks = [line for line in (folder / "log.txt").read_text().splitlines() if "from here on" in line]
    assert remarks == [
        "optimizer.args: eps is 1e-08 from here on, it was 1e-06",
        "optimizer.args: weight_decay is 0.5 from here on, it was 0",
    ]
    tiny["optimizer"]["args"]["amsgrad"] = True
    tiny["epoch_max"] = 3
    with pytest.raises(ValueError, match=r"optimizer\.args\.amsgrad: .*without it"):
        run(write, tiny, tmp_path, resume=True)


def test_an_output_of_another_shape_is_refused(tmp_path, tiny):
    """One channel against three is refused, because it would broadcast and train on nonsense."""
    one = Run(check_config(tiny), tmp_path / "three", torch.device("cpu"))
    tiny["model"]["args"]["imnet_spec"]["args"]["out_dim"] = 1
    with pytest.raises(ValueError, match=r"shape of the targets \[1, 32, 3\].*got \[1, 32, 1\]"):
        Run(check_config(tiny), tmp_path / "one", torch.device("cpu"))
    assert not (tmp_path / "one").exists()
    one.stepper.objective.model = one.stepper.model = models.make(tiny["model"])
    with pytest.raises(ValueError, match=r"shape of the targets \[4, 32, 3\].*got \[4, 32, 1\]"):
        one.train()
    with pytest.raises(ValueError, match=r"shape of the targets \[2, 64, 3\].*got \[2, 64, 1\]"):
        one.validation.psnr(one.stepper.model, 1)


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
        (lambda state: Malicious(), "holds .*print, expected .*tensors"),
        (lambda state: [1], "holds list, expected the dict"),
        (lambda state: {"model": state["model"]}, "has no optimizer and no epoch"),
        (lambda state: state | {"epoch": "two"}, "epoch must be a whole number"),
        (lambda state: state | {"optimizer": {"name": "adam"}}, "optimizer has no name or no sd"),
        (lambda state: state | {"optimizer": {"name": "adam", "sd": {}}}, "param_groups"),
        (lambda state: state | {"model": state["model"] | {"sd": {}}}, "do not fit model|more tensors"),
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


def test_loss_that_is_not_finite_names_the_step(tmp_path, tiny, write):
    tiny["optimizer"] = {"name": "sgd", "args": {"lr": 1e30}}
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step \d of epoch 1; samples: \d"):
        run(write, tiny, tmp_path)
    assert not (tmp_path / "_tiny" / "epoch-last.pth").exists()


@pytest.mark.parametrize("look_every", [1, 20])
def test_a_sample_that_is_not_finite_is_named(tmp_path, tiny, look_every):
    """A diverging sample is named by its number and file, however many steps later it is noticed."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((40, 40, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    part = {"name": "image-folder", "args": {"root_path": str(folder), "repeat": 3}}
    tiny["train_dataset"]["dataset"] = {"name": "mixed", "args": {"parts": [part]}}
    tiny["train_dataset"]["wrapper"]["args"]["sample_q"] = "all"  # in groups in another order
    training = Run(check_config(tiny), tmp_path / "run", torch.device("cpu"))
    training.look_every = look_every
    inner, count = training.stepper._call, []

    def spoil(batch):
        errors = inner(batch)
        count.append(batch)
        if len(count) != 2:
            return errors
        bad = torch.cat([group["place"] for group in batch]) == 1
        return torch.where(bad, errors * torch.nan, errors)

    training.stepper._call = spoil
    with pytest.raises(DivergedError) as caught:
        training.train()
    training.order.begin(1)
    index = training.order.share(1)[1]
    assert f"is nan at step 2 of epoch 1; samples: {index} ({folder / str(index % 4)}.png); no" in str(caught.value)
    assert not (tmp_path / "run" / "epoch-last.pth").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path, tiny):
    """Weights that are not finite are not saved; they come from gradients before any loss shows it."""
    training = Run(check_config(tiny), tmp_path / "run", torch.device("cpu"))
    training._train_epoch()
    training._finish_epoch()
    before = (tmp_path / "run" / "epoch-last.pth").read_bytes()
    training._train_epoch()
    with torch.no_grad():
        next(training.stepper.model.imnet.parameters()).view(-1)[3] = torch.inf
    with pytest.raises(DivergedError, match="weights are not finite after step 2 of epoch 2"):
        training._finish_epoch()
    assert (tmp_path / "run" / "epoch-last.pth").read_bytes() == before


def test_training_learns(tmp_path, tiny):
    """Forty steps on four images reduce the loss."""
    tiny |= {"multi_step_lr": None, "epoch_max": 20}
    tiny["optimizer"]["args"]["lr"] = 3e-3
    tiny["model"]["args"]["residual"] = "bilinear"
    run = Run(check_config(tiny), tmp_path, torch.device("cpu"))
    before = run.validation.psnr(run.stepper.model, 1)[0]
    run.train()
    assert run.progress.best > before + 1


@pytest.mark.parametrize("keys", [{"num_workers": 2}, {"data_device": "cpu"}], ids=str)
def test_how_samples_are_made_does_not_matter(tmp_path, tiny, write, keys):
    tiny["epoch_max"] = 2
    runs = [run(write, tiny | each, tmp_path, name=name) for name, each in (("a", {}), ("b", keys))]
    assert same(*(load(folder / "epoch-last.pth") for folder in runs))


def test_more_processes_than_samples_in_a_batch(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 5)
    monkeypatch.setattr(distributed, "gather", lambda value: [value] * 5)
    monkeypatch.setattr(stepper_module, "DistributedDataParallel", lambda module, **options: module)
    with pytest.raises(ValueError, match=r"train_dataset\.batch_size: 5 processes cannot share batches of 4"):
        Run(check_config(tiny), tmp_path, torch.device("cpu"))


def test_deterministic_for_as_long_as_it_trains(tmp_path, tiny, write, monkeypatch):
    seen = []
    monkeypatch.setattr(Run, "train", lambda self: seen.append(torch.are_deterministic_algorithms_enabled()))
    for asked in (True, False):
        run(write, tiny | {"deterministic": asked}, tmp_path, name=str(asked))
        assert not torch.are_deterministic_algorithms_enabled()
    assert seen == [True, False]
