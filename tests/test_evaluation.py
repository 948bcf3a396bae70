import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from liif_fast import evaluation, make_cell, make_coord
from liif_fast.data import make
from liif_fast.evaluation import evaluate, markdown, of_model, summarise, to_json
from liif_fast.models import make as make_model

HALF = {part: {"sub": [0.5], "div": [0.5]} for part in ("inp", "gt")}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def halves(images):
    """Return a test set of whole images and their halves."""
    return make({"name": "sr-implicit-downsampled", "args": {"scale_min": 2}}, dataset=images, seed=0)


def plus(*offsets):
    """Return a prediction that knows the targets and adds an offset."""
    offsets = iter(offsets)

    def predict(inp, size):
        side = inp.repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert side.shape[2:] == size
        return side + next(offsets)

    return predict


FLAT = [np.full((20, 24, 3), value, np.uint8) for value in (51, 102)]


def test_by_hand():
    """Errors of 0.1 and 0.2 are 20 dB and 13.98 dB; batch 1 gives their mean, batch 2 the pooled error."""
    images = evaluate(plus(0.1, 0.2), halves(FLAT), with_ssim=False)
    values = [-10 * math.log10(0.01), -10 * math.log10(0.04)]
    assert [image.psnr for image in images] == pytest.approx(values, abs=1e-4)
    assert [(image.index, image.name, image.size) for image in images] == [(0, "0000", (20, 24)), (1, "0001", (20, 24))]
    single = summarise("t", "m", None, 1, images)
    assert single.psnr == pytest.approx(sum(values) / 2, abs=1e-4) == single.psnr_per_image
    pooled = summarise("t", "m", None, 2, images)
    assert pooled.psnr == pytest.approx(-10 * math.log10(0.025), abs=1e-4)
    assert pooled.psnr_per_image == single.psnr_per_image
    third = evaluate(plus(0.1), halves(FLAT), [1], with_ssim=False)
    weighted = summarise("t", "m", None, 2, [*images, *third])
    assert weighted.psnr == pytest.approx((2 * -10 * math.log10(0.025) + 20) / 3, abs=1e-4)


def test_clamped_and_not_rounded():
    (image,) = evaluate(plus(0.9001), halves(FLAT), [0], with_ssim=False)  # 0.2 + 0.9001, clamped to 1
    assert image.psnr == pytest.approx(-20 * math.log10(0.8), abs=1e-4)
    (image,) = evaluate(plus(0.001), halves(FLAT), [0], with_ssim=False)  # below half a level
    assert image.psnr == pytest.approx(60, abs=1e-2)


def test_borders_and_luma_are_those_of_the_eval_type():
    def wrong_border(shave):
        def predict(inp, size):
            pred = inp.repeat_interleave(2, 2).repeat_interleave(2, 3)
            error = torch.full_like(pred, 0.5)
            error[..., shave:-shave, shave:-shave] = torch.tensor([0.1, -0.2, 0.3]).view(3, 1, 1)
            return pred + error

        return predict

    flat = halves([np.full((40, 40, 3), 102, np.uint8)])
    (image,) = evaluate(wrong_border(8), flat, eval_type="div2k-2", with_ssim=False)
    assert image.psnr == pytest.approx(-10 * math.log10((0.01 + 0.04 + 0.09) / 3), abs=1e-4)
    (image,) = evaluate(wrong_border(2), flat, eval_type="benchmark-2", with_ssim=False)
    y = (0.1 * 65.738 - 0.2 * 129.057 + 0.3 * 25.064) / 256
    assert image.psnr == pytest.approx(-20 * math.log10(abs(y)), abs=1e-4)


def test_bicubic_is_that_of_pillow():
    photo = noise(37, 50)
    low = np.asarray(Image.fromarray(photo[:36, :48]).resize((16, 12), Image.Resampling.BICUBIC))
    wrapper = make({"name": "sr-implicit-paired"}, dataset=[(low, photo)], seed=0)
    (image,) = evaluate(evaluation.bicubic, wrapper)
    enlarged = np.asarray(Image.fromarray(low).resize((48, 36), Image.Resampling.BICUBIC))
    error = np.square(enlarged.astype(float) / 255 - photo[:36, :48] / 255).mean()
    assert image.psnr == pytest.approx(-10 * math.log10(error), abs=1e-4)
    assert image.size == (36, 48)
    assert 0 < image.ssim < 1


