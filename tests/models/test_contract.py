"""Upscaling, evaluation, verification and training follow a model's description of itself."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from liif_fast import make_cell, make_coord, models, upscale, upscale_file
from liif_fast.evaluation import evaluate, of_model
from liif_fast.models.base import FeatureModel
from liif_fast.models.norm import Norm
from liif_fast.train.objective import Objective
from liif_fast.upscaling import features, options
from liif_fast.verification import verify

NORM = {"inp": {"sub": [0.4], "div": [0.3]}, "gt": {"sub": [0.5], "div": [0.25]}}


def spec(channels=3, **encoder):
    args = {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True, "n_colors": channels, **encoder}
    imnet = {"name": "mlp", "args": {"out_dim": channels, "hidden_list": [8]}}
    return {"name": "liif", "args": {"encoder_spec": {"name": "edsr-baseline", "args": args}, "imnet_spec": imnet}}


def build(channels=3, residual="bilinear", **encoder):
    torch.manual_seed(0)
    described = spec(channels, **encoder)
    described["args"]["residual"] = residual
    model = models.make(described).eval()
    model.data_norm = NORM
    return model


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_prediction_is_the_formula_with_the_norm_around_it(channels):
    model, size = build(channels), (16, 21)
    image = torch.rand(2, channels, 7, 9)
    coord, cell = (make(size).expand(2, -1, 2) for make in (make_coord, make_cell))
    with torch.no_grad():
        expected = model((image - 0.4) / 0.3, coord, cell).transpose(1, 2).unflatten(2, size) * 0.25 + 0.5
    kept = image.clone()
    for tile in (None, 4):
        torch.testing.assert_close(model.predict(image, size, tile=tile), expected, rtol=0, atol=1e-6)
    other = model.predict(image, size, norm=Norm({**NORM, "gt": {"sub": [0.0], "div": [1.0]}}))
    torch.testing.assert_close(other * 0.25 + 0.5, expected, rtol=0, atol=1e-6)
    assert torch.equal(image, kept)
    assert model.feat is None
    assert model.inp is None


def test_what_the_models_say():
    model = build()
    assert (model.channels_in, model.channels_out, model.reads_input, model.renders_parts) == (3, 3, True, True)
    assert (model.receptive_radius, model.enlargement) == (4, 1)
    assert not build(residual=None).reads_input
    assert build(no_upsampling=False, scale=4).enlargement == 4
    meta = models.make({"name": "metasr", "args": {"encoder_spec": spec(2)["args"]["encoder_spec"]}})
    assert (meta.channels_in, meta.channels_out, meta.reads_input, meta.renders_parts) == (2, 2, False, False)
    for name in ("rdn", "rcan"):
        with torch.device("meta"):
            encoder = models.make({"name": name, "args": {"n_colors": 2, "scale": 2}})
        assert (encoder.channels_in, encoder.out_dim, encoder.enlargement) == (2, 2, 2)
    with torch.no_grad():
        assert meta(torch.rand(1, 2, 5, 6), make_coord((7, 8))[None], make_cell((7, 8))[None]).shape == (1, 56, 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_one_channel(dtype, tmp_path, monkeypatch):
    """A model of 1 channel takes gray, with and without alpha, from arrays and files; colours are refused."""
    monkeypatch.setattr(features, "MIN_TILE", 8)
    monkeypatch.setattr(options, "MIN_TILE", 8)
    model = build(1)
    wide = np.uint16 if dtype is np.float32 else dtype
    top = np.iinfo(wide).max
    pixels = noise(13, 19, dtype=wide)
    expected = model.predict(torch.from_numpy(pixels.astype(np.float32) / top)[None, None], (26, 38))[0, 0]
    expected = expected.clamp(0, 1).numpy()
    given, scale = (pixels, top) if dtype is wide else (pixels.astype(dtype) / dtype(top), 1)
    result = upscale(given, model, scale=2, tile=8)
    assert result.dtype == dtype
    assert np.abs(result.astype(float) - expected * scale).max() <= (0.6 if dtype is wide else 1e-5)
    assert np.array_equal(upscale(np.stack([given] * 3, -1), model, scale=2, tile=8)[..., 1], result)
    opaque = np.stack([given, np.full_like(given, scale)], -1)
    assert np.array_equal(upscale(opaque, model, scale=2, tile=8)[..., 0], result)
    with pytest.raises(ValueError, match="image must be gray, because the model has 1 channel, got RGB"):
        upscale(np.stack([given, given, given[::-1]], -1), model, scale=2)
    if dtype is wide:
        Image.fromarray(pixels).save(tmp_path / "in.png")
        upscale_file(tmp_path / "in.png", tmp_path / "out.png", model, scale=2, region=(3, 4, 20, 10), tile=8)
        with Image.open(tmp_path / "out.png") as out:
            assert np.abs(np.asarray(out).astype(int) - result[3:23, 4:14].astype(int)).max() <= 1


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_data_of_other_channels(channels):
    """No channel counts as alpha or gray, and their number must be the model's."""
    model = build(channels)
    data = np.random.default_rng(0).random((6, 7, channels), np.float32)
    data[..., 1] = data[..., 0]
    result = upscale(data, model, scale=3)
    expected = model.predict(torch.from_numpy(data).permute(2, 0, 1)[None], (18, 21))[0].clamp(0, 1)
    np.testing.assert_allclose(result, expected.permute(1, 2, 0).numpy(), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=rf"shape \[H, W, {channels}\] for this model, got \[6, 7, 1\]"):
        upscale(data[..., :1], model, scale=3)


