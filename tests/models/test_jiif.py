"""Compare JIIF with its formula on grid_sample, and load its authors' files."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from liif_fast import JIIF, ModelFileError, load_model, make_coord, models, save_model, upscale
from liif_fast.models import jiif

FORMS = ["reference", "torch", "cpu"]


def build(dtype=torch.float32, **args):
    torch.manual_seed(0)
    spec = {"feat_dim": 6, "guide_dim": 5, "mlp_dim": [9, 8], "n_resblocks": 1, **args}
    return models.make({"name": "jiif", "args": spec}).to(dtype).eval()


def inputs(dtype=torch.float32, shape=(5, 7), size=(18, 23)):
    """Return depth, image, reduced image, and coordinates on a grid, on ties and beyond the map."""
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, c, *s, generator=generator).to(dtype) for c, s in ((1, shape), (3, size), (3, shape))]
    ties = make_coord((2 * shape[0], 2 * shape[1]))
    away = torch.rand(60, 2, generator=generator) * 2.6 - 1.3
    return maps, torch.cat((make_coord(size), ties, away)).expand(2, -1, 2)


def look_up(maps, coord):
    return F.grid_sample(maps, coord.flip(-1)[:, None], mode="nearest", align_corners=False)[:, :, 0].mT


def formula(model, depth, image, lr_image, coord):
    """Compute the definition, corner by corner, with zeros outside; plan in coord's dtype."""
    feat, high, low = model.depth_encoder(depth), model.image_encoder(image), model.image_encoder(lr_image)
    shape = feat.shape[2:]
    centres = make_coord(shape).mT.unflatten(1, shape).expand(len(feat), -1, -1, -1)
    n, dtype, preds = torch.tensor(shape), feat.dtype, []
    guide = look_up(high, coord.to(dtype))
    for row in (-1, 1):
        for column in (-1, 1):
            moved = torch.stack((coord[..., 0] + row / shape[0], coord[..., 1] + column / shape[1]), -1)
            rel = ((coord - look_up(centres, moved)) * n).to(dtype)
            z, lower = look_up(feat, moved.to(dtype)), look_up(low, moved.to(dtype))
            x = torch.cat((z, guide, guide - lower, rel), -1)
            for number, layer in enumerate(model.imnet.layers[::2]):
                x = F.linear(F.relu(x) if number else x, layer.weight, layer.bias)
            preds.append(x)
    value, logit = torch.stack(preds, 2).unbind(-1)
    return (value * logit.softmax(-1)).sum(-1, keepdim=True)


def close(ours, expected, tolerance=1e-5):
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_output_and_gradients_are_those_of_the_formula(backend, dtype, tolerance):
    model, (maps, coord) = build(dtype), inputs(dtype)
    model.backend = backend
    base = torch.rand(2, coord.shape[1], 1, dtype=dtype)
    used = {key: value for key, value in model.named_parameters() if value.requires_grad}
    expected = formula(model, *maps, coord)
    out = model(*maps, coord, base)
    close(out - base, expected, tolerance)
    grads = (torch.autograd.grad(each.square().sum(), list(used.values())) for each in (out - base, expected))
    for key, ours, wanted in zip(used, *grads, strict=True):
        assert wanted.abs().max() > 0, key
        close(ours, wanted, 10 * tolerance)


@pytest.mark.parametrize("backend", FORMS)
def test_chunks_change_nothing(backend, monkeypatch):
    model, (maps, coord) = build(), inputs()
    model.backend = backend
    with torch.no_grad():
        model.gen_feat(*maps)
        expected = model.query(coord)
        monkeypatch.setattr(jiif, "CHUNK_QUERIES", 17)
        close(model.query(coord), expected, 1e-6)
        assert model.query(coord[:, :0]).shape == (2, 0, 1)


@pytest.mark.parametrize("backend", FORMS)
def test_hostile_input(backend):
    """One latent, no image; NaN in a latent or a coordinate reaches the queries that read it alone."""
    model = build()
    model.backend = backend
    with torch.no_grad():
        for maps, coord in (inputs(shape=(1, 1)), inputs(shape=(1, 9), size=(1, 1))):
            close(model(*maps, coord, torch.zeros(2, coord.shape[1], 1)), formula(model, *maps, coord))
        maps, coord = inputs()
        assert model(*(each[:0] for each in maps), coord[:0], torch.zeros(0, coord.shape[1], 1)).shape[0] == 0
        model.gen_feat(*maps)
        expected = model.query(coord)
        hurt = coord.clone()
        hurt[1, 3, 0] = torch.nan
        out = model.query(hurt)
        assert out[1, 3].isnan()
        assert out.isnan().sum() == 1
        model.feat[1, :, 2, 3] = torch.nan
        hit = model.query(coord).isnan()
        assert 0 < hit[1].sum() < coord.shape[1] / 2
        assert not hit[0].any()
        assert torch.equal(model.query(coord)[~hit], expected[~hit])


