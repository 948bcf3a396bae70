import math

import numpy as np
import pytest
import torch

from liif_fast.train.config import check_config
from liif_fast.train.trainer import Run


def make_run(tmp_path, tiny):
    return Run(check_config(tiny), tmp_path / "run", torch.device("cpu"))


def bilinear(run):
    """Reduce a model with that residual to its interpolation."""
    for parameter in run.stepper.model.imnet.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)


def test_validation_is_fixed_and_measures_psnr(tmp_path, tiny):
    tiny["model"]["args"]["residual"] = "bilinear"
    run = make_run(tmp_path, tiny)
    bilinear(run)
    values = []
    for index in range(3):
        sample = run.validation.dataset[index]
        grid = sample["coord"].flip(-1)[None, None]
        pred = torch.nn.functional.grid_sample(sample["inp"][None], grid, padding_mode="border", align_corners=False)
        values.append((pred[0, :, 0].T - sample["gt"]).square().mean().item())
    per_image = [-10 * math.log10(v) for v in values]
    pooled = [-10 * math.log10(np.mean(values[:2])), per_image[2]]
    measured = run.validation.psnr(run.stepper.model, 1)
    assert measured == pytest.approx(((2 * pooled[0] + pooled[1]) / 3, np.mean(per_image)), abs=1e-3)
    assert run.validation.psnr(run.stepper.model, 2) == measured


def test_new_crops_as_the_original_draws_them(tmp_path, tiny):
    run = make_run(tmp_path, tiny | {"val_seed": None})
    first = run.validation.psnr(run.stepper.model, 1)
    assert run.validation.psnr(run.stepper.model, 2) != first == run.validation.psnr(run.stepper.model, 1)


def test_the_model_is_left_as_it_was(tmp_path, tiny):
    run = make_run(tmp_path, tiny)
    run.stepper.objective.train()
    run.validation.psnr(run.stepper.model, 1)
    assert run.stepper.model.training


def test_whole_images(tmp_path, tiny):
    wrapper = {"name": "sr-implicit-downsampled", "args": {"scale_min": 2}}
    tiny["val_dataset"] |= {"wrapper": wrapper, "batch_size": 1}
    run = make_run(tmp_path, tiny | {"eval_type": "benchmark-2", "eval_bsize": 500})
    assert all(math.isfinite(value) for value in run.validation.psnr(run.stepper.model, 1))
    tiny["eval_type"] = "benchmark-3"
    run = make_run(tmp_path, tiny)
    with pytest.raises(ValueError, match="benchmark-3 needs all 60 x 60 pixels, got 40 x 40"):
        run.validation.psnr(run.stepper.model, 1)
    wrapper["args"]["sample_q"] = 9
    run = make_run(tmp_path, tiny)
    with pytest.raises(ValueError, match="got 9 queries"):
        run.validation.psnr(run.stepper.model, 1)


def test_images_of_several_sizes(tmp_path, tiny):
    """For all pixels of crops of three sizes, the mean over images does not depend on the batches."""
    tiny["val_dataset"]["wrapper"]["args"]["sample_q"] = "all"
    measured = []
    for size in (1, 3):
        tiny["val_dataset"]["batch_size"] = size
        run = make_run(tmp_path, tiny)
        measured.append(run.validation.psnr(run.stepper.model, 1))
    assert measured[0][0] == pytest.approx(measured[0][1]) == pytest.approx(measured[1][1])


def test_picture(tmp_path, tiny):
    """The picture has three columns, enlarged input, prediction and target, of the validated crops.

    Each is in a cell of 110 x (16 + side) pixels with 8 around it, under a caption.
    """
    tiny["model"]["args"]["residual"] = "bilinear"
    run = make_run(tmp_path, tiny)
    bilinear(run)
    picture = np.asarray(run.validation.picture(run.stepper.model, 2)).astype(int)
    run.validation.dataset.sample_q = None
    samples = [run.validation.dataset[i] for i in range(2)]
    sides = [math.isqrt(len(sample["gt"])) for sample in samples]
    assert picture.shape == (8 + sum(sides) + 2 * (16 + 8), 8 + 3 * (110 + 8), 3)
    target = (samples[0]["gt"].view(sides[0], sides[0], 3) * 255).round().numpy()
    low, pred, shown = (picture[24 : 24 + sides[0], left : left + sides[0]] for left in (8, 126, 244))
    assert np.array_equal(shown, target)
    assert all((picture[8:24, left : left + 110] < 128).any() for left in (8, 126, 244))  # captions
    assert np.abs(low - pred).mean() < np.abs(low - target).mean()
    assert not np.array_equal(low, pred)
    assert run.validation.picture(run.stepper.model, 0) is None
