"""Score models on test sets by the protocol of LIIF's published figures.

Each image is enlarged as a whole. Its prediction is clamped to [0, 1], not rounded to 8 bits, and compared with the
target by `liif_fast.metrics` under the test's `eval_type`.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from liif_fast.coord import make_coord
from liif_fast.data.datasets import image_name
from liif_fast.data.resize import bicubic_resize
from liif_fast.data.samples import unpack, whole
from liif_fast.images import write_image
from liif_fast.metrics import mse, parse_eval_type, psnr, ssim
from liif_fast.models.base import FeatureModel, clipped_cell
from liif_fast.models.norm import DataNorm, Norm
from liif_fast.models.tiles import TILE

CLIPPED_ABOVE = 4  # the largest scale in training; cell_clip keeps the cell of larger scales from shrinking further

# PSNR in dB on DIV2K validation, LIIF (arXiv 2012.09161), table 1.
PUBLISHED = {
    "bicubic": (31.01, 28.22, 26.66, 24.82, 22.27, 21.00, 20.19, 19.59),
    "EDSR-baseline-MetaSR": (34.64, 30.93, 28.92, 26.61, 23.55, 22.03, 21.06, 20.37),
    "EDSR-baseline-LIIF": (34.67, 30.96, 29.00, 26.75, 23.71, 22.17, 21.18, 20.48),
    "RDN-LIIF": (34.99, 31.26, 29.27, 26.99, 23.89, 22.34, 21.31, 20.59),
}
PUBLISHED_SCALES = (2, 3, 4, 6, 12, 18, 24, 30)

Predict = Callable[[Tensor, tuple[int, int]], Tensor]  # (inp [1, C, h, w] in [0, 1], (H, W)) -> [1, C, H, W]


@dataclass(frozen=True)
class ImageScore:
    """The scores of an image; `size` is the target's (height, width), `psnr` in dB, `ssim` None if not measured."""

    index: int
    name: str
    size: tuple[int, int]
    mse: float
    psnr: float
    ssim: float | None


@dataclass(frozen=True)
class Score:
    """The scores of a test: `psnr` pools the error of each batch and averages by batch size; the rest are means."""

    test: str
    model: str
    eval_type: str | None
    psnr: float
    psnr_per_image: float
    ssim: float | None
    images: list[ImageScore]


def of_model(model: FeatureModel, data_norm: DataNorm, *, cell_clip: bool = False) -> Predict:
    """Return a model's prediction as a function of an image and a size.

    Args:
        model: in evaluation mode; its device does the work.
        data_norm: `inp` and `gt`, each with `sub` and `div`.
        cell_clip: multiply the cell by max(s / 4, 1) with s the scale of each side, whatever the model's
            `clips_cell_above`.

    Returns:
        A function from (inp [1, C, h, w] in [0, 1], (H, W)) to [1, C, H, W], nominally in [0, 1] but not clamped.
    """
    norm = Norm(data_norm)

    def predict(inp: Tensor, size: tuple[int, int]) -> Tensor:
        cell = clipped_cell(size, inp.shape[2:], CLIPPED_ABOVE) if cell_clip else None
        return model.predict(inp, size, cell=cell, tile=TILE, norm=norm)

    return predict


def bicubic(inp: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge by Pillow's bicubic filter, rounded to 8 bits, as the baseline of every comparison."""
    pixels = (inp * 255).round().to(torch.uint8)
    return bicubic_resize(pixels, size, height_first=False).float() / 255


def evaluate(
    predict: Predict,
    wrapper: Any,
    indices: Iterable[int] | None = None,
    *,
    eval_type: str | None = None,
    with_ssim: bool = True,
    save: Path | None = None,
    label: str = "",
) -> list[ImageScore]:
    """Score a prediction on images of a test set.

    Args:
        predict: see `of_model`.
        wrapper: yields whole images, with all pixels of the target as queries.
        indices: the images to score; None means all.
        eval_type: see `liif_fast.metrics.psnr`.
        with_ssim: also measure SSIM, which takes longer than most predictions.
        save: folder for each prediction as <name>.png; created if missing.
        label: text of the progress bar.

    Returns:
        The scores of the images, in the order of `indices`.

    Raises:
        ValueError: an image is unusable, a pair does not have eval_type's scale, or a prediction has a wrong shape or
            is not finite; the message names the image.
    """
    wrapper = at_eval_type(wrapper, eval_type)
    indices = list(range(len(wrapper)) if indices is None else indices)
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
    scores = []
    for index in tqdm(indices, desc=label, unit=" images", leave=False, disable=None):
        name = image_name(wrapper.dataset, index) if hasattr(wrapper, "dataset") else f"{index:04d}"
        inp, gt = _whole(wrapper, index, name)
        pred = predict(inp, (gt.shape[2], gt.shape[3]))
        gt = gt.to(pred.device)
        if pred.shape != gt.shape:
            raise ValueError(f"{name}: the prediction has shape {list(pred.shape)}, the target {list(gt.shape)}")
        if not pred.isfinite().all():
            raise ValueError(f"{name}: the prediction has NaN or infinite values")
        pred = pred.clamp(0, 1)
        try:
            error = mse(pred, gt, eval_type)
            similarity = ssim(pred, gt, eval_type).item() if with_ssim else None
        except ValueError as reason:
            raise ValueError(f"{name}: {reason}") from None
        value = psnr(pred, gt, eval_type, per_image=True).item()
        scores.append(ImageScore(index, name, (gt.shape[2], gt.shape[3]), error.item(), value, similarity))
        if save is not None:
            pixels = (pred[0] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            write_image(Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0]), save / f"{name}.png")
    return scores


