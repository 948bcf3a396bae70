"""Compare LTE and LTE+ with an independent plain form and with numbers from the authors' code."""

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from liif_fast import accelerate, load_model, make_cell, make_coord, models, save_model, upscale
from liif_fast.evaluation import of_model
from liif_fast.models.base import clipped_cell

GOLDEN = Path(__file__).parent / "golden" / "lte.npz"
NAMES = ["lte", "lte-fast"]


def spec(name, blocks=1, feats=6, hidden=12, layers=2):
    encoder = {"name": "edsr-baseline", "args": {"no_upsampling": True, "n_resblocks": blocks, "n_feats": feats}}
    own = {"num_layer": layers, "out_dim": 3}
    if name == "lte":
        own = {"imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [hidden] * layers}}}
    return {"name": name, "args": {"encoder_spec": encoder, "hidden_dim": hidden, **own}}


def build(name, **options):
    torch.manual_seed(0)
    return models.make(spec(name, **options)).eval()


def nearest(maps, moved):
    out = F.grid_sample(maps, moved.flip(-1)[:, None], mode="nearest", align_corners=False)
    return out[:, :, 0].transpose(1, 2)


def plain(model, feat, inp, coord, cell):
    """Compute the paper's section 3 for both models, corner by corner, with nearest latents by grid_sample."""
    amplitudes, frequencies = model.coef(feat), model.freq(feat)
    fast = hasattr(model, "layers")
    n = torch.tensor(feat.shape[2:], dtype=torch.float32)
    centres = make_coord(feat.shape[2:]).T.unflatten(1, feat.shape[2:])[None].expand(len(feat), -1, -1, -1)
    predictions, areas = [], []
    for row in (-1, 1):
        for column in (-1, 1):
            moved = (coord + torch.tensor([row, column]) / n + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6)
            amplitude, frequency, centre = (nearest(maps, moved) for maps in (amplitudes, frequencies, centres))
            rel = (coord - centre) * n
            rows, columns = frequency.chunk(2, -1) if fast else (frequency[..., 0::2], frequency[..., 1::2])
            waves = rows * rel[..., :1] + columns * rel[..., 1:] + F.linear(cell * n, model.phase.weight)
            x = amplitude * torch.cat((torch.cos(math.pi * waves), torch.sin(math.pi * waves)), -1)
            network = model.layers if fast else model.imnet.layers
            for number, layer in enumerate(network[::2]):
                x = F.linear(F.relu(x) if number else x, layer.weight.flatten(1), layer.bias)
            predictions.append(x)
            areas.append((rel[..., 0] * rel[..., 1]).abs() + 1e-9)
    out = sum(p * (a / sum(areas))[..., None] for p, a in zip(predictions, areas[::-1], strict=True))
    base = F.grid_sample(inp, coord.flip(-1)[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return out + base[:, :, 0].transpose(1, 2)


def batch(seed=1, shape=(7, 9)):
    generator = torch.Generator().manual_seed(seed)
    coord = torch.rand(2, 50, 2, generator=generator) * 2.2 - 1.1
    cell = torch.rand(2, 50, 2, generator=generator) / 10 + 0.01
    return torch.rand(2, 3, *shape, generator=generator) * 2 - 1, coord, cell


def close(ours, expected, tolerance=1e-5):
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def of_the_authors(golden, name, backend):
    """Return a model with their weights, which keeps their features, and their values."""
    values = {key.removeprefix(f"{name}/"): value for key, value in golden.items() if key.startswith(f"{name}/")}
    model = build(name, feats=16, hidden=32, layers=3)
    missing = model.load_state_dict({k[4:]: v for k, v in values.items() if k.startswith("par:")}, strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("encoder.") for key in missing.missing_keys)
    model.backend = backend
    model.keep(values["feat"], values["inp"])
    return model, values


def check_gradients_of_the_authors(model, values):
    out = model.query_rgb(values["coord"], values["cell"])
    close(out, values["out"])
    (out * values["grad_out"]).sum().backward()
    parameters = dict(model.named_parameters())
    wanted = [key for key in values if key.startswith("grad:")]
    assert len(wanted) == 13
    for key in wanted:
        close(parameters[key[5:]].grad, values[key], 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["reference", "torch", "auto"])
def test_numbers_of_the_authors_code(golden, name, backend):
    model, values, size = *of_the_authors(golden, name, backend), (33, 42)
    with torch.no_grad():
        coord, cell = make_coord(size).expand(2, -1, -1), 2 * make_cell(size).expand(2, -1, -1)
        close(model.query_rgb(coord, cell), values["out_33x42_cell2"])
        rendered = model.render_rgb(size, cell=(4 / 33, 4 / 42))
        close(rendered.flatten(2).mT, values["out_33x42_cell2"])
    if name == "lte":
        check_gradients_of_the_authors(model, values)


@pytest.mark.parametrize("name", NAMES)
def test_output_and_gradients_are_those_of_the_plain_form(name):
    model, (inp, coord, cell) = build(name), batch()
    grad = torch.randn(2, 50, 3)
    used = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    results = []
    for forward in (model, lambda *args: plain(model, model.encoder(inp), *args)):
        out = forward(inp, coord, cell)
        results.append((out, torch.autograd.grad(out, list(used.values()), grad)))
    (out, grads), (expected, expected_grads) = results
    close(out, expected)
    for key, value, wanted in zip(used, grads, expected_grads, strict=True):
        assert wanted.abs().max() > 0, key
        close(value, wanted, 2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_rendered_image_is_its_queries(name, monkeypatch):
    monkeypatch.setattr("liif_fast.models.base.STRIP_QUERIES", 300)
    model, (inp, _, _), size = build(name), batch(shape=(31, 17)), (85, 47)
    with torch.inference_mode():
        feat = model.gen_feat(inp)
        coord, cell = make_coord(size).expand(2, -1, -1), make_cell(size).expand(2, -1, -1)
        expected = plain(model, feat, inp, coord, cell).mT.unflatten(2, size)
        close(model.render_rgb(size), expected)
        close(model.render_rgb(size, (50, 7, 8, 9)), expected[:, :, 50:58, 7:16])
        part, place = (11.3, 2.5, 7.25, 9.0), (5, 0, 31, 17)  # of the input's pixels; of its features
        coord = make_coord((20, 30), extent=part, of=(31, 17)).expand(2, -1, -1)
        cell = torch.tensor([2 * 7.25 / 31 / 20, 2 * 9.0 / 17 / 30]).expand(coord.shape)
        over = plain(model, feat, inp, coord, cell).mT.unflatten(2, (20, 30))
        close(model.render_rgb((20, 30), extent=part), over)
        model.feat = feat[:, :, 5:25]
        close(model.render_rgb((20, 30), (3, 4, 10, 9), place=place, extent=part), over[:, :, 3:13, 4:13])
        model.feat = feat[:, :, 10:]
        close(model.render_rgb(size, (50, 0, 35, 47), place=(10, 0, 31, 17)), expected[:, :, 50:])
        with pytest.raises(ValueError, match="feat must hold the latents that the region reads"):
            model.render_rgb(size, (20, 0, 35, 47), place=(10, 0, 31, 17))
        assert model.render_rgb(size, (0, 0, 0, 5), place=(10, 0, 31, 17)).shape == (2, 3, 0, 5)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_network_runs_as_it_is(name):
    model, (inp, coord, cell) = build(name), batch()
    expected = model(inp, coord, cell)
    network = model.imnet.layers if name == "lte" else model.layers
    network[1].register_forward_hook(lambda module, args, out: out)
    assert model.network()[1] is None
    close(model(inp, coord, cell), expected)
    size = (11, 13)
    close(model.render(inp, size), plain(model, model.encoder(inp), inp, *grid(size)).mT.unflatten(2, size))
    pixels = np.random.default_rng(0).random((9, 8, 3), np.float32)
    assert np.isfinite(upscale(pixels, model, scale=2)).all()
    with pytest.raises(ValueError, match="place needs a network that runs fused"):
        model.render_rgb(size, place=(0, 0, 7, 9))
    network[2] = nn.Identity()
    assert model.channels_out is None


def grid(size):
    return make_coord(size).expand(2, -1, -1), make_cell(size).expand(2, -1, -1)


def test_waves_are_those_of_the_image_at_hand():
    model = build("lte")
    with torch.no_grad():
        (first, coord, cell), (second, _, _) = batch(1), batch(2)
        for inp in (first, second, first):
            close(model(inp, coord, cell), plain(model, model.encoder(inp), inp, coord, cell))
        with torch.no_grad():
            model.freq.weight.add_(0.1)
        kept = model._kept()
        assert len(kept) == 0
        feat = model.gen_feat(inp)
        for _ in range(2):
            close(model.query_rgb(coord, cell), plain(model, feat, inp, coord, cell))
        del feat
        assert len(kept) == 1
        model.feat = None
        assert len(kept) == 0
        assert not copy.deepcopy(model)._kept()
        assert pickle.loads(pickle.dumps(model)).state_dict().keys() == model.state_dict().keys()


def test_one_model_as_both():
    """Only names and the order of frequencies differ."""
    model, fast = build("lte"), build("lte-fast")
    sd = model.state_dict()
    for key in ("freq.weight", "freq.bias"):
        sd[key] = torch.cat((sd[key][0::2], sd[key][1::2]))
    sd = {key.removeprefix("imnet."): value for key, value in sd.items()}
    sd = {
        key: value[..., None, None] if key.startswith("layers") and value.ndim == 2 else value
        for key, value in sd.items()
    }
    fast.load_state_dict(sd)
    with torch.no_grad():
        close(fast(*batch()), model(*batch()), 1e-6)


def test_names_are_those_of_the_authors():
    def shapes(name):
        with torch.device("meta"):
            model = models.make(spec(name, blocks=16, feats=64, hidden=256, layers=3))
        assert sum(p.numel() for p in model.parameters()) == 1_714_267
        return {key: list(value.shape) for key, value in model.state_dict().items() if "encoder" not in key}

    both = {"coef.weight": [256, 64, 3, 3], "coef.bias": [256], "phase.weight": [128, 2]}
    both |= {"freq.weight": [256, 64, 3, 3], "freq.bias": [256]}
    outs = {0: 256, 2: 256, 4: 256, 6: 3}
    biases = {f"layers.{i}.bias": [out] for i, out in outs.items()}
    expected = {f"imnet.{key}": value for key, value in biases.items()}
    assert shapes("lte") == both | expected | {f"imnet.layers.{i}.weight": [out, 256] for i, out in outs.items()}
    assert shapes("lte-fast") == both | biases | {f"layers.{i}.weight": [out, 256, 1, 1] for i, out in outs.items()}


@pytest.mark.parametrize("name", NAMES)
def test_files(name, tmp_path):
    model, queries = build(name), batch()
    with torch.no_grad():
        expected = model(*queries)
        for file in ("model.safetensors", "model.pth"):
            save_model(model, tmp_path / file)
            assert torch.equal(load_model(tmp_path / file)(*queries), expected)
        authors = {"model": {**spec(name), "sd": model.state_dict()}, "epoch": 3}
        torch.save(authors, tmp_path / "authors.pth")
        assert torch.equal(load_model(tmp_path / "authors.pth")(*queries), expected)
    del authors["model"]["sd"]["phase.weight"]
    with pytest.raises(ValueError, match=r"'phase\.weight' is missing"):
        load_model(authors)


def test_autocast_leaves_frequencies_alone():
    model, queries = build("lte"), batch()
    with torch.no_grad():
        expected = model(*queries)
        with torch.autocast("cpu", torch.bfloat16):
            feat = model.encoder(queries[0])
            model.keep(feat, queries[0])
            assert model.waves(feat).dtype == torch.float32
            out = model.query_rgb(*queries[1:])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_outputs_must_be_the_input_s_channels():
    described = spec("lte-fast")
    described["args"]["out_dim"] = 1
    model = models.make(described)
    for call in (lambda: model(*batch()), lambda: model.render(batch()[0], (9, 9))):
        with pytest.raises(ValueError, match="as many output channels as the input has, 3, got 1"):
            call()


@pytest.mark.parametrize(("name", "change"), [("lte", {"hidden_dim": 7}), ("lte-fast", {"num_layer": -1})])
def test_bad_arguments(name, change):
    described = spec(name)
    described["args"] |= change
    with pytest.raises(ValueError, match="must be"):
        models.make(described)


@pytest.mark.parametrize("scale", [2.5, 6])
def test_the_cell_stays_that_of_x4_beyond_it(scale):
    """This holds in predict, eval and upscale, also for regions; render takes the true cell."""
    model, shape = build("lte"), (12, 16)
    inp = batch(shape=shape)[0][:1]
    size = tuple(round(side * scale) for side in shape)
    coord, factor = make_coord(size)[None], max(scale / 4, 1)
    with torch.no_grad():
        feat = model.encoder(inp)
        true, clipped = (plain(model, feat, inp, coord, make_cell(size)[None] * each) for each in (1, factor))
        close(model.render(inp, size).flatten(2).mT, true)
    assert scale < 4 or (true - clipped).abs().max() > 1e-3
    assert clipped_cell(size, shape, 4) == pytest.approx([2 * factor / side for side in size])
    image = (clipped.mT.unflatten(2, size) / 2 + 0.5).clamp(0, 1)
    unit = inp / 2 + 0.5
    norm = model.data_norm
    for made in (
        model.predict(unit, size),
        *(of_model(model, norm, cell_clip=clip)(unit, size) for clip in (False, True)),
    ):
        torch.testing.assert_close(made.clamp(0, 1), image, rtol=0, atol=1e-5)
    array = unit[0].permute(1, 2, 0).numpy()
    result = upscale(array, model, scale=scale)
    np.testing.assert_allclose(result, image[0].permute(1, 2, 0), rtol=0, atol=1e-5)
    part = upscale(array, model, scale=scale, region=(3, 5, 20, 9))
    np.testing.assert_allclose(part, result[3:23, 5:14], rtol=0, atol=1e-6)


def test_large_images_in_parts(monkeypatch):
    """Rows of features are made and dropped, and the input is a part."""
    monkeypatch.setattr("liif_fast.upscaling.features.FEATURE_BYTES", 1)
    monkeypatch.setattr("liif_fast.upscaling.strips.STRIP_QUERIES", 600)
    model = build("lte-fast")
    pixels = np.random.default_rng(0).integers(0, 256, (150, 20, 3), np.uint8)
    whole = model.predict(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, (300, 40))[0].clamp(0, 1) * 255
    result = upscale(pixels, model, scale=2)
    assert np.abs(result - whole.permute(1, 2, 0).numpy()).max() <= 0.51


class PlainLTE(nn.Module):
    """Have the attributes of the authors' class, and compute the formula; `fast` queries are grids."""

    def __init__(self, name):
        super().__init__()
        ours = build(name)
        self.encoder, self.coef, self.freq, self.phase = ours.encoder, ours.coef, ours.freq, ours.phase
        if name == "lte":
            self.imnet = ours.imnet
        else:
            self.layers = ours.layers

    def gen_feat(self, inp):
        self.inp, self.feat = inp, self.encoder(inp)
        if hasattr(self, "imnet"):
            self.coeff, self.freqq = self.coef(self.feat), self.freq(self.feat)
        return self.feat

    def query_rgb(self, coord, cell=None):
        if hasattr(self, "imnet"):
            return plain(self, self.feat, self.inp, coord, cell)
        flat = coord.flatten(1, 2)
        out = plain(self, self.feat, self.inp, flat, cell[:, None].expand(flat.shape))
        return out.mT.unflatten(2, coord.shape[1:3])

    def forward(self, inp, coord, cell):
        self.gen_feat(inp)
        return self.query_rgb(coord, cell)


@pytest.mark.parametrize("name", NAMES)
def test_accelerate(name, monkeypatch):
    module, (inp, coord, cell) = PlainLTE(name), batch()
    if name == "lte-fast":
        coord, cell = coord.unflatten(1, (5, 10)), cell[:, 0]
    expected = module(inp, coord, cell)
    module = PlainLTE(name)
    module.feat = "untouched"
    assert accelerate(module) is module
    assert module.feat == "untouched"
    assert not hasattr(module, "inp")
    out = module(inp, coord, cell)
    assert out.shape == expected.shape
    close(out, expected)
    size = (13, 20)
    close(module.render(inp, size), plain(module, module.encoder(inp), inp, *grid(size)).mT.unflatten(2, size))
    again = pickle.loads(pickle.dumps(module))
    assert not hasattr(again, "feat")
    close(again(inp, coord, cell), expected)
    network = module.imnet.layers if name == "lte" else module.layers
    network[0].register_forward_hook(lambda *args: None)  # a hook wants the network called
    monkeypatch.delattr("liif_fast.functional.fourier_decode")
    close(module(inp, coord, cell), expected)


def test_accelerate_refuses_another_formula():
    class Different(PlainLTE):
        def query_rgb(self, coord, cell=None):
            return super().query_rgb(coord, cell * 1.1)

    module = Different("lte")
    with pytest.raises(ValueError, match="does not compute LTE"):
        accelerate(module)
    assert type(module) is Different
    del module.imnet
    with pytest.raises(TypeError, match="has no layers"):
        accelerate(module)
    module.layers = nn.Sequential(nn.Conv2d(12, 12, 3))
    with pytest.raises(TypeError, match=r"module\.layers must be a Sequential of 1x1 Conv2d"):
        accelerate(module)
