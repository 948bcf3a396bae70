"""Go from a YAML file to a table of scores by the commands alone."""

import json
import math

import yaml
from PIL import Image

from liif_fast.cli import main
from liif_fast.data import dead_leaves

from .support import load


def test_from_yaml_to_eval(tmp_path, tiny, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    for i in range(2):
        Image.fromarray(dead_leaves(48, 7, i)).save(images / f"{i}.png")
    tiny["train_dataset"]["dataset"] = {"name": "image-folder", "args": {"root_path": "images", "repeat": 4}}
    assert main(["train", "--config", str(write(tiny | {"epoch_max": 1})), "--device", "cpu"]) == 0
    assert main(["train", "--config", str(write(tiny | {"epoch_max": 2})), "--device", "cpu", "--resume"]) == 0
    run = tmp_path / "save" / "_tiny"
    assert load(run / "epoch-last.pth")["epoch"] == 2
    assert main(["plot", str(run)]) == 0
    test = {
        "test_dataset": {
            "dataset": {"name": "image-folder", "args": {"root_path": "images"}},
            "wrapper": {"name": "sr-implicit-downsampled", "args": {"scale_min": 2}},
            "batch_size": 1,
        },
        "data_norm": tiny["data_norm"],
        "eval_type": "div2k-2",
    }
    (tmp_path / "test-2.yaml").write_text(yaml.safe_dump(test))
    command = ["eval", "--config", "test-2.yaml", "--model", str(run / "epoch-best.pth"), "--no-ssim"]
    assert main([*command, "--json", "table.json", "--device", "cpu"]) == 0
    text = (tmp_path / "table.json").read_text()
    assert "epoch-best" in text and "psnr" in text.lower()
    assert not any(math.isnan(value) for value in numbers(json.loads(text)))


def numbers(content):
    if isinstance(content, dict | list):
        for item in content.values() if isinstance(content, dict) else content:
            yield from numbers(item)
    elif isinstance(content, float):
        yield content
