"""Compare bicubic interpolation, the shipped model and the authors' weights on Set5 and Set14, and draw a picture.

    liif-fast models get edsr-baseline-liif
    python -m benchmarks.set5_set14 --measure FOLDER    # writes the record, then the documents
    python -m benchmarks.set5_set14 --draw              # docs/images/set5-set14.png

FOLDER holds Set5 and Set14, each with LR_bicubic/X2 and HR_X2, up to X4, as in the folder data of
https://github.com/jbhuang0604/SelfExSR. The sets are for research and not part of this repository. So the picture shows
free photographs, on which neither model was trained. PSNR is that of `benchmark-s` (docs/evaluation.md).
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks import records
from benchmarks.report import fill
from liif_fast import data, evaluation
from liif_fast.data.resize import resize
from liif_fast.evaluation.testset import Predict
from liif_fast.models.catalogue import resolve_model

RECORD = records.RESULTS / "set5-set14.json"
EVALUATION, README = records.ROOT / "docs" / "evaluation.md", records.ROOT / "README.md"
PICTURE = records.ROOT / "docs" / "images" / "set5-set14.png"
SECTION = "set5-set14"
BICUBIC, SHIPPED, AUTHORS = "bicubic", "edsr-small-liif", "edsr-baseline-liif"
COLUMNS = [(name, scale) for name in ("Set5", "Set14") for scale in (2, 3, 4)]
ROWS = {  # in decibels as published, or the model that is measured
    "bicubic, MATLAB, as published with VDSR": (33.66, 30.39, 28.42, 30.24, 27.55, 26.00),
    "bicubic, Pillow": BICUBIC,
    "edsr-small-liif, shipped": SHIPPED,
    "VDSR ([1511.04587](https://arxiv.org/abs/1511.04587)), as published": (37.53, 33.66, 31.35, 33.03, 29.77, 28.01),
    "edsr-baseline-liif, the authors' weights": AUTHORS,
    "RDN-LIIF ([2012.09161](https://arxiv.org/abs/2012.09161)), as published": (
        *(38.17, 34.68, 32.50),
        *(33.97, 30.53, 28.80),
    ),
}
MODELS = [row for row in ROWS.values() if isinstance(row, str)]
SHOWN_SCALE, PIXEL = 4, 3  # the picture's reduction, and the side of a pixel in it
PARTS = {"grace_hopper": (212, 20), "coffee": (316, 228), "rocket": (536, 100)}  # left and top of the parts shown
SIDE, MARGIN = 96, 48  # the side of a part, and the margin that is enlarged with it but not shown


def measure(folder: Path, models: Sequence[str] | None = None, known: Sequence[dict[str, Any]] = ()) -> records.Record:
    """Return the record with the PSNR in dB of each image; new results of `models` (all) replace known ones."""
    models = MODELS if models is None else models
    results, environment = [each for each in known if each["model"] not in models], records.environment()
    for model in models:
        predict = predictor(model)
        for name, scale in COLUMNS:
            low, high = (str(folder / name / each) for each in (f"LR_bicubic/X{scale}", f"HR_X{scale}"))
            pairs = data.make({"name": "paired-image-folders", "args": {"root_path_1": low, "root_path_2": high}})
            wrapper = data.make({"name": "sr-implicit-paired", "args": {}}, dataset=pairs, seed=0)
            images = evaluation.evaluate(predict, wrapper, eval_type=f"benchmark-{scale}", with_ssim=False)
            psnr = {image.name: round(image.psnr, 4) for image in images}
            commit = environment["commit"]
            results.append({"model": model, "set": name, "scale": scale, "psnr": psnr, "commit": commit})
            print(f"{model}, {name} x{scale}: {mean(results, model, name, scale):.2f} dB", flush=True)
    return {**environment, "results": results}


def predictor(name: str) -> Predict:
    """Return the enlargement by the model of that name, or by bicubic interpolation."""
    if name == BICUBIC:
        return evaluation.bicubic
    model = resolve_model(name, "cpu")
    return evaluation.of_model(model, model.data_norm)


def mean(results: list[dict[str, Any]], model: str, name: str, scale: int) -> float:
    """Return the mean over a set's images, in dB."""
    wanted = (model, name, scale)
    (found,) = (each["psnr"] for each in results if (each["model"], each["set"], each["scale"]) == wanted)
    return sum(found.values()) / len(found)


