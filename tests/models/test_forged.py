"""Forged and damaged model files: nothing in them runs, and what is wrong is named."""

import os
import pickle
import zipfile

import pytest
import torch

from liif_fast import load_model, save_model
from liif_fast.models import ModelFileError

from .test_checkpoint import ENCODER, tiny, tiny_checkpoint

__all__ = ["tiny"]  # fixtures


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("form", ["zip", "legacy", "raw"])
def test_pickled_code_does_not_run(tmp_path, tiny, form):
    target, path = tmp_path / "ran", tmp_path / "model.pth"
    content = {"model": {**tiny_checkpoint(tiny)["model"], "evil": Malicious(str(target))}}
    if form == "raw":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    reason = "not a readable" if form == "raw" else r"holds (posix|nt)\.mkdir, expected only tensors"
    with pytest.raises(ModelFileError, match=rf"model\.pth: {reason}"):
        load_model(path)
    assert not target.exists()


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)


def test_damaged_files(tmp_path, tiny):
    save_model(tiny, tmp_path / "good.pth")
    save_model(tiny, tmp_path / "good.safetensors")
    for suffix in (".pth", ".safetensors"):
        good = (tmp_path / f"good{suffix}").read_bytes()
        bad = tmp_path / f"bad{suffix}"
        for data in (
            b"",
            b"\0",
            b"not a model",
            good[:100],
            good[: len(good) // 2],
            good[:-10],
            b"\xff" * 1000,
            good[8:],
        ):
            bad.write_bytes(data)
            with pytest.raises(ModelFileError, match=r"bad\.\w+: not a readable"):
                load_model(bad)
    zip_bomb(tmp_path / "bomb.pth")
    with pytest.raises(ModelFileError, match="more than its own size"):
        load_model(tmp_path / "bomb.pth")
    with pytest.raises(OSError, match="none"):
        load_model(tmp_path / "none.pth")
    with pytest.raises(OSError, match=str(tmp_path)):
        load_model(tmp_path)


def change(checkpoint, path, value):
    part = checkpoint
    for key in path[:-1]:
        part = part[key]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value


SD = ("model", "sd")


ARGS = ("model", "args")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model",), [1], "'model' must be a dict"),
        (("model", "name"), None, "no 'name' in the model"),
        (("model", "args"), None, "no 'args' in the model"),
        (("model", "sd"), None, "no 'sd' in the model"),
        (("model", "sd"), [1], "'sd' must be a dict of tensors"),
        (("model", "name"), "LIIF", r"spec\.name: unknown name 'LIIF' \(known: edsr"),
        (("model", "args"), [1], r"spec\.args: expected a mapping"),
        ((*ARGS, "depth"), 3, r"unknown key 'depth' \(liif takes encoder_spec"),
        ((*ARGS, "encoder_spec"), None, r"'encoder_spec' is missing \(liif needs it"),
        ((*ARGS, "encoder_spec"), {"name": "liif", "args": {"encoder_spec": ENCODER}}, "model.pth|checkpoint"),
        ((*ARGS, "encoder_spec", "args", "n_feats"), "4", r"args\.n_feats: expected int, got '4'"),
        ((*ARGS, "encoder_spec", "args", "n_feats"), 5, "has shape"),
        ((*ARGS, "encoder_spec", "args", "n_feats"), 10**6, "has shape"),
        ((*ARGS, "encoder_spec", "args", "n_feats"), 10**12, "checkpoint: "),
        ((*ARGS, "encoder_spec", "args", "n_feats"), -1, "checkpoint: "),
        ((*ARGS, "encoder_spec", "args", "n_resblocks"), 10**9, "more tensors than the 18"),
        ((*ARGS, "encoder_spec", "args", "n_resblocks"), 2, "'encoder.body.1.body.0.weight' is missing"),
        (
            (*ARGS, "imnet_spec", "args", "hidden_list"),
            "abc",
            r"hidden_list: expected list of int, got 'abc'",
        ),
        ((*ARGS, "imnet_spec", "args", "hidden_list"), [16.0, 16], r"hidden_list: expected list of int, got \[16"),
        ((*ARGS, "imnet_spec", "args", "hidden_list"), [16, 16, 16], "'imnet.layers.6.weight' is missing"),
        ((*ARGS, "imnet_spec"), {"name": "edsr", "args": {}}, r"unknown key 'in_dim' \(edsr takes"),
        ((*ARGS, "residual"), "bicubic", "residual must be None or 'bilinear'"),
        ((*ARGS, "extra"), torch.zeros(1), "spec must hold plain values only, got Tensor"),
        ((*SD, "encoder.head.0.weight"), None, "'encoder.head.0.weight' is missing"),
        ((*SD, "extra"), torch.zeros(1), "'extra' does not belong to the model"),
        (
            (*SD, "imnet.layers.0.bias"),
            torch.zeros(3),
            r"'imnet.layers.0.bias' has shape \[3\], the model needs \[16\]",
        ),
        ((*SD, "imnet.layers.0.bias"), [0.0] * 16, "must map names to tensors, got list"),
        (
            (*SD, "imnet.layers.0.bias"),
            torch.zeros(16, dtype=torch.int64),
            "is torch.int64, the model needs torch.float32",
        ),
        ((*SD, "imnet.layers.0.bias"), torch.zeros(16).to_sparse(), "dense tensor with content"),
        ((*SD, "imnet.layers.0.bias"), torch.zeros(16, device="meta"), "dense tensor with content"),
        (("data_norm",), [0.5], "data_norm must be a mapping"),
        (("data_norm",), {"inp": {"sub": ["0"]}}, "must be one number or three"),
        (("data_norm",), {"inp": {"sub": [0.5, 0.5]}}, "must be one number or three"),
        (("data_norm",), {"gt": {"div": [0]}}, "must not be 0"),
    ],
)
def test_wrong_contents(tiny, path, value, message):
    checkpoint = pickle.loads(pickle.dumps(tiny_checkpoint(tiny)))
    change(checkpoint, path, value)
    with pytest.raises(ModelFileError, match=message):
        load_model(checkpoint)


def test_a_file_that_holds_something_else(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelFileError, match="holds list, expected the dict"):
        load_model(tmp_path / "list.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(ModelFileError, match="holds Tensor"):
        load_model(tmp_path / "tensor.pth")


def test_tensors_larger_than_the_file(tmp_path, tiny):
    """Strides of zero let a few bytes claim a terabyte, with a spec that agrees."""
    checkpoint = tiny_checkpoint(tiny)
    width = 10**6
    sd = checkpoint["model"]["sd"]
    sd["imnet.layers.0.weight"] = torch.zeros(1).expand(width, 40)
    sd["imnet.layers.0.bias"] = torch.zeros(1).expand(width)
    sd["imnet.layers.2.weight"] = torch.zeros(1).expand(width, width)
    sd["imnet.layers.2.bias"] = torch.zeros(1).expand(width)
    sd["imnet.layers.4.weight"] = torch.zeros(1).expand(3, width)
    checkpoint["model"]["args"]["imnet_spec"]["args"]["hidden_list"] = [width, width]
    torch.save(checkpoint, tmp_path / "model.pth")
    with pytest.raises(ModelFileError, match="claim more bytes than the file has"):
        load_model(tmp_path / "model.pth")
