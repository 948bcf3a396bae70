"""Score models on all that decides whether a model ships: benchmarks, held-out photographs, JPEG, text.

    python -m benchmarks.model_scores MODEL... [--sets FOLDER] [--wallpapers FOLDER] [--out FILE.json] [--pictures DIR]

A MODEL is a file, a name, or `bicubic`. `--sets` holds Set5 and Set14 in the layout of benchmarks/set5_set14.py.
`--wallpapers` is a folder that benchmarks/wallpapers.py has written, whose held-out pictures count. The script prints
means over images, PSNR in dB:

* Set5 and Set14 at x2, x3, x4: luma, from the files of LR_bicubic (`benchmark-s`); at x6 and x8: HR_X2 cut to
  multiples and reduced by our bicubic filter.
* The middle of each photograph, reduced, then compressed as JPEG (4:2:0) or not: RGB (`div2k-s`).
* Text: a scanned page and rendered ones, at x1 against the input, at x2 and x4 against the pages that were reduced.

`--pictures` writes pictures to look at: text at x1, x2 and x4, and photographs from JPEG. A row shows the input, the
models and the truth.
"""

import argparse
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks import records
from benchmarks.report import fill
from benchmarks.set5_set14 import BICUBIC, COLUMNS, predictor
from liif_fast import data, evaluation
from liif_fast.data.drawings import drawing
from liif_fast.data.resize import resize
from liif_fast.evaluation.testset import Predict
from liif_fast.metrics import psnr
from liif_fast.models.catalogue import SHIPPED, SHIPPED_PHOTO

RECORD, SECTION = records.RESULTS / "model_scores.json", "jpeg"
DOCUMENTS = (records.ROOT / "docs" / "evaluation.md", records.ROOT / "liif_fast" / "assets" / "PHOTO_MODEL_CARD.md")
PICTURE = records.ROOT / "docs" / "images" / "jpeg.png"
SHOWN = {"china": 50, "grace_hopper": 50, "coffee": 70}  # photographs in the picture, and the quality of each
CORNER, PART = (16, 16), 128  # left and top in the middle of a photograph, and side, of the part that is shown
CROP = 192  # side in pixels of the middle of a photograph; 2, 3 and 4 divide it
SCALES, LARGE, QUALITIES = (2, 3, 4), (6, 8), (None, 90, 70, 50)
PAGES = (1, 5, 11, 14)  # indices of `drawing`, from a seed that no training uses
SEED = 77


class Case(NamedTuple):
    """Hold an image to enlarge, the truth, and the row and column of the figure."""

    group: str
    scale: int
    name: str
    low: np.ndarray
    high: np.ndarray
    shown: bool = False


def compressed(image: np.ndarray, quality: int | None) -> np.ndarray:
    """Return a uint8 image [H, W, 3] after JPEG compression; with None, return it unchanged."""
    if quality is None:
        return image
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(file))


