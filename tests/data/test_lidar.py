"""Test pairs of range images and the queries drawn from them, and a training that is killed and resumed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from liif_fast.data.lidar import LidarImplicit, Pair, RangeFolders, Streets, crop
from liif_fast.lidar import Sensor
from liif_fast.lidar.scan import write_image
from liif_fast.train import load_config, train

ROOT = Path(__file__).parents[2]
needs_embreex = pytest.mark.skipif(
    importlib.util.find_spec("embreex") is None, reason="needs embreex (pip install liif-fast[lidar-train])"
)


class Ramp:
    """Make pairs whose ranges encode their positions in low: 10 + row + column / 100."""

    def __init__(self, height: int = 5, width: int = 40, finer: int = 4) -> None:
        self.size, self.finer = (height, width), finer

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Pair:
        height, width = self.size
        rows, columns = np.linspace(0, height - 1, 9), np.arange(width * self.finer) / self.finer
        low = 10 + np.arange(height)[:, None] + np.arange(width) / 100
        high = 10 + rows[:, None] + columns / 100
        high[2, ::3] = 0
        return Pair(low.astype(np.float32), high.astype(np.float32), rows, columns)


@pytest.mark.parametrize("args", [{}, {"columns": 12, "margin": 3}, {"columns": 12, "margin": 3, "augment": True}])
def test_queries_lie_where_their_ranges_were_measured(args: dict) -> None:
    wrapper = LidarImplicit(Ramp(), sample_q=60, returns=1.0, seed=1, **args)
    for epoch in range(4):
        wrapper.set_epoch(epoch)
        sample = wrapper[epoch % 3]
        height, width = sample["inp"].shape[1:]
        assert (height, width) == (5, 18 if args else 40) and sample["coord"].shape == (60, 2) == sample["cell"].shape
        place = (sample["coord"].double().numpy() + 1) * [height, width] / 2 - 0.5
        if args:
            assert place[:, 1].min() >= 2.9 and place[:, 1].max() < 15.1
        image = sample["inp"][0].double().numpy() * 100
        # The scale of the world, and each query's column in it, from the image itself.
        step = np.diff(image, axis=0).mean()
        column = np.interp(place[:, 1], np.arange(width), (image[0] / step - 10) * 100)
        seam = np.abs(np.diff(image[0])).max() > 1.5 * np.abs(np.median(np.diff(image[0])))
        expected = (10 + place[:, 0] + column / 100) * step
        error = np.abs(sample["gt"][:, 0].numpy() * 100 - expected)
        assert (error < 2e-3).mean() > (0.8 if seam else 0.999)
        if not args.get("augment"):
            assert step == pytest.approx(1, abs=1e-4)


def test_samples_depend_on_seed_epoch_and_index_alone() -> None:
    one, other = (LidarImplicit(Ramp(), sample_q=20, columns=8, augment=True, seed=3) for _ in range(2))
    for key, value in one[2].items():
        assert torch.equal(value, other[2][key])
    other.set_epoch(1)
    assert not torch.equal(one[2]["coord"], other[2]["coord"])


def test_returns_are_preferred_as_asked() -> None:
    share = [(LidarImplicit(Ramp(), 300, returns=r, seed=0)[0]["gt"] < 1).float().mean() for r in (0.0, 1.0)]
    assert share[0] < 1 and share[1] == 1


def test_cropping_goes_in_the_authors_order() -> None:
    metres = np.array([0, 1e-10, 0.5, 2, 79.9, 80.1, 400], np.float32)
    assert crop(metres, 1.0, 80.0, 100.0).tolist() == pytest.approx([100, 100, 0, 2, 79.9, 100, 100])


@pytest.mark.parametrize(
    "args",
    [{"sample_q": 0}, {"margin": -1}, {"columns": 0}, {"returns": 1.5}, {"max_range": 200.0}, {"min_range": 90.0}],
)
def test_arguments_out_of_range(args: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        LidarImplicit(Ramp(), **args)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Make two towns in the authors' layout."""
    rng = np.random.default_rng(0)
    for town in ("Town01", "Town02"):
        for name, (lines, columns) in (("4_16", (4, 16)), ("8_32", (8, 32))):
            (tmp_path / "set" / town / name).mkdir(parents=True)
            for number in range(2):
                path = tmp_path / "set" / town / name / f"{number}.rimg"
                beams = tuple(np.linspace(-15, 15, lines))
                write_image(path, rng.uniform(3, 70, (lines, columns)).astype(np.float32), Sensor(beams, columns))
    return tmp_path / "set"


