import copy
import itertools
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from liif_fast import data, load_model, models
from liif_fast.config.reading import placed
from liif_fast.evaluation import load_test_config
from liif_fast.models.checkpoint import ModelFileError
from liif_fast.train import load_config, train
from liif_fast.train.config import check_config


def put(config, place, value):
    *path, last = place.split(".")
    for key in path:
        config = config[key]
    config[last] = value


@pytest.mark.parametrize("name", ["lte", "lte-fast"])
def test_configurations_of_lte(tmp_path, tiny, name):
    """They name the wrapper, the model and the run's own checkpoint: the first start begins, the second resumes."""
    encoder, imnet = (tiny["model"]["args"][key] for key in ("encoder_spec", "imnet_spec"))
    own = {"imnet_spec": imnet}
    if name == "lte-fast":
        own = {"num_layer": 2, "out_dim": 3}
        for split in ("train_dataset", "val_dataset"):
            args = {"inp_size": 8, "scale_max": 4}
            tiny[split]["wrapper"] = {"name": "sr-implicit-downsampled-fast", "args": args}
    tiny["model"] = {"name": name, "args": {"encoder_spec": encoder, "hidden_dim": 8, **own}}
    tiny["epoch_max"] = 1
    path = tmp_path / "train_it.yaml"
    save = tmp_path / "save"
    tiny["resume"] = str(save / "_train_it" / "epoch-last.pth")
    path.write_text(yaml.safe_dump(tiny))
    folder = train(path, save_root=save, device="cpu")
    assert f"resume: {tiny['resume']} is not there yet; the training begins" in (folder / "log.txt").read_text()
    assert load_model(folder / "epoch-last.pth").spec["name"] == name
    path.write_text(yaml.safe_dump(tiny | {"epoch_max": 2}))
    assert train(path, save_root=save, device="cpu") == folder
    assert "resumed from" in (folder / "log.txt").read_text()
    tiny["resume"] = str(save / "_another" / "epoch-last.pth")
    path.write_text(yaml.safe_dump(tiny))
    with pytest.raises(FileNotFoundError, match="resume: no file"):
        load_config(path)