def reduced(image: np.ndarray, scale: int) -> np.ndarray:
    return image if scale == 1 else resize(image, (image.shape[0] // scale, image.shape[1] // scale))


def photographs(wallpapers: Path | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and middles of photographs on which no model of ours is trained."""
    sets = [data.make({"name": "natural-images", "args": {"split": "held-out"}})]
    if wallpapers:
        sets.append(data.make({"name": "image-folder", "args": {"root_path": str(wallpapers / "held-out")}}))
    for images in sets:
        for index in range(len(images)):
            image = images[index]
            top, left = ((side - CROP) // 2 for side in image.shape[:2])
            yield images.image_name(index), np.ascontiguousarray(image[top : top + CROP, left : left + CROP])


def cases(wallpapers: Path | None) -> Iterator[Case]:
    """Yield photographs and text."""
    for name, high in photographs(wallpapers):
        for scale in SCALES:
            for quality in QUALITIES:
                group = "photographs" if quality is None else f"JPEG {quality}"
                low = compressed(reduced(high, scale), quality)
                yield Case(group, scale, name, low, high, shown=scale == 2 and quality in (70, 50))
    page = data.datasets.read_image(data.datasets._shipped("skimage", "data/page.png"))
    pages = {f"page {index}": drawing(256, SEED, index) for index in PAGES} | {"scan": page[:184, :384]}
    for name, high in pages.items():
        for scale in (1, 2, 4):
            yield Case("text", scale, name, reduced(high, scale), high, shown=True)


def enlarged(predict: Predict, case: Case) -> torch.Tensor:
    """Return a case's enlarged image, [1, 3, H, W] in [0, 1]."""
    inp = torch.from_numpy(case.low.copy()).permute(2, 0, 1)[None] / 255
    return predict(inp, case.high.shape[:2]).clamp(0, 1)


def benchmark(predict: Predict, folder: Path) -> Iterator[tuple[str, int, float]]:
    """Yield name, scale and mean PSNR for Set5 and Set14."""
    for name, scale in COLUMNS:
        low, high = (str(folder / name / each) for each in (f"LR_bicubic/X{scale}", f"HR_X{scale}"))
        pairs = data.make({"name": "paired-image-folders", "args": {"root_path_1": low, "root_path_2": high}})
        yield name, scale, _mean(predict, data.make({"name": "sr-implicit-paired"}, dataset=pairs, seed=0), scale)
    for name in ("Set5", "Set14"):
        images = data.make({"name": "image-folder", "args": {"root_path": str(folder / name / "HR_X2")}})
        for scale in LARGE:
            spec = {"name": "sr-implicit-downsampled", "args": {"scale_min": scale}}
            yield name, scale, _mean(predict, data.make(spec, dataset=images, seed=0), scale)


def _mean(predict: Predict, wrapper: Any, scale: int) -> float:
    images = evaluation.evaluate(predict, wrapper, eval_type=f"benchmark-{scale}", with_ssim=False)
    return float(np.mean([image.psnr for image in images]))


@torch.inference_mode()
def measure(model: str, sets: Path | None, wallpapers: Path | None) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Return the mean PSNR of each group and scale, as "Set5 x2", and the pictures to look at."""
    predict, found, shown = predictor(model), dict[str, list[float]](), list[torch.Tensor]()
    for case in cases(wallpapers):
        pred = enlarged(predict, case)
        high = torch.from_numpy(case.high.copy()).permute(2, 0, 1)[None] / 255
        kind = f"div2k-{case.scale}" if case.scale > 1 else None
        value = psnr(pred, high, kind).item()
        for key in (case.group, *([f"text: {case.name}"] if case.group == "text" else [])):
            found.setdefault(f"{key} x{case.scale}", []).append(value)
        if case.shown:
            shown.append((pred[0].permute(1, 2, 0) * 255).round().byte())
    means = {key: float(np.mean(values)) for key, values in found.items() if np.isfinite(values).all()}
    if sets:
        means |= {f"{name} x{scale}": value for name, scale, value in benchmark(predict, sets)}
    return means, shown


def table(means: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table: a row for each figure, a column for each model."""
    models = list(means)
    lines = ["| PSNR in dB | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for key in dict.fromkeys(key for values in means.values() for key in values):
        lines.append(f"| {key} | " + " | ".join(f"{means[model].get(key, math.inf):.2f}" for model in models) + " |")
    return "\n".join(lines)


def jpeg_table(record: records.Record) -> str:
    """Return the table for the documents: a row for each quality and model, a column for each scale."""
    lines = ["| input | enlarged by | " + " | ".join(f"x{scale}" for scale in SCALES) + " |", "|---" * 5 + "|"]
    for quality in QUALITIES:
        group = "photographs" if quality is None else f"JPEG {quality}"
        for model in (BICUBIC, SHIPPED, SHIPPED_PHOTO):
            values = [f"{record['results'][model][f'{group} x{scale}']:.2f}" for scale in SCALES]
            lines.append(f"| {'clean' if quality is None else group} | {model} | {' | '.join(values)} |")
    about = f"liif_fast {record['version']} at {record['commit']}, torch {record['torch']}, {record['date'][:10]}"
    return "\n".join([*lines, "", f"Measured by {about}."])


def write() -> None:
    """Write the record's figures into the documents."""
    for path in DOCUMENTS:
        path.write_text(fill(path.read_text(), SECTION, jpeg_table(json.loads(RECORD.read_text()))))


def draw(folder: Path, shown: dict[str, list[torch.Tensor]], wallpapers: Path | None) -> None:
    """Write a picture for each case that is shown: the input by pixels, the models, the truth."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(each for each in cases(wallpapers) if each.shown):
        size = case.high.shape[1::-1]
        row = [Image.fromarray(case.low).resize(size, Image.Resampling.NEAREST)]
        row += [Image.fromarray(images[number].numpy()) for images in shown.values()] + [Image.fromarray(case.high)]
        sheet = Image.new("RGB", (len(row) * (size[0] + 4) - 4, size[1]), "white")
        for column, image in enumerate(row):
            sheet.paste(image, (column * (size[0] + 4), 0))
        sheet.save(folder / f"{case.group}-x{case.scale}-{case.name}.png".replace(" ", "-"))


@torch.inference_mode()
def sheet() -> Image.Image:
    """Return the picture for the documents: parts of JPEG photographs, enlarged in each way, and the truth."""
    predicts = {model: predictor(model) for model in (BICUBIC, SHIPPED, SHIPPED_PHOTO)}
    photos, rows = dict(photographs(None)), []
    for name, quality in SHOWN.items():
        low = compressed(reduced(photos[name], 2), quality)
        case = Case("", 2, name, low, photos[name])
        made = [
            (enlarged(predict, case)[0].permute(1, 2, 0) * 255).round().byte().numpy() for predict in predicts.values()
        ]
        rows.append([Image.fromarray(image) for image in (*made, photos[name])])
    side, gap, bar = 2 * PART, 6, 22
    picture = Image.new("RGB", (4 * (side + gap) - gap, len(rows) * (side + bar)), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for row, (images, quality) in enumerate(zip(rows, SHOWN.values(), strict=True)):
        for column, (image, label) in enumerate(zip(images, (*predicts, "truth"), strict=True)):
            place = column * (side + gap), row * (side + bar)
            text = f"JPEG {quality}, {label}" if column == 0 else label
            pen.text((place[0] + 2, place[1] + 2), text, fill="black", font=font)
            # Nearest, because a second interpolation would hide the pixels.
            part = image.crop((*CORNER, CORNER[0] + PART, CORNER[1] + PART)).resize(
                (side, side), Image.Resampling.NEAREST
            )
            picture.paste(part, (place[0], place[1] + bar))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_scores", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"a file, a name, or {BICUBIC}")
    parser.add_argument("--sets", type=Path, help="folder of Set5 and Set14")
    parser.add_argument("--wallpapers", type=Path, help="folder that benchmarks/wallpapers.py has written")
    parser.add_argument("--out", type=Path, help="JSON record; results of other models stay in it")
    parser.add_argument("--pictures", type=Path, help="folder for pictures to look at")
    parser.add_argument("--write", action="store_true", help="fill the documents from the record, draw the picture")
    args = parser.parse_args()
    if args.write:
        write()
        sheet().save(PICTURE, optimize=True)
    if not args.models:
        return
    means, shown = {}, {}
    for model in args.models:
        means[model], shown[model] = measure(model, args.sets, args.wallpapers)
        print(model, json.dumps(means[model]), flush=True)
    print(table(means))
    if args.out:
        known = json.loads(args.out.read_text())["results"] if args.out.exists() else {}
        args.out.write_text(json.dumps({**records.environment(), "results": known | means}, indent=1) + "\n")
    if args.pictures:
        draw(args.pictures, shown, args.wallpapers)


if __name__ == "__main__":
    main()
