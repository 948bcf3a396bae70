"""Measure the PSNR of a model and of bicubic interpolation on photographs that the model has not seen.

    python benchmarks/model_quality.py [MODEL] [--out FILE.json] [--scales 2 3 3.7] [--crop 192]

Each photograph is cropped to a size that the scale divides, reduced by Pillow's bicubic filter to 8 bits, and enlarged
again by the model and by Pillow. PSNR is over RGB without a border of ceil(scale) + 6 pixels. The model's output is
clamped but not rounded. The script prints a Markdown table. --out writes all figures; --table replaces the table
between its marks in documents.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liif_fast import __version__, load_model
from liif_fast.data import make
from liif_fast.data.resize import resize
from liif_fast.metrics import psnr

SHIPPED = Path(__file__).parents[1] / "liif_fast" / "assets" / "edsr-small-liif.safetensors"
START, END = "<!-- begin:psnr -->", "<!-- end:psnr -->"


def to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


@torch.inference_mode()
def measure(model: Any, image: np.ndarray, scale: float) -> tuple[float, float]:
    """Return the PSNR in dB of the model and of bicubic interpolation for a uint8 image [H, W, 3]."""
    low_size = tuple(math.floor(side / scale + 1e-9) for side in image.shape[:2])
    size = tuple(round(side * scale) for side in low_size)
    high = image[: size[0], : size[1]]
    low = resize(np.ascontiguousarray(high), low_size)
    pred = model.predict(to_tensor(low), size).clamp(0, 1)
    kind, target = f"div2k-{math.ceil(scale)}", to_tensor(high)
    return psnr(pred, target, kind).item(), psnr(to_tensor(resize(low, size)), target, kind).item()


def table(results: list[dict[str, Any]], scales: list[float]) -> str:
    """Return a Markdown table of model / bicubic (gain) for every image and scale, and of the means."""
    rows = ["| photograph | " + " | ".join(f"x{s:g}" for s in scales) + " |", "|---" * (len(scales) + 1) + "|"]
    for name in [*dict.fromkeys(r["image"] for r in results), "mean"]:
        cells = []
        for scale in scales:
            own = [r for r in results if r["scale"] == scale and name in (r["image"], "mean")]
            model, bicubic = (sum(r[key] for r in own) / len(own) for key in ("model", "bicubic"))
            cells.append(f"{model:.2f} / {bicubic:.2f} ({model - bicubic:+.2f})")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=str(SHIPPED))
    parser.add_argument("--split", default="held-out", help="split of the natural-images dataset")
    parser.add_argument("--scales", type=float, nargs="+", default=[2, 3, 3.7, 4, 6])
    parser.add_argument("--crop", type=int, help="use only the middle of each photograph, with this side in pixels")
    parser.add_argument("--out", type=Path, help="JSON record")
    parser.add_argument("--table", type=Path, nargs="+", default=[], help=f"files with the lines {START} and {END}")
    args = parser.parse_args()

    model = load_model(args.model)
    dataset = make({"name": "natural-images", "args": {"split": args.split}})
    results = []
    for name, image in zip(dataset.names, dataset, strict=True):
        if args.crop:
            top, left = ((side - min(side, args.crop)) // 2 for side in image.shape[:2])
            image = image[top : top + args.crop, left : left + args.crop]
        for scale in args.scales:
            ours, bicubic = measure(model, image, scale)
            results.append({"image": name, "scale": scale, "model": round(ours, 4), "bicubic": round(bicubic, 4)})
            print(
                f"{name} x{scale:g}: {ours:.3f} dB, bicubic {bicubic:.3f}, gain {ours - bicubic:+.3f}", file=sys.stderr
            )
    text = table(results, args.scales)
    print(text)
    inside = [r["model"] - r["bicubic"] for r in results if 2 <= r["scale"] <= 4]
    if inside:
        print(f"\nx2 to x4: {sum(inside) / len(inside):+.3f} dB on average, {min(inside):+.3f} dB at worst")
    if args.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        record = {
            "what": "PSNR in dB over RGB, border of ceil(scale) + 6 left out",
            "model": Path(args.model).name,
            "version": __version__,
            "commit": commit,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "crop": args.crop,
            "results": results,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    for path in args.table:
        before, rest = path.read_text().split(START)
        path.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