def at_eval_type(wrapper: Any, eval_type: str | None) -> Any:
    """Return the wrapper with the scale of its pairs fixed to eval_type's, if it supports that.

    Raises:
        ValueError: a pair has another scale; the message names its files.
    """
    if eval_type is None or not hasattr(wrapper, "at_scale"):
        return wrapper
    return wrapper.at_scale(parse_eval_type(eval_type)[1])


def _whole(wrapper: Any, index: int, name: str) -> tuple[Tensor, Tensor]:
    """Return the input [1, C, h, w] and the target [1, C, H, W] of a sample whose queries are all pixels."""
    if hasattr(wrapper, "packed"):
        sample = whole(wrapper.packed(index))
        if "pixel" not in sample:
            sample = unpack(sample)
            return sample["inp"][None], sample["gt"].permute(2, 0, 1)[None]
    else:
        sample = wrapper[index]
        height, width = (2 / sample["cell"][0]).round().long().tolist()
        if torch.equal(sample["coord"], make_coord((height, width))):
            return sample["inp"][None], sample["gt"].T.unflatten(1, (height, width))[None]
    raise ValueError(f"{name}: an evaluation needs all pixels as queries: leave sample_q out")


def summarise(test: str, model: str, eval_type: str | None, batch_size: int, images: Sequence[ImageScore]) -> Score:
    """Combine the scores of a test's images.

    Args:
        batch_size: number of images whose errors are pooled before the logarithm; 1 in all of the original's tests.

    Raises:
        ValueError: there is no image, or the images of a batch differ in size.
    """
    if not images:
        raise ValueError(f"{test}: there is no image")
    pooled = 0.0
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        if len({image.size for image in batch}) > 1:
            raise ValueError(f"{test}: the images of a batch differ in size: set batch_size to 1")
        pooled += len(batch) * _db(sum(image.mse for image in batch) / len(batch))
    similarities = [image.ssim for image in images if image.ssim is not None]
    return Score(
        test=test,
        model=model,
        eval_type=eval_type,
        psnr=pooled / len(images),
        psnr_per_image=sum(image.psnr for image in images) / len(images),
        ssim=sum(similarities) / len(similarities) if similarities else None,
        images=list(images),
    )


def _db(error: float) -> float:
    return -10 * math.log10(error) if error > 0 else math.inf


def markdown(scores: Sequence[Score]) -> str:
    """Return a table with a row per model and a column per test; tests on DIV2K come with the published rows."""
    tests, models = ([*dict.fromkeys(getattr(score, key) for score in scores)] for key in ("test", "model"))
    cells = {(score.model, score.test): score for score in scores}
    published = [_published_column(next(score for score in scores if score.test == test)) for test in tests]
    what = "PSNR in dB" + (" / SSIM" if any(score.ssim is not None for score in scores) else "")
    lines = [f"| {what} | " + " | ".join(tests) + " |", "|---" * (len(tests) + 1) + "|"]
    if any(column is not None for column in published):
        for name, values in PUBLISHED.items():
            row = ["" if column is None else f"{values[column]:.2f}" for column in published]
            lines.append(f"| {name}, as published on DIV2K | " + " | ".join(row) + " |")
    for model in models:
        row = []
        for test in tests:
            score = cells[model, test]
            row.append(f"{score.psnr:.2f}" + ("" if score.ssim is None else f" / {score.ssim:.4f}"))
        lines.append(f"| {model} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _published_column(score: Score) -> int | None:
    """Return the index of a test's scale in the published rows, or None unless its name says DIV2K."""
    if score.eval_type is None or "div2k" not in score.test.lower():
        return None
    kind, scale = parse_eval_type(score.eval_type)
    return PUBLISHED_SCALES.index(scale) if kind == "div2k" and scale in PUBLISHED_SCALES else None


def to_json(scores: Sequence[Score], **about: Any) -> str:
    """Return all scores, including each image's, and the keywords as JSON."""
    return json.dumps(_plain({**about, "scores": [asdict(score) for score in scores]}), indent=1) + "\n"


def _plain(value: Any) -> Any:
    """Replace infinite values (the PSNR of equal images) by None, because JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
