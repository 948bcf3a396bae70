"""Measure the PSNR on the validation set and draw pictures of it."""

import copy
import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from liif_fast import distributed
from liif_fast.data import make_loader
from liif_fast.data.samples import Sample
from liif_fast.evaluation import at_eval_type
from liif_fast.metrics import parse_eval_type, psnr
from liif_fast.train.config import Config
from liif_fast.train.objective import Objective
from liif_fast.train.order import Order

PICTURE_SIDE = 256  # pixels; a larger image is cropped to its middle
CAPTION = (110, 16)  # width and height of a caption in pixels


class Validation:
    """The validation set of a training."""

    def __init__(
        self, dataset: Any, config: Config, objective: Objective, device: torch.device, num_workers: int
    ) -> None:
        assert config.val_dataset is not None
        dataset = at_eval_type(dataset, config.eval_type)
        self.dataset, self.config, self.objective, self.device = dataset, config, objective, device
        order = Order(len(dataset), config.val_dataset["batch_size"])
        # Every process takes whole batches, so the pooled error does not depend on the number of processes.
        batches = distributed.share([order.indices[i : i + order.size] for i in range(0, order.length, order.size)])
        self.loader = make_loader(dataset, batches, device, num_workers=num_workers, grouped=True)

    @torch.inference_mode()
    def psnr(self, model: Any, epoch: int) -> tuple[float, float]:
        """Measure a model; if `val_seed` is null, on the crops of `epoch`.

        Returns two PSNRs in dB. The first pools the error of each batch (samples of different sizes by size) and
        averages by batch size, as the original does. The second is the mean over images.
        """
        if self.config.val_seed is None:
            self.dataset.set_epoch(epoch)
        training = model.training
        model.eval()
        pooled, single, count = 0.0, 0.0, 0
        with torch.compiler.set_stance("force_eager"):  # other sizes would recompile
            for batch in self.loader:
                for pred, group in zip(self.objective.images(model, batch), batch, strict=True):
                    gt, eval_type = group["gt"], self.config.eval_type
                    if eval_type is not None:
                        pred, gt = (_as_image(x, group["inp"], eval_type) for x in (pred, gt))
                    values = psnr(pred, gt, eval_type, per_image=True).cpu().double()
                    pooled += len(values) * psnr(pred, gt, eval_type).item()
                    single += values.sum().item()
                    count += len(values)
        model.train(training)
        parts = distributed.gather((pooled, single, count))
        pooled, single, count = (sum(column) for column in zip(*parts, strict=True))
        return pooled / count, single / count

    @torch.inference_mode()
    def picture(self, model: Any, count: int) -> Image.Image | None:
        """Show the first samples: the input enlarged by bicubic interpolation, the prediction, and the target.

        Captions give the 8-bit PSNR over the whole sample and the scale. None if there is nothing to show.
        """
        count = min(count, len(self.dataset))
        if not count or not hasattr(self.dataset, "sample_q"):
            return None
        whole = copy.copy(self.dataset)
        whole.sample_q = None  # the crops stay the same, because pixels are drawn last
        loader = make_loader(whole, [[i] for i in range(count)], self.device, grouped=True)
        training, rows = model.training, []
        model.eval()
        with torch.compiler.set_stance("force_eager"):
            for batch in loader:
                (pred,), (group,) = self.objective.images(model, batch), batch
                if pred.shape[-1] not in (1, 3):
                    return None
                target = _as_pil(group["gt"][0])
                low = _as_pil(group["inp"][0].permute(1, 2, 0)).resize(target.size, Image.Resampling.BICUBIC)
                made = _as_pil(pred[0])
                scale = max(target.size) / max(group["inp"].shape[-2:])
                captions = [f"bicubic, {_db(low, target)}", f"model, {_db(made, target)}", f"target, x{scale:.3g}"]
                rows.append(list(zip(captions, map(_middle, (low, made, target)), strict=True)))
        model.train(training)
        return _table(rows)


def _as_pil(image: Tensor) -> Image.Image:
    """Convert an image [H, W, 1 or 3] in [0, 1]."""
    pixels = image.clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])


def _db(image: Image.Image, target: Image.Image) -> str:
    error = np.square(np.asarray(image, np.float64) - np.asarray(target, np.float64)).mean()
    return f"{10 * math.log10(255**2 / error):.2f} dB" if error else "equal"


def _table(rows: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Arrange rows of equally large images, each under its caption."""
    gap, (least, line) = 8, CAPTION
    width = max(least, *(image.width for row in rows for _, image in row)) + gap
    heights = [line + row[0][1].height + gap for row in rows]
    picture = Image.new("RGB", (gap + len(rows[0]) * width, gap + sum(heights)), "white")
    draw, top = ImageDraw.Draw(picture), gap
    for row, height in zip(rows, heights, strict=True):
        for column, (caption, image) in enumerate(row):
            left = gap + column * width
            draw.text((left, top), caption, fill="black")
            picture.paste(image, (left, top + line))
        top += height
    return picture


def _middle(image: Image.Image) -> Image.Image:
    width, height = (min(side, PICTURE_SIDE) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _as_image(values: Tensor, inp: Tensor, eval_type: str) -> Tensor:
    """Permute whole images [B, H, W, 3] to [B, 3, H, W]; raise if their size is not eval_type's scale times inp's."""
    scale = parse_eval_type(eval_type)[1]
    size = [side * scale for side in inp.shape[-2:]]
    if values.ndim != 4 or list(values.shape[1:3]) != size:
        got = f"{values.shape[1]} queries" if values.ndim == 3 else f"{values.shape[1]} x {values.shape[2]}"
        raise ValueError(f"eval_type {eval_type} needs all {size[0]} x {size[1]} pixels, got {got}")
    return values.permute(0, 3, 1, 2)


def first_batch(dataset: Any, device: torch.device, data_device: str | None = None) -> list[Sample]:
    """Return a batch of a wrapper's first sample."""
    return next(iter(make_loader(dataset, [[0]], device, data_device=data_device, grouped=True)))
