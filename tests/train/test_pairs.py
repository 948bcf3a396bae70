"""Image files that do not fit are named before the first training step."""

import pytest
from PIL import Image

from liif_fast.data import dead_leaves

from .support import run


@pytest.fixture
def pairs(tmp_path):
    """Return a configuration of two folders of pairs at scale 2, rounded up."""
    for name in ("lr", "hr"):
        (tmp_path / name).mkdir()
    for i in range(4):
        image = Image.fromarray(dead_leaves(47, seed=3, index=i))
        image.save(tmp_path / "hr" / f"{i}.png")
        image.resize((24, 24), Image.Resampling.BICUBIC).save(tmp_path / "lr" / f"{i}.png")
    args = {"root_path_1": str(tmp_path / "lr"), "root_path_2": str(tmp_path / "hr")}
    return {"name": "paired-image-folders", "args": args}


def test_pairs_that_were_rounded_up(tiny, write, tmp_path, pairs):
    for split, args in (("train_dataset", {"inp_size": 8, "sample_q": 32}), ("val_dataset", {})):
        tiny[split] |= {"dataset": pairs, "wrapper": {"name": "sr-implicit-paired", "args": args}}
    tiny |= {"eval_type": "benchmark-2", "epoch_max": 1}
    folder = run(write, tiny, tmp_path / "save")
    assert "val psnr" in (folder / "log.txt").read_text()
    tiny["eval_type"] = "benchmark-3"
    with pytest.raises(ValueError, match=r"lr.0\.png is 24 x 24 and .*hr.0\.png is 47 x 47, .*eval_type says x3"):
        run(write, tiny, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("split", ["train_dataset", "val_dataset"])
def test_an_image_too_small_is_named_at_the_start(tiny, write, tmp_path, pairs, split):
    root = pairs["args"]["root_path_2"]
    Image.new("RGB", (60, 31)).save(tmp_path / "hr" / "3.png")
    tiny[split]["dataset"] = {"name": "image-folder", "args": {"root_path": root, "repeat": 5}}
    with pytest.raises(ValueError, match=r"hr.3\.png is 31 x 60, too small for a crop of 32 x 32"):
        run(write, tiny, tmp_path / "save")
    assert not (tmp_path / "save").exists()
