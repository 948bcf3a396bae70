"""Test `liif-fast eval` with test files of the original's families."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.distributed import TCPStore

import liif_fast
from liif_fast import data, evaluation
from liif_fast.cli import main
from liif_fast.evaluation import load_test_config
from liif_fast.models import make

from .. import warm

HALF = {part: {"sub": [0.5], "div": [0.5]} for part in ("inp", "gt")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make high-resolution images, their halves, a split file, a tiny model, and a test file of every family."""
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
    """Return the scores in an evaluation's JSON file."""
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
    two = ["-m", "liif_fast", "eval", *command, "--json", tmp_path / "two.json", "--save", tmp_path / "pictures"]
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun, see test_distributed.py
    variables = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    variables |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    ranks = [variables | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda env: warm.run(*two, env=env), ranks)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert (first.stdout.count("PSNR in dB"), second.stdout) == (1, "")
    assert main(["eval", *map(str, command), "--json", str(tmp_path / "one.json")]) == 0
    one, two = (json.loads((tmp_path / f"{n}.json").read_text())["scores"] for n in ("one", "two"))
    assert one == two
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 3


def test_from_training_to_figures(folder, tmp_path, capsys, monkeypatch):
    """After a training from a YAML file, its checkpoint scores better than the start."""
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
    assert "plain: uses its own data_norm {'inp': {'sub': [0.0]" in err
    assert "uses its own data_norm" in err


def test_names_that_are_alike(folder, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.yaml").write_text((folder / "test-set5-2.yaml").read_text())
    configs = [tmp_path / name / "t.yaml" for name in ("a", "b")]
    code, out, _ = run(capsys, "--config", *configs, "--model", "bicubic", "--no-ssim")
    assert code == 0
    assert out.splitlines()[0] == "| PSNR in dB | a-t | b-t |"
    code, _, err = run(capsys, "--config", configs[0], configs[0], "--model", "bicubic")
    assert code == 1 and "given twice" in err


def test_names_are_apart(folder, tmp_path, capsys):
    """Names that would collide: images a.jpg and a.png, tests x and test-x, models a.pth and a.safetensors."""
    (tmp_path / "hr").mkdir()
    for name, value in (("a.jpg", 60), ("a.png", 200)):
        Image.new("RGB", (48, 48), (value, 9, 9)).save(tmp_path / "hr" / name)
    config = yaml.safe_load((folder / "test-set5-3.yaml").read_text())
    config["test_dataset"]["dataset"]["args"]["root_path"] = str(tmp_path / "hr")
    for name in ("x", "test-x"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    model = liif_fast.load_model(folder / "tiny.safetensors")
    models = [tmp_path / "tiny.pth", tmp_path / "tiny.safetensors"]
    for path in models:
        liif_fast.save_model(model, path)
    configs = [tmp_path / "x.yaml", tmp_path / "test-x.yaml"]
    found = scores(
        capsys, tmp_path, "--config", *configs, "--model", "bicubic", *models, "--no-ssim", "--save", tmp_path / "out"
    )
    assert [(s["model"], s["test"]) for s in found] == [
        (model, test) for model in ("bicubic", "tiny.pth", "tiny.safetensors") for test in ("x", "test-x")
    ]
    assert {tuple(image["name"] for image in score["images"]) for score in found} == {("a.jpg", "a.png")}
    assert len(list((tmp_path / "out").rglob("*.png"))) == 12
    for name, value in (("a.jpg", 60), ("a.png", 200)):
        picture = Image.open(tmp_path / "out" / "bicubic" / "x" / f"{name}.png")
        assert abs(picture.getpixel((20, 20))[0] - value) <= 2


def test_pairs_that_were_rounded_up(tmp_path, capsys):
    """Pairs are scored at the scale of the reduction; at one less they would be far worse."""
    for name in ("lr", "hr"):
        (tmp_path / name).mkdir()
    image = Image.fromarray(data.dead_leaves(64, seed=3))
    for i, (width, height) in enumerate(((63, 61), (64, 61), (63, 64))):
        high = image.crop((0, 0, width, height))
        high.save(tmp_path / "hr" / f"{i}.png")
        half = (-(-width // 2), -(-height // 2))
        reduced = image.resize((32, 32), Image.Resampling.BICUBIC).crop((0, 0, *half))
        reduced.save(tmp_path / "lr" / f"{i}.png")
    pairs = {f"root_path_{i}": str(tmp_path / name) for i, name in ((1, "lr"), (2, "hr"))}
    spec = {"dataset": {"name": "paired-image-folders", "args": pairs}, "wrapper": {"name": "sr-implicit-paired"}}
    config = {"test_dataset": {**spec, "batch_size": 1}}

    def evaluated(eval_type):
        (tmp_path / "t.yaml").write_text(yaml.safe_dump({**config, "eval_type": eval_type}))
        return run(capsys, "--config", tmp_path / "t.yaml", "--model", "bicubic", "--no-ssim")

    whole = [image.crop((0, 0, 60, 60)), image.resize((32, 32), Image.Resampling.BICUBIC).crop((0, 0, 30, 30))]
    back = np.asarray(whole[1].resize((60, 60), Image.Resampling.BICUBIC), float)[8:-8, 8:-8]
    about = -10 * np.log10(np.square((np.asarray(whole[0], float)[8:-8, 8:-8] - back) / 255).mean())
    for eval_type in (None, "div2k-2", "benchmark-2"):
        code, out, err = evaluated(eval_type)
        assert (code, err) == (0, "")
        assert float(out.splitlines()[-1].split("|")[2]) == pytest.approx(about, abs=3)
    code, out, err = evaluated("benchmark-3")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "0.png is 31 x 32 and " in err and "0.png is 61 x 63, " in err and "eval_type says x3, they fit x2" in err


def test_without_scikit_image(folder, capsys, monkeypatch):
    """Without scikit-image, as after a plain installation, only PSNR is measured and a line names what SSIM needs."""
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    command = ["--config", folder / "test-set5-2.yaml", "--model", "bicubic"]
    code, out, err = run(capsys, *command)
    assert code == 0
    assert out.splitlines()[0] == "| PSNR in dB | set5-2 |"
    assert err.startswith("liif-fast: only PSNR: SSIM needs scikit-image") and err.count("\n") == 1
    assert run(capsys, *command, "--no-ssim") == (0, out, "")


def test_the_home_folder(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    code, _, err = run(
        capsys, "--config=~/test-set5-2.yaml", "--model=~/tiny.safetensors", "--no-ssim",
        "--json=~/r.json", "--markdown=~/r.md", "--save=~/pictures",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert all((folder / name).exists() for name in ("r.json", "r.md", "pictures"))
    assert not list(tmp_path.iterdir())


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
        (spoilt(eval_type="benchmark-20"), "eval_type says x20, they fit x2"),
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
