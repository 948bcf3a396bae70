"""`liif-fast eval` with test files of the original's families."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import liif_fast
from liif_fast import data, evaluation
from liif_fast.cli import main
from liif_fast.models import make
from liif_fast.train.config import load_test_config

HALF = {part: {"sub": [0.5], "div": [0.5]} for part in ("inp", "gt")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """High-resolution images, their halves, a split file, a tiny model, and a test file of every family."""
    root = tmp_path_factory.mktemp("eval")
    for name in ("hr", "lr"):
        (root / name).mkdir()
    for i in range(3):
        image = Image.fromarray(data.dead_leaves(48, seed=3, index=i)).crop((0, 0, 46 - 2 * i, 41))
        image.save(root / "hr" / f"{i}.png")
        half = (image.width // 2, image.height // 2)
        image.crop((0, 0, 2 * half[0], 2 * half[1])).resize(half, Image.Resampling.BICUBIC).save(
            root / "lr" / f"{i}x2.png"
        )
    (root / "split.json").write_text(json.dumps({"test": ["0.png"]}))

    def write(name, dataset, wrapper, **rest):
        config = {"test_dataset": {"dataset": dataset, "wrapper": wrapper, "batch_size": 1}, **rest}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(config))

    pairs = {"root_path_1": str(root / "lr"), "root_path_2": str(root / "hr")}
    paired, single = (
        {"name": "paired-image-folders", "args": pairs},
        {"name": "image-folder", "args": {"root_path": str(root / "hr")}},
    )
    whole = {"eval_bsize": 30000, "data_norm": HALF}
    write("test-div2k-2", paired, {"name": "sr-implicit-paired"}, eval_type="div2k-2", **whole)
    write("test-set5-2", paired, {"name": "sr-implicit-paired"}, eval_type="benchmark-2", **whole)
    down = {"name": "sr-implicit-downsampled", "args": {"scale_min": 3, "scale_max": 3}}
    write("test-set5-3", single, down, eval_type="benchmark-3", **whole)
    split = {"split_file": str(root / "split.json"), "split_key": "test"}
    same = {"root_path_1": str(root / "hr"), "root_path_2": str(root / "hr")}
    faces = {"name": "paired-image-folders", "args": {**same, **split}}
    varied = {"name": "sr-implicit-uniform-varied", "args": {"size_min": 64, "size_max": 64}}
    write("test-celebAHQ-32-64", faces, varied, data_norm=HALF)
    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
    args = {"encoder_spec": encoder, "imnet_spec": imnet, "residual": "bilinear"}
    liif_fast.save_model(make({"name": "liif", "args": args}), root / "tiny.safetensors")
    return root


FAMILIES = ("test-div2k-2", "test-set5-2", "test-set5-3", "test-celebAHQ-32-64")


def run(capsys, *args):
    code = main(["eval", "--device", "cpu", *map(str, args)])
    return code, *capsys.readouterr()


def test_all_families_in_one_table(folder, tmp_path, capsys):
    configs = [folder / f"{name}.yaml" for name in FAMILIES]
    code, out, err = run(
        capsys, "--config", *configs, "--model", "bicubic", folder / "tiny.safetensors",
        "--save", tmp_path / "pictures", "--json", tmp_path / "r.json", "--markdown", tmp_path / "r.md",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out == (tmp_path / "r.md").read_text()
    lines = out.splitlines()
    assert lines[0] == "| PSNR in dB / SSIM | div2k-2 | set5-2 | set5-3 | celebAHQ-32-64 |"
    assert lines[2] == "| bicubic, as published on DIV2K | 31.01 |  |  |  |"
    assert [line.split(" |")[0] for line in lines[6:]] == ["| bicubic", "| tiny"]
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["cell_clip"] is False
    assert [(s["model"], s["test"], len(s["images"])) for s in content["scores"]] == [
        (model, name.removeprefix("test-"), 1 if "celeb" in name else 3)
        for model in ("bicubic", "tiny")
        for name in FAMILIES
    ]
    for score in content["scores"]:
        for image in score["images"]:
            picture = Image.open(tmp_path / "pictures" / score["model"] / score["test"] / f"{image['name']}.png")
            assert list(picture.size[::-1]) == image["size"]
    sizes = [image["size"] for image in content["scores"][0]["images"]]
    assert sizes == [[40, 46], [40, 44], [40, 42]]


def scores(capsys, tmp_path, *args):
    """The scores in the JSON file of an evaluation."""
    code, _, err = run(capsys, *args, "--json", tmp_path / "r.json")
    assert (code, err) == (0, "")
    return json.loads((tmp_path / "r.json").read_text())["scores"]


def test_bicubic_by_independent_steps(folder, tmp_path, capsys):
    """set5-3: cut to a multiple of 3, reduced and enlarged by Pillow, luma, 3 pixels shaved."""
    config = folder / "test-set5-3.yaml"
    (score,) = scores(capsys, tmp_path, "--config", config, "--model", "bicubic", "--no-ssim")
    expected = []
    for i in range(3):
        image = Image.open(folder / "hr" / f"{i}.png")
        low = (image.width // 3, image.height // 3)
        image = image.crop((0, 0, 3 * low[0], 3 * low[1]))
        back = image.resize(low, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)
        diff = (np.asarray(image, float) - np.asarray(back, float)) / 255
        luma = (diff @ np.array([65.738, 129.057, 25.064]) / 256)[3:-3, 3:-3]
        expected.append(-10 * np.log10(np.square(luma).mean()))
    assert [image["psnr"] for image in score["images"]] == pytest.approx(expected, abs=1e-3)
    assert score["psnr"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert score["ssim"] is None


def test_a_model_by_its_own_forward(folder, tmp_path, capsys):
    """div2k-2: every pixel queried as in training, RGB, 8 pixels shaved."""
    path = folder / "tiny.safetensors"
    (score,) = scores(capsys, tmp_path, "--config", folder / "test-div2k-2.yaml", "--model", path)
    model, spec = liif_fast.load_model(path), load_test_config(folder / "test-div2k-2.yaml").test_dataset
    wrapper = data.make(spec["wrapper"], dataset=data.make(spec["dataset"]), seed=0)
    for index, image in enumerate(score["images"]):
        sample = {key: value[None] for key, value in wrapper[index].items()}
        with torch.no_grad():
            pred = model((sample["inp"] - 0.5) / 0.5, sample["coord"], sample["cell"])
        diff = ((pred * 0.5 + 0.5).clamp(0, 1) - sample["gt"]).view(*image["size"], 3)[8:-8, 8:-8]
        assert image["psnr"] == pytest.approx(-10 * diff.square().mean().log10().item(), abs=1e-3)


def test_processes_share_the_images(folder, tmp_path):
    command = ["--config", folder / "test-set5-2.yaml", "--model", "bicubic", "--device", "cpu", "--no-ssim"]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "liif_fast",
    ]
    done = subprocess.run(
        [*torchrun, "eval", *map(str, command), "--json", tmp_path / "two.json", "--save", tmp_path / "pictures"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PSNR in dB") == 1
    assert main(["eval", *map(str, command), "--json", str(tmp_path / "one.json")]) == 0
    one, two = (json.loads((tmp_path / f"{n}.json").read_text())["scores"] for n in ("one", "two"))
    assert one == two
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 3


def test_from_training_to_figures(folder, tmp_path, capsys, monkeypatch):
    """A training from a YAML file, a test of its checkpoint: better than what it started from."""
    monkeypatch.chdir(tmp_path)
    crops = {"inp_size": 8, "scale_max": 3, "augment": True, "sample_q": 64}
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 8, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [16, 16]}}
    config = {
        "train_dataset": {
            "dataset": {"name": "image-folder", "args": {"root_path": str(folder / "hr"), "repeat": 8, "cache": "bin"}},
            "wrapper": {"name": "sr-implicit-downsampled", "args": crops},
            "batch_size": 4,
        },
        "data_norm": HALF,
        "model": {"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}},
        "optimizer": {"name": "adam", "args": {"lr": 0.003}},
        "epoch_max": 12,
        "epoch_save": 1,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", "tiny.yaml", "--device", "cpu"]) == 0
    capsys.readouterr()
    checkpoints = [tmp_path / "save" / "_tiny" / f"epoch-{name}.pth" for name in ("1", "last")]
    config = folder / "test-set5-2.yaml"
    first, last = scores(capsys, tmp_path, "--config", config, "--model", *checkpoints, "--no-ssim")
    assert (first["model"], last["model"]) == ("epoch-1", "epoch-last")
    assert last["psnr"] > first["psnr"] + 1


def test_a_test_normalised_otherwise_is_told(folder, tmp_path, capsys):
    config = yaml.safe_load((folder / "test-set5-2.yaml").read_text())
    del config["data_norm"]
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(config))
    code, _, err = run(capsys, "--config", tmp_path / "plain.yaml", "--model", folder / "tiny.safetensors", "--no-ssim")
    assert code == 0
    assert "plain: data_norm is {'inp': {'sub': [0.0]" in err
    assert "the test's counts" in err


def test_names_that_are_alike(folder, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.yaml").write_text((folder / "test-set5-2.yaml").read_text())
    configs = [tmp_path / name / "t.yaml" for name in ("a", "b")]
    code, out, _ = run(capsys, "--config", *configs, "--model", "bicubic", "--no-ssim")
    assert code == 0
    assert out.splitlines()[0] == "| PSNR in dB | a-t | b-t |"
    code, _, err = run(capsys, "--config", configs[0], configs[0], "--model", "bicubic")
    assert code == 1 and "named twice" in err


def spoilt(**changes):
    def spoil(config):
        for path, value in changes.items():
            *parents, last = path.split("__")
            part = config
            for key in parents:
                part = part[key]
            part[last] = value
        return config

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: {"train_dataset": c["test_dataset"]}, "unknown key 'train_dataset' (known: test_dataset"),
        (lambda c: {"eval_type": "div2k-2"}, "'test_dataset' is missing"),
        (lambda c: [1], "expected a mapping"),
        (spoilt(eval_type="div2k"), "eval_type must be div2k-s"),
        (spoilt(eval_bsize=0), "eval_bsize: must be at least 1"),
        (spoilt(data_norm={"inp": {"sub": "x"}}), "data_norm"),
        (spoilt(test_dataset__batch_size=0), "test_dataset.batch_size: must be at least 1"),
        (spoilt(test_dataset__dataset__args__root_path_1="/no"), "test_dataset.dataset.args.root_path_1: no folder"),
        (spoilt(test_dataset__wrapper__name="sr"), "test_dataset.wrapper.name: unknown name 'sr'"),
        (spoilt(test_dataset__wrapper__args={"sample_q": 5}), "leave sample_q out"),
        (spoilt(test_dataset__dataset__name="image-folder"), "test_dataset.dataset.args: unknown key 'root_path_1'"),
        (spoilt(eval_type="benchmark-20"), "0: pred must be larger than the 20 pixels"),
        (spoilt(test_dataset__batch_size=2), "the images of a batch differ in size"),
    ],
)  # fmt: skip
def test_a_bad_configuration_is_one_line(folder, tmp_path, capsys, spoil, message):
    config = spoil(yaml.safe_load((folder / "test-set5-2.yaml").read_text()))
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    code, out, err = run(capsys, "--config", tmp_path / "bad.yaml", "--model", "bicubic", "--no-ssim")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "nowhere.yaml", "--model", "bicubic"], "no file nowhere.yaml"),
        (["--config", ".", "--model", "bicubic"], "no file ."),
        (["--config", "{}", "--model", "bicubic", "--json", "."], ".: is a folder"),
        (["--config", "{}", "--model", "nowhere.pth"], "nowhere.pth"),
        (["--config", "{}", "--model", "bicubic", "--json", "/nowhere/r.json"], "does not exist"),
        (["--config", "{}", "--model", "bicubic", "--backend", "quick"], "--backend must be one of"),
        (["--config", "{}", "--model", "bicubic", "--device", "cuda:77"], "device"),
    ],
)
def test_a_bad_option_is_one_line(folder, capsys, args, message):
    code = main(["eval", *(arg.format(folder / "test-set5-2.yaml") for arg in args)])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert message in err


def test_usage(capsys):
    for args in ([], ["--config", "a.yaml"], ["--model", "bicubic"]):
        assert main(["eval", *args]) == 2
        assert "required" in capsys.readouterr().err


def test_published_rows_are_as_long_as_the_scales():
    assert {len(row) for row in evaluation.PUBLISHED.values()} == {len(evaluation.PUBLISHED_SCALES)}


def test_numbers_written_as_text(tmp_path, folder):
    config = yaml.safe_load((folder / "test-set5-2.yaml").read_text()) | {"eval_bsize": "30000"}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(config))
    assert load_test_config(tmp_path / "t.yaml").eval_bsize == 30000
