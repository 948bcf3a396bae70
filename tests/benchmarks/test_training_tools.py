"""Test the scripts that prepare a training: photographs with licences, a deeper network, a mixture of models."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import wallpapers
from benchmarks.deepen import deepened
from benchmarks.mix import mixed
from liif_fast import models

ENCODER = {"name": "edsr-baseline", "args": {"n_resblocks": 2, "n_feats": 8, "no_upsampling": True}}
LIIF = {"encoder_spec": ENCODER, "imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [16, 16]}}}


def test_a_deeper_network_begins_as_the_trained_one():
    torch.manual_seed(0)
    model = models.make({"name": "liif", "args": LIIF})
    deep = deepened(model, 6)
    assert len(deep.encoder.body) == 6 + 1  # and the convolution behind them
    image = torch.rand(1, 3, 9, 11)
    assert torch.equal(deep.predict(image, (20, 25)), model.predict(image, (20, 25)))
    for new in (1, 2, 4, 5):  # each can learn: what it does is 0, its gradient is not
        assert deep.encoder.body[new].body[0].weight.abs().sum() > 0
        assert deep.encoder.body[new].body[2].weight.abs().sum() == 0
    with pytest.raises(ValueError, match="must be a multiple of the model's 2, got 3"):
        deepened(model, 3)


def test_a_mixture_lies_between_two_models():
    torch.manual_seed(0)
    first, second = (models.make({"name": "liif", "args": LIIF}) for _ in range(2))
    expected = {key: 0.75 * value + 0.25 * second.state_dict()[key] for key, value in first.state_dict().items()}
    for key, value in mixed(first, second, 0.25).state_dict().items():
        torch.testing.assert_close(value, expected[key])
    with pytest.raises(ValueError, match="expected the same network"):
        mixed(first, deepened(second, 4), 0.5)


def test_a_deeper_model_takes_over_what_a_training_changed():
    torch.manual_seed(0)
    base, trained = (models.make({"name": "liif", "args": LIIF}) for _ in range(2))
    image = torch.rand(1, 3, 9, 11)
    # From the deepened base itself, all of the change gives what was trained; the new blocks stay as they are.
    made = mixed(deepened(base, 6), trained, 1.0, base)
    torch.testing.assert_close(made.predict(image, (20, 25)), trained.predict(image, (20, 25)))
    first = deepened(base, 6)
    first.encoder.body[1].body[2].bias.data += 1
    expected = {key: value.clone() for key, value in first.state_dict().items()}
    made = mixed(first, trained, 0.5, base).state_dict()
    assert torch.equal(made["encoder.body.1.body.2.bias"], expected["encoder.body.1.body.2.bias"])
    key = "imnet.layers.0.weight"
    torch.testing.assert_close(made[key], (base.state_dict()[key] + trained.state_dict()[key]) / 2)


def test_pictures_are_halved_and_listed(tmp_path, monkeypatch):
    """Take packages that have been unpacked already."""

    def fetch(package, folder):
        share = folder / package.name
        for picture in package.pictures:
            path = share / package.folder / picture.path
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (17, 10), (90, 120, 200)).save(path)
        (share / "doc" / package.name).mkdir(parents=True)
        (share / "doc" / package.name / "copyright").write_text("free")
        return share

    monkeypatch.setattr(wallpapers, "fetch", fetch)
    wallpapers.write(tmp_path)
    pictures = [picture for package in wallpapers.PACKAGES for picture in package.pictures]
    listed = (tmp_path / "LICENCES.md").read_text(encoding="utf-8")
    for picture in pictures:
        use = "held-out" if picture.held_out else "train"
        with Image.open(tmp_path / use / f"{wallpapers.title(picture)}.png") as image:
            assert image.size == (8, 5)
            assert np.abs(np.asarray(image, int) - (90, 120, 200)).max() < 6
        assert f"| {wallpapers.title(picture)} | {use} | {picture.author} | {picture.licence} |" in listed
    assert len({wallpapers.title(picture) for picture in pictures}) == len(pictures)
    assert len(list((tmp_path / "copyright").iterdir())) == len(wallpapers.PACKAGES)


def test_a_machine_without_apt_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get: not found; this script needs Debian"):
        wallpapers.fetch(wallpapers.PACKAGES[0], tmp_path)
