"""Test model files: strict loading of the original's format, round trips, and forged files."""

import collections
import io
import itertools
import json
import os
import re
import stat
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from liif_fast import load_model, models, save_model
from liif_fast.models import ModelFileError, catalogue

ENCODER = {"name": "edsr-baseline", "args": {"no_upsampling": True}}
IMNET = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [256, 256, 256, 256]}}
HALF = {"sub": [0.5], "div": [0.5]}


def original_state(n=64, blocks=16, hidden=(256, 256, 256, 256)):
    """Return tensors with the names and shapes of the original's EDSR-baseline-LIIF."""
    generator = torch.Generator().manual_seed(0)
    sd = collections.OrderedDict()

    def put(name, *shape):
        sd[f"{name}.weight"] = torch.randn(shape, generator=generator) * 0.05
        sd[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.05

    put("encoder.sub_mean", 3, 3, 1, 1)
    put("encoder.add_mean", 3, 3, 1, 1)
    put("encoder.head.0", n, 3, 3, 3)
    for i in range(blocks):
        put(f"encoder.body.{i}.body.0", n, n, 3, 3)
        put(f"encoder.body.{i}.body.2", n, n, 3, 3)
    put(f"encoder.body.{blocks}", n, n, 3, 3)
    widths = [n * 9 + 4, *hidden, 3]
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        put(f"imnet.layers.{2 * i}", b, a)
    return sd


def original_checkpoint():
    sd = original_state()
    optimizer = {"name": "adam", "args": {"lr": 1e-4}, "sd": {"state": {}, "param_groups": [{"lr": 1e-4}]}}
    model = {"name": "liif", "args": {"encoder_spec": ENCODER, "imnet_spec": IMNET}, "sd": sd}
    return {"model": model, "optimizer": optimizer, "epoch": 1000}


@pytest.fixture
def tiny(tiny_spec):
    torch.manual_seed(0)
    return models.make(tiny_spec())


def tiny_checkpoint(tiny):
    return {"model": {**tiny.spec, "sd": dict(tiny.state_dict())}}


def test_checkpoint_of_the_original(tmp_path):
    checkpoint = original_checkpoint()
    torch.save(checkpoint, tmp_path / "epoch-last.pth")
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    for source in (tmp_path / "epoch-last.pth", str(tmp_path / "epoch-last.pth"), checkpoint, checkpoint["model"]):
        model = load_model(source)
        assert not model.training
        assert sum(p.numel() for p in model.parameters()) == 1_567_323
        assert all(torch.equal(value, checkpoint["model"]["sd"][key]) for key, value in model.state_dict().items())
        assert model.data_norm == {"inp": HALF, "gt": HALF}
        assert model.spec == {"name": "liif", "args": checkpoint["model"]["args"]}
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".PTH", ".SAFETENSORS"])
@pytest.mark.parametrize("kind", ["liif", "residual", "metasr", "normed"])
def test_round_trip(tmp_path, tiny, tiny_spec, suffix, kind):
    if kind == "residual":
        tiny = models.make(tiny_spec(residual="bilinear", cell_decode=False))
    if kind == "metasr":
        tiny = models.make({"name": "metasr", "args": {"encoder_spec": tiny.spec["args"]["encoder_spec"]}})
    if kind == "normed":
        tiny.data_norm = {"inp": {"sub": [0.1, 0.2, 0.3], "div": [1.0]}, "gt": HALF}
    save_model(tiny, tmp_path / f"model{suffix}")
    assert os.listdir(tmp_path) == [f"model{suffix}"]
    again = load_model(tmp_path / f"model{suffix}")
    assert again.spec == tiny.spec
    assert again.data_norm == getattr(tiny, "data_norm", {"inp": HALF, "gt": HALF})
    assert all(torch.equal(again.state_dict()[key], value) for key, value in tiny.state_dict().items())


def test_pth_has_the_original_form(tmp_path, tiny):
    save_model(tiny, tmp_path / "model.pth")
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    assert set(content) == {"model"}
    assert set(content["model"]) == {"name", "args", "sd"}