def table(record: records.Record) -> str:
    """Return the table of docs/evaluation.md, in Markdown."""
    lines = ["| PSNR in dB | " + " | ".join(f"{name} x{scale}" for name, scale in COLUMNS) + " |", "|---" * 7 + "|"]
    for title, row in ROWS.items():
        values = [mean(record["results"], row, *column) for column in COLUMNS] if isinstance(row, str) else row
        lines.append(f"| {title} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    commits = {each["model"]: each["commit"] for each in record["results"]}
    at = ", ".join(f"{model} at {commit}" for model, commit in commits.items())
    about = f"liif_fast {record['version']}, torch {record['torch']}, {record['date'][:10]}"
    return "\n".join([*lines, "", f"Measured by {about}: {at}."])


def sentence(record: records.Record) -> str:
    """Return the README's two lines."""
    low, shipped, authors = (mean(record["results"], model, "Set5", 4) for model in (BICUBIC, SHIPPED, AUTHORS))
    return (
        f"On Set5 x4 bicubic has {low:.2f} dB, the shipped model {shipped:.2f}, the authors' weights {authors:.2f}:\n"
        f"`liif-fast models get {AUTHORS}` fetches these."
    )


def write(record: records.Record) -> None:
    """Write a record's figures into the documents."""
    EVALUATION.write_text(fill(EVALUATION.read_text(), SECTION, table(record)))
    README.write_text(re.sub(r"(?m)^On Set5 x4 .*\n.*$", lambda _: sentence(record), README.read_text()))


@torch.inference_mode()
def draw() -> Image.Image:
    """Return the picture: a row for each part of a photograph, a column for each method and one for the truth."""
    labels = [title for title, row in ROWS.items() if isinstance(row, str)] + ["truth"]
    cell, gap, bar = SIDE * PIXEL, 6, 24
    sheet = Image.new("RGB", (len(labels) * (cell + gap) - gap, bar + len(PARTS) * (cell + gap) - gap), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, label in enumerate(labels):
        pen.text((column * (cell + gap) + 2, 3), label, fill="black", font=font)
    photos = data.make({"name": "natural-images", "args": {"split": "held-out", "names": list(PARTS)}})
    predicts = [predictor(model) for model in MODELS]
    for row, (photo, (left, top)) in enumerate(zip(photos, PARTS.values(), strict=True)):
        y, x = max(top - MARGIN, 0), max(left - MARGIN, 0)
        around = photo[y : top + SIDE + MARGIN, x : left + SIDE + MARGIN]
        height, width = (side // SHOWN_SCALE * SHOWN_SCALE for side in around.shape[:2])
        high = np.ascontiguousarray(around[:height, :width])
        inp = torch.from_numpy(resize(high, (height // SHOWN_SCALE, width // SHOWN_SCALE))).permute(2, 0, 1)[None] / 255
        images = [predict(inp, (height, width)).clamp(0, 1)[0].permute(1, 2, 0) for predict in predicts]
        for column, image in enumerate([*((image * 255).round().byte().numpy() for image in images), high]):
            shown = np.ascontiguousarray(image[top - y : top - y + SIDE, left - x : left - x + SIDE])
            # Nearest, because a second interpolation would hide the pixels.
            part = Image.fromarray(shown).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(part, (column * (cell + gap), bar + row * (cell + gap)))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.set5_set14", description=__doc__.splitlines()[0])
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="measure on the sets in this folder")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="measure only these; others stay")
    parser.add_argument("--draw", action="store_true", help="draw the picture")
    args = parser.parse_args()
    if args.measure:
        record = measure(args.measure, args.models, json.loads(RECORD.read_text())["results"])
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        write(json.loads(RECORD.read_text()))
    if args.draw:
        draw().save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