def test_a_changed_network_runs_as_it_is():
    model, (maps, coord) = build(), inputs()
    calls = []
    model.imnet.register_forward_hook(lambda module, args, out: calls.append(out.shape))
    with torch.no_grad():
        close(model(*maps, coord, torch.zeros(2, coord.shape[1], 1)), formula(model, *maps, coord))
        assert calls
        linear = build(mlp_dim=[])
        close(linear(*maps, coord, torch.zeros(2, coord.shape[1], 1)), formula(linear, *maps, coord))


def test_names_are_those_of_the_authors():
    """Names and the number of parameters equal those of the published models."""
    with torch.device("meta"):
        model = JIIF()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert sum(value.numel() for value in model.state_dict().values()) == 10_831_026
    assert shapes["image_encoder.head.0.weight"] == [128, 3, 3, 3]
    assert shapes["depth_encoder.head.0.weight"] == [128, 1, 3, 3]
    widths = [386, 1024, 512, 256, 128, 2]
    for number in range(5):
        assert shapes[f"imnet.layers.{2 * number}.weight"] == [widths[number + 1], widths[number]]


def test_files(tmp_path):
    model, (maps, coord) = build(), inputs()
    base = torch.zeros(2, coord.shape[1], 1)
    with torch.no_grad():
        expected = model(*maps, coord, base)
        torch.save({"epoch": 3, "model": model.state_dict()}, tmp_path / "authors.pth")
        save_model(model, tmp_path / "model.safetensors")
        save_model(model, tmp_path / "model.pth")
        for name in ("authors.pth", "model.safetensors", "model.pth"):
            loaded = load_model(tmp_path / name)
            assert loaded.spec == model.spec
            assert torch.equal(loaded(*maps, coord, base), expected)
    state = model.state_dict()
    for change, message in (
        ({"imnet.layers.0.weight": None}, "lacks imnet.layers.0.weight"),
        ({"imnet.layers.1000000000000.weight": torch.zeros(1, 1)}, "imnet.layers.1000000000000.weight"),
        ({"depth_encoder.body.1000000000000.bias": torch.zeros(1)}, "body.1.body.0.weight' is missing"),
        ({"depth_encoder.body.0.body.0.bias": None}, "depth_encoder.body.0.body.0.bias' is missing"),
        ({"further": torch.zeros(1)}, "'further' does not belong to the model"),
        ({"imnet.layers.2.weight": torch.zeros(8, 4)}, r"has shape \[8, 4\], the model needs \[8, 9\]"),
    ):
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        with pytest.raises(ModelFileError, match=message):
            load_model({"model": changed})
    with pytest.raises(TypeError, match="model must be a model of liif_fast"):
        upscale(torch.zeros(4, 4, 3, dtype=torch.uint8).numpy(), model, scale=2)


def test_features_are_no_state():
    model, (maps, _) = build(), inputs()
    model.gen_feat(*maps)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.feat is None
        assert again.hr_guide is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": torch.zeros(2, 3, 5, 7)}, r"depth must have shape \[2, 1, height, width\], got \[2, 3, 5, 7\]"),
        ({"image": torch.zeros(1, 3, 18, 23)}, r"image must have shape \[2, 3, height, width\], got \[1, 3, 18, 23\]"),
        ({"image": torch.zeros(3, 18, 23)}, r"image must have shape \[B, C, H, W\]"),
        ({"lr_image": torch.zeros(2, 3, 5, 6)}, r"lr_image must have shape \[2, 3, h, w\] of depth"),
        ({"coord": torch.zeros(2, 4, 3)}, r"coord must have shape \[B, Q, 2\]"),
        ({"base": torch.zeros(2, 1, 1)}, r"base must have shape \[2, 4, 1\], got \[2, 1, 1\]"),
    ],
)
def test_bad_arguments(change, message):
    (depth, image, lr_image), _ = inputs()
    given = {"depth": depth, "image": image, "lr_image": lr_image, "coord": torch.zeros(2, 4, 2)}
    with pytest.raises(ValueError, match=message):
        build()(**{**given, "base": torch.zeros(2, 4, 1), **change})
    with pytest.raises(RuntimeError, match="call gen_feat"):
        build().query(torch.zeros(2, 4, 2))