def test_numbers_without_a_dot(tmp_path, tiny):
    """PyYAML reads 1e-4 as a string, quoted or not; 5e-1 stands for any other place."""
    text = yaml.safe_dump(tiny).replace("gamma: 0.5", "gamma: 5e-1")
    assert "lr: 1e-4" in text
    for quoted in (text, text.replace("1e-4", "'1e-4'")):
        path = tmp_path / "c.yaml"
        path.write_text(quoted)
        config = load_config(path)
        assert config.optimizer["args"]["lr"] == 1e-4
        assert config.multi_step_lr == {"milestones": [2, 3], "gamma": 0.5}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("epochs", 3, "config: unknown key 'epochs'"),
        ("train_dataset.shuffle", True, "train_dataset: unknown key 'shuffle'"),
        ("train_dataset.dataset.path", "x", "train_dataset.dataset: unknown key 'path'"),
        ("train_dataset.dataset.args.sizes", 4, "train_dataset.dataset.args: unknown key 'sizes'"),
        ("train_dataset.dataset.name", "div2k", "train_dataset.dataset.name: unknown name 'div2k'"),
        ("train_dataset.wrapper.args.scale", 2, "train_dataset.wrapper.args: unknown key 'scale'"),
        ("train_dataset.wrapper.args.seed", 2, "train_dataset.wrapper.args: unknown key 'seed'"),
        ("val_dataset.batch_size", 0, "val_dataset.batch_size: must be at least 1"),
        ("val_dataset.batch_size", None, "val_dataset: 'batch_size' is missing"),
        ("model.name", "liff", r"^model\.name: unknown name 'liff'"),
        ("model.args.encoder_spec.args.n_feat", 4, r"^model\.args\.encoder_spec\.args: unknown key 'n_feat'"),
        ("model.args.encoder_spec.args.n_resblocks", 10**15, "^model: it describes a model with more than 5000 tens"),
        ("model.args.encoder_spec.args.n_feats", -1, "^model: "),
        (
            "model.args.encoder_spec",
            {"name": "rdn", "args": {"RDNconfig": "Q"}},
            r"^model\.args\.encoder_spec\.args\.RDN",
        ),
        ("model.args.imnet_spec.args.out_dim", 0, r"^model\.args\.imnet_spec\.args\.out_dim: out_dim must be positive"),
        ("optimizer.name", ["adam"], r"^optimizer\.name: expected one of adam, sgd, got \['adam'\]"),
        ("optimizer.name", "lion", "optimizer.name: expected one of adam, sgd"),
        ("optimizer.args.lr", "fast", "optimizer.args.lr: expected finite number, got 'fast'"),
        ("optimizer.args.lr", 0, "optimizer.args.lr: must be above 0"),
        ("optimizer.args.betta", 1, "optimizer.args: .*betta"),
        ("multi_step_lr.step", 3, "multi_step_lr: unknown key 'step'"),
        ("multi_step_lr.milestones", 200, "multi_step_lr.milestones: expected a list"),
        ("cosine", {}, "multi_step_lr and cosine exclude each other"),
        ("epoch_max", None, "config: 'epoch_max' is missing"),
        ("epoch_max", 1.5, "epoch_max: expected a whole number"),
        ("ema", 1, "ema: must be above 0 and below 1"),
        ("amp", "fp8", "amp: expected null, bf16, bfloat16, fp16 or float16, got 'fp8'"),
        ("compile", 1, "compile: expected null, true or false, got 1"),
        ("channels_last", "yes", "channels_last: expected null, true or false"),
        ("grad_clip", 0, "grad_clip: must be above 0"),
        ("grad_accum", 0.5, "grad_accum: expected a whole number"),
        ("save_minutes", -1, "save_minutes: must be at least 0"),
        ("seed", 2**63, "seed: must be at least 0 and below"),
        ("val_seed", 2**70, "val_seed: must be at least 0 and below"),
        ("epoch_max", 2**31, "epoch_max: must be at least 1 and below 2147483648"),
        ("num_workers", 2000, "num_workers: must be at least 0 and below 1025"),
        ("data_device", "tpu", "data_device: expected null, cpu or cuda"),
        ("plugins", "module", "plugins: expected a list of modules"),
        ("plugins", ["no_such_module"], r"plugins\[0\]: cannot import no_such_module: ModuleNotFoundError"),
        ("eval_type", "div2k", "eval_type must be div2k-s or benchmark-s"),
        ("data_norm.inp.sub", "half", "data_norm"),
        ("data_norm.gt.div", [0], "data_norm"),
        ("data_norm.gt.div", [1, 1], "data_norm"),
        ("train_dataset.dataset.args.size", "big", r"train_dataset\.dataset\.args\.size: expected int, got 'big'"),
        ("train_dataset.dataset.args.repeat", None, r"args\.repeat: expected int, got None"),
        ("train_dataset.wrapper.args.augment", "yes", r"wrapper\.args\.augment: expected bool, got 'yes'"),
        ("train_dataset.wrapper.args.sample_q", 2.5, r"wrapper\.args\.sample_q: expected int or all or null, got 2.5"),
        (
            "model.args.imnet_spec.args.hidden_list",
            256,
            r"^model\.args\.imnet_spec\.args\.hidden_list: expected list of int, got 256",
        ),
        ("optimizer.args.betas", [0.9], r"^optimizer\.args\.betas: expected list of 2 .*, got \[0\.9\]"),
        ("optimizer.args.betas", [0.9, "a"], r"^optimizer\.args\.betas: expected list of 2"),
        ("optimizer.args.eps", float("nan"), r"^optimizer\.args\.eps: expected finite number, got nan"),
        ("optimizer.args.amsgrad", 1, r"^optimizer\.args\.amsgrad: expected bool, got 1"),
        ("optimizer.args.fused", "x", r"^optimizer\.args\.fused: expected bool or null, got 'x'"),
        ("optimizer.args.betas", [0.9, 2], r"optimizer\.args: Invalid beta"),
        ("optimizer.args.weight_decay", "much", r"^optimizer\.args\.weight_decay: expected finite number, got 'much'"),
    ],
)
def test_what_is_wrong_is_named(tiny, place, value, message):
    put(tiny, place, value)
    with pytest.raises(ValueError, match=message) as caught:
        check_config(tiny)
    assert "\n" not in str(caught.value)


def test_quoted_numbers_are_numbers(tiny):
    for place, value in {
        "epoch_max": "4",
        "train_dataset.batch_size": "2",
        "train_dataset.dataset.args.size": "40",
        "train_dataset.wrapper.args.scale_max": "2.5",
        "optimizer.args.weight_decay": "1e-2",
    }.items():
        put(tiny, place, value)
    config = check_config(tiny)
    assert (config.epoch_max, config.train_dataset["batch_size"]) == (4, 2)
    assert config.train_dataset["dataset"]["args"]["size"] == 40
    assert config.train_dataset["wrapper"]["args"]["scale_max"] == 2.5
    assert config.optimizer["args"]["weight_decay"] == 0.01
    assert isinstance(config.epoch_max, int)