def test_verification_of_one_channel(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(noise(40, 40, 3)).save(path)
    report = verify(build(1), path, 3, turns=1, names=("torch",))
    assert report.disagreements() == []
    assert len(report.rows) == 4
    with pytest.raises(ValueError, match="it has 2 channels"):
        verify(build(2), path, 3, turns=1)


class Halves(torch.utils.data.Dataset):
    """Return samples of one channel and their halves, as a user's wrapper may."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        high = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(index))
        return {
            "inp": nn.functional.avg_pool2d(high, 2),
            "coord": make_coord((16, 16)),
            "cell": make_cell((16, 16)),
            "gt": high.flatten(1).T,
        }


def test_evaluation_and_training_of_one_channel(tmp_path):
    model = build(1)
    scores = evaluate(of_model(model, NORM), Halves(), eval_type="benchmark-2", save=tmp_path)
    assert [score.size for score in scores] == [(16, 16)] * 2
    with Image.open(tmp_path / "0001.png") as saved:
        assert saved.mode == "L"
    batch = [{key: torch.stack([sample[key] for sample in (Halves()[0], Halves()[1])]) for key in Halves()[0]}]
    errors = Objective(model, NORM)(batch)
    assert errors.shape == (2,)
    errors.sum().backward()
    assert model.encoder.head[0].weight.grad.shape == (4, 1, 3, 3)
    assert Objective(model, NORM).images(model, batch)[0].shape == (2, 256, 1)


class Own(FeatureModel):
    """Add the input's nearest pixel and the features' mean, without inheriting from LIIF."""

    reads_input = True

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 3, 3, padding=1)

    def query_rgb(self, coord, cell=None):
        near = nn.functional.grid_sample(self.inp, coord.flip(-1)[:, None], mode="nearest", align_corners=False)
        return near[:, :, 0].mT + self.features().mean((2, 3))[:, None]


def test_a_model_of_ones_own_says_that_it_reads_the_input():
    torch.manual_seed(0)
    model = Own().eval()
    assert (model.channels_in, model.channels_out, model.receptive_radius, model.renders_parts) == (
        3,
        None,
        None,
        False,
    )
    pixels = noise(9, 11, 3)
    expected = model.predict(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, (18, 22))[0].clamp(0, 1) * 255
    assert np.abs(upscale(pixels, model, scale=2) - expected.permute(1, 2, 0).numpy()).max() <= 0.51


def test_a_class_that_renders_in_its_own_way_says_anew_what_it_makes():
    class Rendering(models.LIIF):
        def render_rgb(self, size, region=None, cell=None):
            return super().render_rgb(size, region, cell)[:, :1]

    class Saying(Rendering):
        channels_out = 1
        renders_parts = True

        def render_rgb(self, size, region=None, cell=None, place=None):
            return super().render_rgb(size, region, cell)

    class Inheriting(Saying):
        pass

    args = spec()["args"]
    assert (Rendering(**args).channels_out, Rendering(**args).renders_parts) == (None, False)
    for kind in (Saying, Inheriting):
        assert (kind(**args).channels_out, kind(**args).renders_parts) == (1, True)


def test_an_encoder_that_enlarges_must_say_so():
    class Doubling(nn.Module):
        receptive_radius, out_dim = 0, 4

        def forward(self, inp):
            return nn.functional.interpolate(inp[:, :1], scale_factor=2).expand(-1, 4, -1, -1)

    model = build(residual=None)
    model.encoder = Doubling()
    pixels = noise(8, 6, 3)
    with pytest.raises(RuntimeError, match=r"makes 16x12 features of 8x6 pixels: its attribute enlargement"):
        upscale(pixels, model, scale=2)
    model.encoder.enlargement = 2
    assert upscale(pixels, model, scale=2).shape == (16, 12, 3)
