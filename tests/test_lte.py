"""Compare the example LTE, made of public pieces, with a plain LTE, corner by corner."""

import copy
import importlib.util
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import liif_fast
from liif_fast import load_model, make_cell, make_coord, models, save_model, upscale

EXAMPLE = Path(liif_fast.__file__).parents[1] / "examples" / "lte.py"
pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="the examples are in the source tree only")


@pytest.fixture(scope="module")
def lte():
    spec = importlib.util.spec_from_file_location("lte", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(lte):
    """Return a small LTE with random weights, whose output depends on every part."""
    torch.manual_seed(0)
    spec = copy.deepcopy(lte.SPEC)
    spec["args"]["encoder_spec"]["args"] |= {"n_resblocks": 1, "n_feats": 6}
    spec["args"] |= {"imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [12, 12]}}, "hidden_dim": 10}
    return models.make(spec)


def plain(model, inp, coord, cell):
    """Compute LTE by its paper (section 3), one corner after the other, nearest latents by grid_sample."""
    feat = model.encoder(inp)
    amplitudes, frequencies = model.coef(feat), model.freq(feat)
    n = torch.tensor(feat.shape[2:], dtype=torch.float32)
    centres = make_coord(feat.shape[2:]).T.unflatten(1, feat.shape[2:])[None].expand(len(inp), -1, -1, -1)
    predictions, areas = [], []
    for row in (-1, 1):
        for column in (-1, 1):
            moved = (coord + torch.tensor([row, column]) / n + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6)
            amplitude, frequency, centre = (
                F.grid_sample(x, moved.flip(-1)[:, None], mode="nearest", align_corners=False)[:, :, 0].transpose(1, 2)
                for x in (amplitudes, frequencies, centres)
            )
            rel = (coord - centre) * n
            waves = frequency[..., 0::2] * rel[..., :1] + frequency[..., 1::2] * rel[..., 1:]
            waves = waves + F.linear(cell * n, model.phase.weight)
            x = amplitude * torch.cat((torch.cos(math.pi * waves), torch.sin(math.pi * waves)), -1)
            predictions.append(model.imnet(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
            areas.append((rel[..., 0] * rel[..., 1]).abs() + 1e-9)
    out = sum(p * (a / sum(areas))[..., None] for p, a in zip(predictions, areas[::-1], strict=True))
    base = F.grid_sample(inp, coord.flip(-1)[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return out + base[:, :, 0].transpose(1, 2)


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    coord = torch.rand(2, 50, 2, generator=generator) * 2 - 1
    cell = torch.rand(2, 50, 2, generator=generator) / 10 + 0.01
    return torch.rand(2, 3, 7, 9, generator=generator) * 2 - 1, coord, cell


def test_output_and_gradients_are_those_of_the_plain_form(model):
    inp, coord, cell = batch()
    grad = torch.randn(2, 50, 3)
    used = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    results = []
    for forward in (model, lambda *args: plain(model, *args)):
        out = forward(inp, coord, cell)
        results.append((out, torch.autograd.grad(out, list(used.values()), grad)))
    (out, grads), (expected, expected_grads) = results
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert {"coef.weight", "freq.bias", "phase.weight", "imnet.layers.0.weight", "encoder.head.0.weight"} <= used.keys()
    for name, value, wanted in zip(used, grads, expected_grads, strict=True):
        assert wanted.abs().max() > 0, name
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item(), msg=name)


def test_a_rendered_image_is_its_queries(model):
    inp, size = batch()[0], (23, 31)
    with torch.inference_mode():
        expected = plain(model, inp, make_coord(size).expand(2, -1, -1), make_cell(size).expand(2, -1, -1))
        got = model.render(inp, size)
        region = model.render(inp, size, region=(5, 7, 8, 9))
    torch.testing.assert_close(got, expected.transpose(1, 2).unflatten(2, size), rtol=0, atol=1e-5)
    torch.testing.assert_close(region, got[:, :, 5:13, 7:16], rtol=0, atol=1e-5)


def test_maps_are_those_of_the_image_at_hand(model):
    with torch.no_grad():
        (first, coord, cell), (second, _, _) = batch(1), batch(2)
        for inp in (first, second, first):
            torch.testing.assert_close(model(inp, coord, cell), plain(model, inp, coord, cell), rtol=0, atol=1e-5)
        assert copy.deepcopy(model).kept is None


def test_names_are_those_of_lte(lte):
    shapes = {
        key: list(value.shape) for key, value in models.make(lte.SPEC).state_dict().items() if "encoder" not in key
    }
    assert shapes["coef.weight"] == shapes["freq.weight"] == [256, 64, 3, 3]
    assert shapes["phase.weight"] == [128, 2]
    assert [shapes[f"imnet.layers.{i}.weight"] for i in (0, 2, 4, 6)] == [[256, 256]] * 3 + [[3, 256]]
    assert shapes.keys() - {"coef.weight", "freq.weight", "phase.weight"} == {"coef.bias", "freq.bias"} | {
        f"imnet.layers.{i}.{kind}" for i in (0, 2, 4, 6) for kind in ("weight", "bias")
    }


def test_files_and_upscaling_know_it(model, tmp_path):
    save_model(model, tmp_path / "lte.safetensors")
    loaded = load_model(tmp_path / "lte.safetensors")
    inp, coord, cell = batch()
    assert torch.equal(loaded(inp, coord, cell), model.eval()(inp, coord, cell))
    picture = (torch.rand(8, 10, 3) * 255).to(torch.uint8).numpy()
    expected = loaded.predict(torch.from_numpy(picture / 255).float().permute(2, 0, 1)[None], (20, 25))[0]
    difference = upscale(picture, loaded, scale=2.5) - expected.permute(1, 2, 0).clamp(0, 1).numpy() * 255
    assert abs(difference).max() < 0.51


def test_it_runs(lte, capsys):
    lte.main()
    assert "parameters; (1, 3, 89, 118)" in capsys.readouterr().out