def test_repeated_keys_are_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model:\n  name: liif\n  name: metasr\n")
    with pytest.raises(ValueError, match="the key 'name' is repeated"):
        load_config(path)


def test_missing_files_are_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="config: no file"):
        load_config(tmp_path / "none.yaml")
    put(tiny, "resume", str(tmp_path / "none.pth"))
    with pytest.raises(FileNotFoundError, match=r"resume: no file .*none\.pth"):
        check_config(tiny)
    put(tiny, "resume", None)
    pairs = {"name": "paired-image-folders", "args": {"root_path_1": str(tmp_path), "root_path_2": "/no/folder"}}
    put(tiny, "val_dataset.dataset", pairs)
    with pytest.raises(FileNotFoundError, match=r"val_dataset\.dataset\.args\.root_path_2: no folder /no/folder"):
        check_config(tiny)
    folder = {"name": "image-folder", "args": {"root_path": str(tmp_path), "split_file": "/no/split.json"}}
    put(tiny, "val_dataset.dataset", {"name": "mixed", "args": {"parts": [folder]}})
    with pytest.raises(FileNotFoundError, match=r"parts\[0\]\.args\.split_file: no file /no/split\.json"):
        check_config(tiny)


def test_keys_of_ones_own_may_hold_anchors(tmp_path, tiny):
    text = "x-size: &size {inp_size: 8, scale_max: 4, sample_q: 32}\nx-notes: [1, 2]\n" + yaml.safe_dump(tiny)
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert load_config(path).epoch_max == 4
    tiny["val_dataset"]["wrapper"]["args"] = "SIZE"
    path.write_text(
        "x-size: &size {inp_size: 8, scale_max: 4, sample_q: 32}\n"
        + yaml.safe_dump(tiny).replace("args: SIZE", "args: {<<: *size, augment: true}")
    )
    assert load_config(path).val_dataset["wrapper"]["args"] == {
        "inp_size": 8, "scale_max": 4, "sample_q": 32, "augment": True
    }  # fmt: skip
    for key in ("y-size", "xsize"):
        path.write_text(text.replace("x-notes", key))
        with pytest.raises(ValueError, match=f"unknown key '{key}'"):
            load_config(path)
    with pytest.raises(ValueError, match=r"train_dataset: unknown key 'x-size'"):  # only at the top level
        check_config({**tiny, "train_dataset": {**tiny["train_dataset"], "x-size": 1}})


def put_images(folder, count=1):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (40, 40)).save(folder / f"{i}.png")


def a_test_of(folder, **args):
    dataset = {"name": "image-folder", "args": {"root_path": folder, **args}}
    wrapper = {"name": "sr-implicit-downsampled", "args": {"scale_min": 2}}
    return {"test_dataset": {"dataset": dataset, "wrapper": wrapper, "batch_size": 1}}


def test_folders_beside_the_file(tmp_path, monkeypatch):
    """Relative folders are searched below the current folder, then beside the file."""
    put_images(tmp_path / "set" / "hr", 2)
    (tmp_path / "set" / "split.json").write_text('{"k": ["1.png"]}')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = tmp_path / "set" / "test.yaml"

    def dataset(config):
        path.write_text(yaml.safe_dump(config))
        return data.make(load_test_config(path).test_dataset["dataset"])

    assert len(dataset(a_test_of("hr"))) == 2
    assert len(dataset(a_test_of("hr", split_file="split.json", split_key="k"))) == 1
    parts = {"name": "mixed", "args": {"parts": [a_test_of("hr")["test_dataset"]["dataset"]] * 2}}
    config = a_test_of("hr")
    config["test_dataset"]["dataset"] = parts
    assert len(dataset(config)) == 4
    put_images(tmp_path / "elsewhere" / "hr", 3)
    assert len(dataset(a_test_of("hr"))) == 3
    with pytest.raises(FileNotFoundError, match=rf"root_path: no folder lr nor {re.escape(str(path.parent / 'lr'))}$"):
        dataset(a_test_of("lr"))
    with pytest.raises(FileNotFoundError, match=r"root_path: no folder /nowhere$"):
        dataset(a_test_of("/nowhere"))