@pytest.fixture(scope="module", params=["liif", "metasr"])
def model(request):
    """Return a small network with random weights."""
    torch.manual_seed(0)
    args = {"encoder_spec": {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}}
    if request.param == "liif":
        args |= {"imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}, "residual": "bilinear"}
    return make_model({"name": request.param, "args": args}).eval()


@pytest.mark.parametrize(("size", "clip"), [((22, 31), False), ((22, 31), True), ((60, 73), True)])
def test_a_model_is_queried_at_every_pixel(model, monkeypatch, size, clip):
    """Strips equal one piece; the clipped cell is that of x4 along each axis."""
    monkeypatch.setattr("liif_fast.models.base.PREDICT_QUERIES", 7 * size[1])
    inp = torch.rand(1, 3, 10, 12, generator=torch.Generator().manual_seed(1))
    cell = make_cell(size)[None]
    if clip:
        cell = cell * torch.tensor([max(size[0] / 10 / 4, 1), max(size[1] / 12 / 4, 1)])
    norm = {"inp": {"sub": [0.4, 0.5, 0.6], "div": [0.3]}, "gt": {"sub": [0.5], "div": [0.25]}}
    with torch.no_grad():
        expected = model((inp - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / 0.3, make_coord(size)[None], cell)
    expected = (expected * 0.25 + 0.5).transpose(1, 2).unflatten(2, size)
    got = of_model(model, norm, cell_clip=clip)(inp, size)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert model.feat is None


def test_pictures_are_saved(tmp_path):
    evaluate(plus(0.12, 0.25), halves(FLAT), with_ssim=False, save=tmp_path / "a" / "b")
    for name, value in (("0000", 82), ("0001", 166)):  # 81.6 and 165.75, rounded
        picture = np.asarray(Image.open(tmp_path / "a" / "b" / f"{name}.png"))
        assert np.array_equal(picture, np.full((20, 24, 3), value))


def test_samples_of_ones_own():
    class Own(torch.utils.data.Dataset):
        def __init__(self, coord):
            self.coord = coord

        def __len__(self):
            return 1

        def __getitem__(self, index):
            gt = torch.arange(4 * 6 * 3).view(24, 3) / 100
            return {"inp": torch.zeros(3, 2, 3), "coord": self.coord, "cell": make_cell((4, 6)), "gt": gt}

    def predict(inp, size):
        return (torch.arange(4 * 6 * 3).view(4, 6, 3) / 100).permute(2, 0, 1)[None] + 0.1

    assert evaluate(predict, Own(make_coord((4, 6))), with_ssim=False)[0].psnr == pytest.approx(20, abs=1e-3)
    with pytest.raises(ValueError, match="0000: an evaluation needs all pixels"):
        evaluate(predict, Own(make_coord((4, 6)).flip(0)))


def test_what_cannot_be_scored():
    some = make({"name": "sr-implicit-downsampled", "args": {"scale_min": 2, "sample_q": 9}}, dataset=FLAT, seed=0)
    with pytest.raises(ValueError, match="0000: an evaluation needs all pixels as queries: leave sample_q out"):
        evaluate(plus(0), some)
    with pytest.raises(ValueError, match=r"0000: the prediction has shape \[1, 1, 20, 24\]"):
        evaluate(lambda inp, size: torch.zeros(1, 1, *size), halves(FLAT))
    with pytest.raises(ValueError, match="0001: the prediction has NaN"):
        evaluate(plus(0, math.nan), halves(FLAT), with_ssim=False)
    with pytest.raises(ValueError, match="0000: pred must be larger than the 10 pixels"):
        evaluate(plus(0), halves(FLAT), eval_type="benchmark-10")
    with pytest.raises(ValueError, match="0000: pred must have 11 x 11 pixels"):
        evaluate(plus(0), halves(FLAT), eval_type="benchmark-6")
    images = evaluate(plus(0.1, 0.1), halves([FLAT[0], FLAT[0][:10]]), with_ssim=False)
    with pytest.raises(ValueError, match="t: the images of a batch differ in size: set batch_size to 1"):
        summarise("t", "m", None, 2, images)
    with pytest.raises(ValueError, match="t: there is no image"):
        summarise("t", "m", None, 1, [])


def test_tables():
    images = evaluate(plus(0.1, 0), halves(FLAT))
    scores = [
        summarise(test, model, eval_type, 1, images[:1])
        for model in ("ours", "theirs")
        for test, eval_type in (("div2k-4", "div2k-4"), ("set5-4", "benchmark-4"), ("faces", None))
    ]
    lines = markdown(scores).splitlines()
    assert lines[0] == "| PSNR in dB / SSIM | div2k-4 | set5-4 | faces |"
    assert lines[4] == "| EDSR-baseline-LIIF, as published on DIV2K | 29.00 |  |  |"
    assert lines[6].startswith("| ours | 20.00 / 0.")
    assert len(lines) == 8
    assert "published" not in markdown([score for score in scores if score.test != "div2k-4"])
    for name, eval_type in (("div2k-5", "div2k-5"), ("leaves-4", "div2k-4"), ("div2k", None), ("div2k", "benchmark-4")):
        scores = [summarise(name, "ours", eval_type, 1, images)]
        assert len(markdown(scores).splitlines()) == 3
    content = json.loads(to_json(scores, version="1"))
    assert content["version"] == "1"
    assert content["scores"][0]["images"][0]["psnr"] == pytest.approx(20, abs=1e-4)
    assert content["scores"][0]["images"][1]["psnr"] is None  # infinite