def test_low_precision_file_gives_a_float32_model(tmp_path, tiny):
    save_model(tiny.half(), tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert all(torch.equal(again.state_dict()[key], value.float()) for key, value in tiny.state_dict().items())


def test_failed_saving_keeps_the_old_file(tmp_path, tiny, monkeypatch):
    path = tmp_path / "model.pth"
    path.write_text("old")

    def fail(content, file):
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(tiny, path)
    assert os.listdir(tmp_path) == ["model.pth"]
    assert path.read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_saving_as_any_file_is_written(tmp_path, tiny, suffix):
    """A new file has the umask's mode, an old one keeps its mode, and links are followed."""
    path, link = tmp_path / f"model{suffix}", tmp_path / f"link{suffix}"
    before = os.umask(0o027)
    try:
        save_model(tiny, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.write_bytes(b"")
    path.chmod(0o604)
    link.symlink_to(path.name)
    save_model(tiny, link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert load_model(path).spec == tiny.spec
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, link.name])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_not_a_regular_file(tmp_path):
    """Devices and pipes are refused before they are opened, because they might block forever."""
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.pth").mkdir()
    for path in ("/dev/zero", *tmp_path.iterdir()):
        with pytest.raises(OSError, match=re.escape(f"{path}: not a regular file")):
            load_model(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_too_large(tmp_path, tiny, suffix, monkeypatch):
    path = tmp_path / f"model{suffix}"
    save_model(tiny, path)
    size = path.stat().st_size
    monkeypatch.setattr("liif_fast.models.checkpoint.MAX_BYTES", size)
    load_model(path)
    monkeypatch.setattr("liif_fast.models.checkpoint.MAX_BYTES", size - 1)
    monkeypatch.setattr("builtins.open", None)  # its size is checked
    monkeypatch.setattr("safetensors.safe_open", None)
    message = f"{path}: has {size} bytes, a model file may have {size - 1}"
    with pytest.raises(ModelFileError, match=re.escape(message)):
        load_model(path)


@models.register("test-counts")
class Counts(torch.nn.Module):
    """Hold tensors that are not weights, as a user's encoder may."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
        self.register_buffer("index", torch.arange(3))
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_integers_and_switches_come_back(tmp_path, ending):
    """Integer tensors such as BatchNorm's count keep their dtype, and a float is refused for them."""
    model = models.make({"name": "test-counts"})
    model(torch.rand(1, 3, 5, 6))
    model.mask[1] = True
    save_model(model, tmp_path / f"model.{ending}")
    again = load_model(tmp_path / f"model.{ending}").state_dict()
    assert again["net.1.num_batches_tracked"] == 1
    assert all(
        value.dtype == again[key].dtype and torch.equal(value, again[key]) for key, value in model.state_dict().items()
    )
    model.index = model.index.float()
    with pytest.raises(ValueError, match=r"'index' is torch\.float32, the model needs torch\.int64"):
        save_model(model, tmp_path / f"model.{ending}")
    with pytest.raises(ModelFileError, match=r"'index' is torch\.float32"):
        load_model({"name": "test-counts", "args": {}, "sd": model.state_dict()})
    model.to("meta")
    with pytest.raises(ValueError, match="must be a dense tensor with content"):
        save_model(model, tmp_path / "meta.pth")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_full_disk_is_an_os_error_and_leaves_the_old_file(tmp_path, tiny, ending):
    resource = pytest.importorskip("resource", reason="no limits of files on Windows")
    path = tmp_path / f"model.{ending}"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_model(tiny, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(each, each.read_bytes()) for each in tmp_path.iterdir()] == [(path, b"old")]


def test_what_cannot_be_saved(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"path must end in \.safetensors, \.pth or \.pt"):
        save_model(tiny, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="attribute 'spec'"):
        save_model(torch.nn.Linear(1, 1), tmp_path / "model.pth")
    own = torch.nn.Conv2d(3, 4, 3, padding=1)
    edsr, tiny.encoder = tiny.encoder, own
    with pytest.raises(ValueError, match=r"rebuilt from its spec \(tensors do not fit .*: register the"):
        save_model(tiny, tmp_path / "model.pth")
    tiny.encoder = edsr
    own.spec = {"name": "test-unregistered", "args": {}}
    with pytest.raises(ValueError, match=r"unknown name 'test-unregistered'.*: register the class"):
        save_model(own, tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())
    tiny.spec["args"]["local_ensemble"] = object()
    with pytest.raises(TypeError, match="plain values only, got object"):
        save_model(tiny, tmp_path / "model.pth")


def test_safetensors_metadata(tmp_path, tiny):
    sd, path = dict(tiny.state_dict()), tmp_path / "model.safetensors"
    for metadata, message in [
        (None, "metadata has no 'spec'"),
        ({"spec": "{"}, r"model\.safetensors: 'spec' of its metadata is not JSON"),
        ({"spec": json.dumps(tiny.spec), "data_norm": "]"}, "'data_norm' of its metadata is not JSON"),
        ({"spec": "[1]"}, "spec must be a dict"),
        ({"spec": "__import__('os')"}, r"model\.safetensors: "),
        ({"spec": "[" * 100_000}, r"model\.safetensors: 'spec' of its metadata is not JSON"),
        ({"spec": json.dumps(tiny.spec), "data_norm": "3"}, "data_norm must be"),
        ({"spec": json.dumps({"name": "liif", "args": {"encoder_spec": tiny.spec}})}, r"model\.safetensors: "),
    ]:
        save_file(sd, path, metadata)
        with pytest.raises(ModelFileError, match=message):
            load_model(path)
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(ModelFileError, match="not a readable safetensors file"):
        load_model(path)


TRACE = "liif_fast.metadata_version"


@pytest.mark.parametrize(
    ("change", "traced"),
    [
        ({}, False),
        ({"feat_unfold": False, "cell_decode": False}, False),  # the shape of the first layer shows these
        ({"residual": "bilinear"}, True),
        ({"local_ensemble": False}, True),
        ({"res_scale": 0.1}, True),
        ({"data_norm": {"inp": HALF, "gt": {"sub": [0.0], "div": [1.0]}}}, True),
    ],
)
def test_dropped_metadata_is_noticed(tmp_path, tiny_spec, change, traced):
    """A reader that finds only the tensors refuses a file only if the image would be another one."""
    args = {key: value for key, value in change.items() if key not in ("res_scale", "data_norm")}
    spec = tiny_spec(**args)
    shown = tiny_spec(**{key: value for key, value in args.items() if key in ("feat_unfold", "cell_decode")})
    spec["args"]["encoder_spec"]["args"] |= {key: change[key] for key in change if key == "res_scale"}
    model, path = models.make(spec), tmp_path / "model.safetensors"
    model.data_norm = change.get("data_norm", {"inp": HALF, "gt": HALF})
    save_model(model, path)
    tensors = load_file(path)
    assert (TRACE in tensors) == traced
    assert tensors.keys() - {TRACE} == model.state_dict().keys()
    reader = models.make(shown)
    if traced:
        with pytest.raises(RuntimeError, match=TRACE):
            reader.load_state_dict(tensors)
        with pytest.raises(ModelFileError, match=TRACE):
            load_model({"model": {**shown, "sd": tensors}})
    else:
        reader.load_state_dict(tensors)
    save_file(tensors, tmp_path / "converted.safetensors")
    with pytest.raises(ModelFileError, match="dropped the metadata"):
        load_model(tmp_path / "converted.safetensors")
    metadata = {"spec": json.dumps(model.spec), "data_norm": json.dumps(model.data_norm)}
    save_file(model.state_dict(), tmp_path / "old.safetensors", metadata)
    inp = torch.rand(1, 3, 5, 6)
    for file in (path, tmp_path / "old.safetensors"):
        again = load_model(file)
        assert torch.equal(again.render(inp, (9, 11)), model.eval().render(inp, (9, 11)))
        assert again.data_norm == model.data_norm
    save_file({**model.state_dict(), TRACE: torch.tensor([2.0])}, path, metadata)
    with pytest.raises(ModelFileError, match=r"reads \[1\.0\]: install a newer one"):
        load_model(path)


def test_the_shipped_model_is_not_misread():
    assert TRACE in load_file(catalogue.shipped_model())


def test_save_to_a_buffer_of_the_original(tiny):
    """A checkpoint in memory loads as a dict."""
    buffer = io.BytesIO()
    torch.save(tiny_checkpoint(tiny), buffer)
    buffer.seek(0)
    model = load_model(torch.load(buffer, weights_only=True))
    assert torch.equal(model.imnet.layers[0].weight, tiny.imnet.layers[0].weight)