def test_the_home_folder(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put_images(tmp_path / "hr")
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(a_test_of("~/hr")))
    assert len(data.make(load_test_config("~/t.yaml").test_dataset["dataset"])) == 1
    tiny["resume"] = "~/x.pth"
    with pytest.raises(FileNotFoundError, match=rf"resume: no file {re.escape(str(tmp_path))}.x\.pth"):
        check_config(tiny)
    (tmp_path / "x.pth").touch()
    assert check_config(tiny).resume == str(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "value",
    [
        *(str(10**30), "9" * 5000, "-" + "9" * 5000, "0b_", "!!int foo", "!!int ''"),
        *("!!float x", "!!float ''", "1" + ":00" * 200 + ".5", "!!bool x", "!!binary 'é'"),
        *("2001-99-99", "2001-01-01 00:00:00 +99:99", "!!timestamp x"),
    ],
    ids=lambda value: value[:20],
)
def test_a_value_that_is_none_has_its_place(tmp_path, value):
    """PyYAML raises errors of many types, without a place."""
    path = tmp_path / "c.yaml"
    for place in (f"b: {value}", f"b: [{value}]"):
        path.write_text(f"a: 1\n{place}")
        reason = "more than 64 bits" if value.strip("-").isdigit() else "expected a value of the type|failed to "
        with pytest.raises(ValueError, match=rf"c\.yaml, line 2, column [45]: is not YAML: .*({reason})"):
            load_config(path)


