"""Load files of OpenMMLab's LIIF, the same network under other names."""

import re

import pytest
import torch

from liif_fast import load_model, models, save_model
from liif_fast.models import rdn

MEAN = [0.4488, 0.4371, 0.4040]
THEIRS = {
    r"encoder\.head\.0\.": "conv_first.",
    r"encoder\.body\.(\d+)\.body\.0\.": r"body.\1.conv1.",
    r"encoder\.body\.(\d+)\.body\.2\.": r"body.\1.conv2.",
    r"encoder\.body\.2\.": "conv_after_body.",
    r"encoder\.SFENet(\d)\.": r"sfe\1.",
    r"encoder\.RDBs\.(\d+)\.convs\.(\d+)\.conv\.0\.": r"rdbs.\1.layers.\2.conv.",
    r"encoder\.RDBs\.(\d+)\.LFF\.": r"rdbs.\1.lff.",
    r"encoder\.GFF\.": "gff.",
    r"imnet\.": "imnet.",
}


def build(encoder, channels=3, hidden=(8, 6), **switches):
    torch.manual_seed(0)
    imnet = {"name": "mlp", "args": {"out_dim": channels, "hidden_list": list(hidden)}}
    args = {"encoder_spec": {**encoder, "args": encoder["args"] | {"n_colors": channels}}, "imnet_spec": imnet}
    return models.make({"name": "liif", "args": args | switches}).eval()


def theirs(model):
    """Return a file as mmagic writes it, with the names of its model's page."""
    state = {"step_counter": torch.zeros(1), "data_preprocessor.mean": torch.zeros(3, 1, 1)}
    for key, value in model.state_dict().items():
        if "_mean." in key:
            continue
        found = [re.sub(f"^{own}", name, key) for own, name in THEIRS.items() if re.match(own, key)]
        assert len(found) == 1, key
        state[f"generator.{found[0]}"] = value
    return {"meta": {"mmedit_version": "0.8.0"}, "state_dict": state}


EDSR = {"name": "edsr-baseline", "args": {"no_upsampling": True, "n_resblocks": 2, "n_feats": 5}}
RDN = {"name": "rdn", "args": {"no_upsampling": True, "G0": 6, "RDNconfig": "A"}}


@pytest.fixture(autouse=True)
def small_rdn(monkeypatch):
    monkeypatch.setitem(rdn.CONFIGS, "A", (3, 2, 4))


@pytest.mark.parametrize("encoder", [EDSR, RDN], ids=["edsr", "rdn"])
@pytest.mark.parametrize("unfold", [True, False])
@pytest.mark.parametrize("cell", [True, False])
def test_names_arguments_and_norm(encoder, unfold, cell, tmp_path):
    model = build(encoder, feat_unfold=unfold, cell_decode=cell)
    torch.save(theirs(model), tmp_path / "theirs.pth")
    loaded = load_model(tmp_path / "theirs.pth")
    assert loaded.data_norm == {part: {"sub": MEAN, "div": [1.0, 1.0, 1.0]} for part in ("inp", "gt")}
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    image = torch.rand(1, 3, 6, 7)
    with torch.no_grad():
        mean = torch.tensor(MEAN)[:, None, None]
        expected = model.render(image - mean, (9, 13)) + mean
        torch.testing.assert_close(loaded.predict(image, (9, 13)), expected, rtol=0, atol=1e-6)
    save_model(loaded, tmp_path / "ours.safetensors")
    assert load_model(tmp_path / "ours.safetensors").data_norm == loaded.data_norm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.update({"generator.imnet_k.layers.0.weight": torch.zeros(1)}),
            r"it has generator\.imnet_k",
        ),
        (lambda state: state.pop("generator.imnet.layers.0.weight"), r"generator\.imnet\.layers\.0\.weight is missing"),
        (lambda state: state.pop("generator.conv_after_body.bias"), r"'encoder\.body\.2\.bias' is missing"),
        (lambda state: state.update({"generator.body.1.conv1.bias": torch.zeros(4)}), r"has shape \[4\]"),
        (lambda state: state.update({"generator.body.1.conv1.bias": "x"}), "must map names to tensors"),
        (lambda state: state.pop("generator.conv_first.weight"), r"generator\.conv_first\.weight is missing"),
        (lambda state: state.update({"generator.imnet.layers.3.bias": torch.zeros(4)}), "imnet"),
        (lambda state: state.update({"generator.body.900000.conv1.bias": torch.zeros(4)}), "more tensors"),
    ],
)
def test_other_files_are_refused(change, message):
    content = theirs(build(EDSR))
    change(content["state_dict"])
    with pytest.raises(models.ModelFileError, match=message) as caught:
        load_model(content)
    assert "\n" not in str(caught.value)


def test_an_unknown_rdn_is_refused(monkeypatch):
    content = theirs(build(RDN))
    monkeypatch.setitem(rdn.CONFIGS, "A", (20, 6, 32))
    with pytest.raises(models.ModelFileError, match=r"RDN must have .* got \(3, 2, 4\)"):
        load_model(content)
