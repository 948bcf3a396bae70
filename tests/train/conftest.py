import copy

import pytest
import yaml

TINY = {
    "train_dataset": {
        "dataset": {"name": "dead-leaves", "args": {"count": 4, "size": 40, "seed": 1, "repeat": 2}},
        "wrapper": {
            "name": "sr-implicit-downsampled",
            "args": {"inp_size": 8, "scale_max": 4, "augment": True, "sample_q": 32, "color_augment": True},
        },
        "batch_size": 4,
    },
    "val_dataset": {
        "dataset": {"name": "dead-leaves", "args": {"count": 3, "size": 40, "seed": 3}},
        "wrapper": {"name": "sr-implicit-downsampled", "args": {"inp_size": 8, "scale_max": 4, "sample_q": 64}},
        "batch_size": 2,
    },
    "data_norm": {"inp": {"sub": [0.5], "div": [0.5]}, "gt": {"sub": [0.5], "div": [0.5]}},
    "model": {
        "name": "liif",
        "args": {
            "encoder_spec": {
                "name": "edsr-baseline",
                "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True},
            },
            "imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [16, 16]}},
        },
    },
    "optimizer": {"name": "adam", "args": {"lr": "1e-4"}},
    "epoch_max": 4,
    "multi_step_lr": {"milestones": [2, 3], "gamma": 0.5},
    "epoch_val": 1,
    "epoch_save": 2,
    "resume": None,
    "tensorboard": False,
}


@pytest.fixture
def tiny():
    """Return a configuration that trains in a second."""
    return copy.deepcopy(TINY)


@pytest.fixture
def write(tmp_path):
    """Write a configuration and return its path."""

    def write(config, name="tiny.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def uneven(tiny):
    """Use batches of 3, 3 and 1 samples of all pixels of crops of several sizes, two batches per step."""
    tiny["train_dataset"]["dataset"]["args"] |= {"count": 7, "repeat": 1}
    tiny["train_dataset"]["wrapper"]["args"]["sample_q"] = "all"
    tiny["train_dataset"]["batch_size"] = 3
    tiny["optimizer"]["args"]["lr"] = 1e-3
    return tiny | {"grad_accum": 2, "epoch_max": 3, "ema": 0.9}