def test_not_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: [1")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(path)
    path.write_text("a: &a [*a]")
    with pytest.raises(ValueError, match="refers to itself"):
        load_config(path)
    doubled = "".join(
        f"{key}: &{key} [*{before}, *{before}]\n" for before, key in itertools.pairwise("abcdefghijklmnopqrstu")
    )
    path.write_text("a: &a [1]\n" + doubled)  # 2^20 values
    with pytest.raises(ValueError, match=r"c\.yaml is too large: it has more than 100000 values"):
        load_config(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(path)
    path.write_text("[" * 9000)
    with pytest.raises(ValueError, match="is nested too deep"):
        load_config(path)
    path.write_text("just words")
    with pytest.raises(ValueError, match="config: expected a mapping"):
        load_config(path)


def test_defaults(tiny):
    for key in ("data_norm", "multi_step_lr", "val_dataset", "epoch_val", "epoch_save", "resume"):
        del tiny[key]
    config = check_config(tiny)
    assert config.data_norm == {side: {"sub": [0.0], "div": [1.0]} for side in ("inp", "gt")}
    assert (config.seed, config.val_seed) == (0, 0)
    assert check_config(tiny | {"val_seed": None}).val_seed is None
    assert config.rate(0) == config.rate(4) == 1e-4


def test_the_rates_of_the_original(tiny):
    """As MultiStepLR, epoch 200 trains at 1e-4, epoch-200.pth holds 5e-5, and gamma defaults to 0.1."""
    tiny |= {"epoch_max": 1000, "multi_step_lr": {"milestones": [200, 400, 600, 800], "gamma": 0.5}}
    config = check_config(tiny)
    assert config.rate(199) == config.rate(199.999) == 1e-4  # all of the 200th epoch
    assert [config.rate(e) for e in (200, 399, 400, 800, 1000)] == [5e-5, 5e-5, 2.5e-5, 6.25e-6, 6.25e-6]
    del tiny["multi_step_lr"]["gamma"]
    assert check_config(tiny).rate(200) == pytest.approx(1e-5)


def test_cosine(tiny):
    tiny |= {"multi_step_lr": None, "epoch_max": 10, "cosine": {"min_lr": 1e-6, "warmup": 2}}
    config = check_config(tiny)
    assert config.rate(1) == pytest.approx(5e-5, rel=1e-2)
    assert config.rate(2) == pytest.approx(1e-4)
    assert config.rate(6) == pytest.approx((1e-4 + 1e-6) / 2)
    assert config.rate(10) == pytest.approx(1e-6)


def test_every_shipped_configuration_is_right(tmp_path, monkeypatch):
    """Shipped configurations pass the checks without their images; only the folders exist."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "valid"):
        (tmp_path / "load" / "div2k" / f"DIV2K_{part}_HR").mkdir(parents=True)
    (tmp_path / "data" / "carla").mkdir(parents=True)
    for part in ("train", "held-out"):
        (tmp_path / "data" / "wallpapers" / part).mkdir(parents=True)
    for name in ("edsr-small-liif", "edsr-small-liif-photo"):
        (tmp_path / "data" / f"{name}.pth").touch()
    paths = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    found = {path.stem: load_config(path) for path in paths}
    assert {"edsr-small-liif", "edsr-baseline-liif-generated", "edsr-baseline-liif-dead-leaves"} < found.keys()
    sizes = {"edsr-baseline-liif-div2k": 1_567_323, "rdn-liif-div2k": 22_320_835}
    for name, size in sizes.items():
        config = found[name]
        with torch.device("meta"):
            assert sum(p.numel() for p in models.make(config.model).parameters()) == size
        assert config.rate(199) == 1e-4
        assert (config.epoch_max, config.train_dataset["batch_size"], config.rate(200)) == (1000, 16, 5e-5)
        wrapper = {"inp_size": 48, "scale_max": 4, "augment": True, "sample_q": 2304}
        assert config.train_dataset["wrapper"]["args"] == wrapper


def test_the_line_is_named(tmp_path, tiny, write):
    lines = write(tiny).read_text().splitlines()

    def line_of(text):
        return next(i for i, line in enumerate(lines, 1) if line.strip().startswith(text))

    for place, value, at in (
        ("train_dataset.dataset.args.sizes", 4, "sizes:"),
        ("train_dataset.dataset.args.seed", "one", "seed: one"),
        ("epochs", 3, "epochs:"),
        ("multi_step_lr.gamma", -1, "gamma:"),
        ("data_norm.inp.sub", "half", "data_norm:"),
    ):
        changed = copy.deepcopy(tiny)
        put(changed, place, value)
        path = write(changed)
        lines = path.read_text().splitlines()
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}, line {line_of(at)}: "):
            load_config(path)
    drawn = {"name": "dead-leaves", "args": {"count": -1, "size": 40}}
    for place, value, at in (  # what only the constructors know
        ("train_dataset.dataset.args.count", -1, "count:"),
        ("val_dataset.dataset.args.size", 3, "size:"),
        ("train_dataset.dataset.args.repeat", 10**15, "repeat:"),
        ("train_dataset.wrapper.args.inp_size", 10**12, "wrapper:"),
        ("train_dataset.dataset", {"name": "mixed", "args": {"parts": [drawn]}}, "count:"),
        ("model.args.imnet_spec.args.hidden_list", [10**12], "model:"),
    ):
        changed = copy.deepcopy(tiny)
        put(changed, place, value)
        path = write(changed)
        split = place.partition(".")[0]
        lines = path.read_text().splitlines()
        lines = ["" if i < lines.index(f"{split}:") else line for i, line in enumerate(lines)]
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}, line {line_of(at)}: {split}") as caught:
            train(path, save_root=tmp_path)
        assert "\n" not in str(caught.value)
    put(tiny, "val_dataset.dataset", {"name": "image-folder", "args": {"root_path": "/no/folder"}})
    path = write(tiny)
    lines = path.read_text().splitlines()
    with pytest.raises(FileNotFoundError, match=rf"line {line_of('root_path')}: val_dataset.*no folder /no/folder"):
        load_config(path)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("model.pth: not a training checkpoint: it has no epoch"),
        ValueError("backend 'cuda' cannot run this decode"),
        ModelFileError("model: damaged"),
    ],
)
def test_other_errors_have_no_line(tmp_path, error):
    path = tmp_path / "c.yaml"
    path.write_text("model: 1\nbackend: cuda\n")
    with pytest.raises(type(error), match=r"^(model|backend)") as caught, placed(path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(("text", "kind"), [("can't allocate memory", ValueError), ("CUDA error: misc", RuntimeError)])
def test_only_a_lack_of_memory_is_the_models(tmp_path, tiny, write, monkeypatch, text, kind):
    def make(*args, **options):
        raise RuntimeError(text)

    path = write(tiny)
    monkeypatch.setattr(models, "make", make)
    with pytest.raises(kind, match=text) as caught:
        train(path, save_root=tmp_path)
    assert ("model: " in str(caught.value)) == (kind is ValueError)


def test_plugins(tmp_path, tiny, write, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"plugin_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from liif_fast import data, models\n"
        f"@data.register('{name}')\n"
        "class Noise:\n"
        "    def __init__(self, count: int): self.count = count\n"
        "    def __len__(self): return self.count\n"
        f"@models.register('{name}')\n"
        "def small(width: int): return models.make({'name': 'mlp', 'args': "
        "{'in_dim': 2, 'out_dim': 3, 'hidden_list': [width]}})\n"
    )
    tiny |= {"plugins": [name], "model": {"name": name, "args": {"width": 8}}}
    tiny["train_dataset"]["dataset"] = {"name": name, "args": {"count": 4}}
    assert load_config(write(tiny)).plugins == [name]
    put(tiny, "train_dataset.dataset.args", {"counts": 4})
    with pytest.raises(ValueError, match=r"train_dataset\.dataset\.args: unknown key 'counts'"):
        load_config(write(tiny))
    put(tiny, "train_dataset.dataset.args", {"count": 4})
    put(tiny, "model.args", {"widths": 8})
    with pytest.raises(ValueError, match=r"model\.args: unknown key 'widths'"):
        load_config(write(tiny))
