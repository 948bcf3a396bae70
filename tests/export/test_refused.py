"""Models without a graph, or without one in half precision, are refused; a file is written whole or not at all."""

import sys
from typing import ClassVar

import pytest
import torch
from torch import nn

from liif_fast import ILN, MetaSR, export, export_onnx, models, save_model
from liif_fast.cli import main

from .test_export import EDSR, build

pytestmark = pytest.mark.xdist_group("export")


class Bent(nn.Sequential):
    """Compute more than the chain of layers."""

    def forward(self, x):
        return super().forward(x) + 1


def bent():
    model = build()
    model.imnet = Bent(nn.Linear(40, 3))
    return model


def hooked():
    model = build()
    model.imnet.layers[0].register_forward_hook(lambda *_: None)
    return model


def clipping():
    model = build()
    model.clips_cell_above = 4.0
    return model


LIDAR = {"name": "liif_lidar", "args": {"hidden_list": [8]}}


REFUSED = [
    (lambda: MetaSR(EDSR), TypeError, "got a MetaSR, which predicts a matrix for every query"),
    (lambda: ILN(d=1, h=1), TypeError, "got a ILN, which attends over the corners"),
    (lambda: models.make(LIDAR), TypeError, "got a LidarLIIF, which reads range images"),
    (lambda: nn.Conv2d(3, 3, 1), TypeError, "got a Conv2d, which computes something else"),
    (bent, ValueError, "has a Bent as imnet, expected Linear and ReLU in turn"),
    (hooked, ValueError, "expected Linear and ReLU in turn without hooks"),
    (lambda: models.make({"name": "liif", "args": {"encoder_spec": EDSR}}), ValueError, "has no imnet"),
    (clipping, ValueError, r"has clips_cell_above=4\.0, expected None"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_models_without_a_graph_are_refused(make, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_onnx(make(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_wrong_arguments(tmp_path, monkeypatch, capsys):
    model = build()
    with pytest.raises(ValueError, match=r"path must end in \.onnx, got 'net\.pt'"):
        export_onnx(model, "net.pt")
    with pytest.raises(ValueError, match="form must be one of whole, parts, onnxruntime-only, got 'half'"):
        export_onnx(model, "net.onnx", form="half")
    with pytest.raises(ValueError, match=r"licence must be text in UTF-8, got 'M\\udcffT'"):
        export_onnx(model, "net.onnx", licence="M\udcffT")
    with pytest.raises(OSError, match="does not exist"):
        export_onnx(model, tmp_path / "none" / "net.onnx")
    assert main(["export", "iln-small-streets", str(tmp_path / "net.onnx")]) == 1
    assert "iln-small-streets.safetensors: model must be a LIIF, got a ILN" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"export needs the package onnxscript: pip install 'liif-fast\[onnx\]'"):
        export_onnx(model, tmp_path / "net.onnx")


@pytest.fixture
def untraced(monkeypatch):
    """Replace the exporter; every graph has the same content."""
    monkeypatch.setattr(export, "_trace", lambda *_: b"graph")


@pytest.mark.parametrize("factor", [1e6, 1e-7])
def test_weights_that_half_precision_cannot_hold(factor, untraced, tmp_path):
    model = build(hidden=(8,))
    with torch.no_grad():
        for parameter in model.imnet.layers[0].parameters():
            parameter *= factor
        model.imnet.layers[2].weight /= factor
    with pytest.raises(ValueError, match=r"image differs from the model's by .* export it without half"):
        export_onnx(model, tmp_path / "net.onnx", half=True)
    assert not list(tmp_path.iterdir())
    export_onnx(model, tmp_path / "net.onnx")


class Doubling(nn.Module):
    """Enlarge without saying so."""

    out_dim = 3

    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=2)


def test_an_encoder_with_other_features_than_it_says(untraced, tmp_path):
    model = build(hidden=())
    model.imnet = models.make({"name": "mlp", "args": {"in_dim": 31, "out_dim": 3, "hidden_list": []}})
    model.encoder = Doubling()
    with pytest.raises(ValueError, match="its encoder may give other than 1 features per pixel"):
        export_onnx(model, tmp_path / "net.onnx")
    model.encoder.enlargement = 2
    export_onnx(model, tmp_path / "net.onnx")


def test_both_parts_are_written_or_neither(monkeypatch, tmp_path):
    written = iter((b"new", None))  # the second has no bytes to write
    monkeypatch.setattr(export, "_trace", lambda *_: next(written))
    paths = [tmp_path / f"net-{part}.onnx" for part in ("encoder", "decoder")]
    for path in paths:
        path.write_bytes(b"old")
    with pytest.raises(TypeError):
        export_onnx(build(), tmp_path / "net.onnx", form="parts")
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir(), reverse=True)] == [b"old", b"old"]


def test_a_file_under_the_name_of_another_model(untraced, monkeypatch, tmp_path, capsys):
    """It is refused, because it would get that model's licence."""
    monkeypatch.setenv("LIIF_FAST_MODELS", str(tmp_path))
    save_model(build(), tmp_path / "rdn-liif.pth")
    assert main(["export", "rdn-liif", str(tmp_path / "net.onnx")]) == 1
    assert "rdn-liif.pth: is not RDN-LIIF" in capsys.readouterr().err
    assert not (tmp_path / "net.onnx").exists()


class Undecided(nn.Module):
    """Resist tracing by torch.export."""

    out_dim = 3

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Stale(nn.Module):
    """Depend on a value that a trace takes for a constant."""

    out_dim = 3
    calls: ClassVar = []

    def forward(self, x):
        self.calls.append(0)
        return x * len(self.calls)


@pytest.mark.parametrize("encoder", [Undecided, Stale])
def test_an_encoder_that_cannot_be_traced_for_every_size(encoder, tmp_path):
    model = build(hidden=())
    model.imnet = models.make({"name": "mlp", "args": {"in_dim": 31, "out_dim": 3, "hidden_list": []}})
    model.encoder = encoder()
    with pytest.raises(ValueError, match=f"as ONNX for every size, because its {encoder.__name__} cannot be traced so"):
        export_onnx(model, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_the_exporter_of_pytorch_points_to_the_command(tmp_path):
    inputs = torch.rand(1, 3, 5, 6), torch.zeros(1, 4, 2), torch.ones(1, 4, 2)
    with pytest.raises(Exception, match=r"`liif-fast export MODEL OUT\.onnx` or liif_fast\.export_onnx"):
        torch.onnx.export(build(hidden=()), inputs, tmp_path / "net.onnx", verbose=False)