def test_folders_are_paired_by_name(folders: Path) -> None:
    pairs = RangeFolders(str(folders), low="4_16", high="8_32", repeat=2)
    assert len(pairs) == 8
    low, high, rows, columns = pairs[5]
    assert low.shape == (4, 16) and high.shape == (8, 32)
    assert rows[[0, -1]].tolist() == [0, 3] and columns[:3].tolist() == [0, 0.5, 1]
    assert len(RangeFolders(str(folders), ["Town02"], "4_16", "8_32")) == 2
    (folders / "Town01" / "8_32" / "1.rimg").unlink()
    with pytest.raises(ValueError, match=r"1.rimg is in only one of"):
        RangeFolders(str(folders), None, "4_16", "8_32")
    with pytest.raises(FileNotFoundError, match="no folder"):
        RangeFolders(str(folders), ["Town09"], "4_16", "8_32")


def config(folders: Path, **changes) -> dict:
    split = {
        "dataset": {"name": "lidar-folders", "args": {"root_path": str(folders), "low": "4_16", "high": "8_32"}},
        "wrapper": {"name": "lidar-implicit", "args": {"sample_q": 40, "columns": 8, "margin": 4, "augment": True}},
        "batch_size": 2,
    }
    encoder = {"name": "edsr-lidar", "args": {"n_resblocks": 1, "n_feats": 4}}
    return {
        "train_dataset": split,
        "val_dataset": split,
        "data_norm": {"inp": {"sub": [0.5], "div": [0.5]}, "gt": {"sub": [0.5], "div": [0.5]}},
        "model": {"name": "iln", "args": {"d": 1, "h": 2, "encoder_spec": encoder}},
        "optimizer": {"name": "adam", "args": {"lr": 1e-3}},
        "epoch_max": 3,
        "epoch_val": 1,
        **changes,
    }


def test_a_training_that_was_stopped_goes_on_bit_for_bit(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(config(folders)))
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(config(folders, epoch_max=1)))
    whole = train(tmp_path / "whole.yaml", name="a", save_root=tmp_path, device="cpu")
    train(tmp_path / "part.yaml", name="b", save_root=tmp_path, device="cpu")
    resumed = train(tmp_path / "whole.yaml", name="b", save_root=tmp_path, device="cpu", resume=True)
    states = [torch.load(each / "epoch-last.pth", weights_only=True)["model"]["sd"] for each in (whole, resumed)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert "val psnr" in (whole / "log.txt").read_text()


def test_the_configurations_say_what_they_mean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data" / "carla").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("iln-1d-carla", "iln-small-streets"):
        checked = load_config(ROOT / "configs" / f"{name}.yaml")
        assert checked.model["name"] == "iln"
    wrong = config(tmp_path)
    wrong["train_dataset"]["wrapper"]["args"]["sample_q"] = "many"
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(ValueError, match=r"wrapper.args.sample_q: expected int, got 'many'"):
        load_config(tmp_path / "wrong.yaml")


@needs_embreex
def test_streets_are_cast_once_and_kept(tmp_path: Path) -> None:
    args = {"count": 2, "seed": 5, "sensors": ("vlp-16", "fan"), "lines": 8, "columns": 64, "rows": 12, "noise": 0.0}
    first = Streets(**args, cache_file=str(tmp_path / "a.npy"))
    again = Streets(**args, cache_file=str(tmp_path / "a.npy"))
    for index in range(2):
        low, high, _, columns = first[index]
        assert low.shape == (8, 64) and high.shape == (12, 64)
        assert all(np.array_equal(a, b) for a, b in zip(first[index], again[index], strict=True))
        assert 0 < (low > 0).mean() and low.max() <= 80 and columns[0] < 1
    with pytest.raises(ValueError, match=r"a\.npy holds other scans"):
        Streets(**{**args, "rows": 13}, cache_file=str(tmp_path / "a.npy"))
    with pytest.raises(ValueError, match="vlp-16 has 16 beams, lines asks for 32"):
        Streets(1, sensors=("vlp-16",), lines=32)


@needs_embreex
def test_rays_meet_what_is_there() -> None:
    from liif_fast.lidar.street import Caster, Scene

    scene = Scene()
    scene.box((0.0, 11.0, 0.0), (8.0, 2.0, 8.0), 0.0, 1.0)
    scene.rod(np.array([5.0, 0, -3]), np.array([5.0, 0, 3]), 0.5, 1.0)
    scene.box((0.0, -60.0, 0.0), (50.0, 2.0, 50.0), 0.0, 0.01)  # too dark for its distance
    ranges = Caster(scene).cast(np.radians([0.0, 10.0]), np.radians([0.0, 10.0, 90.0, 180.0, 270.0]))
    assert ranges[0, 0] == pytest.approx(10) and ranges[1, 1] == pytest.approx(
        10 / np.cos(np.radians(10)) ** 2, rel=1e-5
    )
    assert 4.4 < ranges[0, 2] < 4.6 and ranges[0, 3] == 0 == ranges[0, 4]


@pytest.mark.skipif(importlib.util.find_spec("embreex") is not None, reason="embreex is installed")
def test_without_embreex_the_message_says_how_to_get_it() -> None:
    with pytest.raises(ImportError, match=r"pip install liif-fast\[lidar-train\]"):
        Streets(1)
