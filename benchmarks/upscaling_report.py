"""Make the figures and pictures of docs/upscaling.md and the output of `verify` in docs/backends.md.

    python -m benchmarks.upscaling_report [--check]

Speed and memory of each output are measured in a process of its own. With --check everything is smaller and goes to
--out instead of the documents, to test the script.
"""

import argparse
import contextlib
import io
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont

import liif_fast
from liif_fast.cli import main as command
from liif_fast.devices import cpu_name
from liif_fast.models.catalogue import shipped_model
from liif_fast.upscaling import upscale

ROOT = Path(__file__).resolve().parents[1]
PHOTO = shipped_model().parent / "chelsea.png"
EYE = (62, 36, 132, 88)  # left, top, right, bottom in the photograph, shown by the pictures
RATIOS = (1.5, 2, 3.7, 6, 12)
VERIFY = ["verify", "edsr-small-liif"]

# The process of one output: it prints the seconds of the upscaling without Python's start, and the peak memory.
CHILD = """
import json, resource, sys, time
from liif_fast.models.catalogue import resolve_model
from liif_fast.upscaling import upscale_file
source, target, scale = sys.argv[1:]
model = resolve_model(None, "cpu")
start = time.perf_counter()
upscale_file(source, target, model, scale=float(scale))
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def main() -> None:
    """Make all figures and pictures, or with --check a small one of each kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="make small ones in --out, to test the script")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder for --check (default: out)")
    args = parser.parse_args()
    photo = Image.open(PHOTO).convert("RGB")
    model = liif_fast.load_model(shipped_model())
    if args.check:
        args.out.mkdir(parents=True, exist_ok=True)
        photo = photo.crop((*EYE[:2], EYE[0] + 24, EYE[1] + 20))
        pictures, eye, runs = args.out, (4, 2, 20, 16), [((40, 30), 2.0)]
    else:
        pictures, eye = ROOT / "docs" / "images", EYE
        runs = [((500, 333), 2.0), ((500, 333), 4.0), ((2000, 1333), 2.0), ((5000, 5000), 2.0)]

    ratios(photo, model, eye).save(pictures / "upscaling-ratios.png", optimize=True)
    tiles(photo, model).save(pictures / "upscaling-tiles.png", optimize=True)
    text = "\n\n".join([origin(), speed(photo, runs), precision(photo, model), tile_sizes(photo, model)])
    if args.check:
        photo.save(args.out / "photo.png")
        lead = verify([str(args.out / "photo.png"), "--turns", "1", "--scale", "2"])
        (args.out / "figures.md").write_text(f"{text}\n\n{lead}\n")
    else:
        fill(ROOT / "docs" / "upscaling.md", "figures", text)
        fill(ROOT / "docs" / "backends.md", "verify", verify(["--turns", "5"]))


def fill(path: Path, name: str, text: str) -> None:
    """Replace the text between a document's two comments of that name."""
    start, end = f"<!-- begin:{name} -->", f"<!-- end:{name} -->"
    before, rest = path.read_text(encoding="utf-8").split(start)
    path.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def origin() -> str:
    """Return a description of the machine for the figures."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    return (
        f"Measured on {cpu_name()}, {torch.get_num_threads()} threads, {platform.system()}, torch {torch.__version__}, "
        f"liif_fast {liif_fast.__version__} at {commit.strip() or 'an unknown commit'}, {time.strftime('%Y-%m-%d')}. "
        "The shipped model, in float32 where nothing else is said."
    )


def speed(photo: Image.Image, runs: list[tuple[tuple[int, int], float]]) -> str:
    """Measure time and peak memory of whole files, PNG to PNG."""
    lines = [
        "| input | ratio | output | time | output pixels a second | peak memory of the process |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.png", Path(folder) / "out.png"
        for size, scale in runs:
            photo.resize(size, Image.Resampling.BICUBIC).save(source)
            done = subprocess.run(
                [sys.executable, "-c", CHILD, source, target, str(scale)],
                capture_output=True,
                text=True,
                check=True,
                cwd=ROOT,
            )
            measured = json.loads(done.stdout)
            with Image.open(target) as out:
                width, height = out.size
            lines.append(
                f"| {size[0]}x{size[1]} | x{scale:g} | {width}x{height} | {measured['seconds']:.1f} s | "
                f"{width * height / measured['seconds'] / 1e3:.0f} k | {measured['peak'] / 2**20:.0f} MiB |"
            )
    return "\n".join(lines)


def precision(photo: Image.Image, model: torch.nn.Module) -> str:
    """Measure how far lower precisions are from float32 on this CPU."""
    exact = np.asarray(upscale(photo, model, scale=2), int)
    lines = [
        "| precision | pixels that differ after rounding to 8 bits | largest difference, levels |",
        "|---|---|---|",
    ]
    for name in ("bf16", "fp16"):
        difference = np.abs(np.asarray(upscale(photo, model, scale=2, precision=name), int) - exact)
        lines.append(f"| {name} | {(difference > 0).mean():.2%} | {difference.max()} |")
    return "\n".join(lines)


def tile_sizes(photo: Image.Image, model: torch.nn.Module) -> str:
    """Measure how much tiled encoding differs from whole encoding in floating point, before rounding to 8 bits."""
    image = np.asarray(photo, np.float32) / 255
    whole = upscale(image, model, scale=2)
    lines = ["| tile | largest difference from the untiled output, of a range of 1 |", "|---|---|"]
    for tile in (32, 64, 128):
        lines.append(f"| {tile} | {np.abs(upscale(image, model, scale=2, tile=tile) - whole).max():.1e} |")
    return "\n".join(lines)


def verify(options: list[str]) -> str:
    """Return the output of `liif-fast verify` for docs/backends.md."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = command([*VERIFY, *options])
    if code != 0:
        raise SystemExit(f"liif-fast verify failed:\n{out.getvalue()}")
    return f"```text\n$ liif-fast {' '.join(VERIFY)}\n{out.getvalue()}```"


def ratios(photo: Image.Image, model: torch.nn.Module, box: tuple[int, int, int, int]) -> Image.Image:
    """Draw a column per ratio: the same crop by Pillow's bicubic filter above ours, all at one size."""
    width, height, bar, gap = 4 * (box[2] - box[0]), 4 * (box[3] - box[1]), 22, 6
    sheet = Image.new("RGB", (len(RATIOS) * (width + gap) - gap, 2 * (height + bar)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, scale in enumerate(RATIOS):
        ours = upscale(photo, model, scale=scale)
        bicubic = photo.resize(ours.size, Image.Resampling.BICUBIC)
        for row, (name, image) in enumerate((("bicubic", bicubic), ("liif_fast", ours))):
            crop = image.crop(tuple(round(side * scale) for side in box))
            # Nearest if enlarged, because a second interpolation would hide the pixels.
            how = Image.Resampling.NEAREST if scale <= 4 else Image.Resampling.BOX
            at = column * (width + gap), row * (height + bar)
            sheet.paste(crop.resize((width, height), how), (at[0], at[1] + bar))
            draw.text((at[0] + 2, at[1] + 2), f"{name} x{scale:g}", fill="black", font=font)
    return sheet


def tiles(photo: Image.Image, model: torch.nn.Module) -> Image.Image:
    """Draw tiles of 32 with and without the necessary overlap, and their differences from the whole, x 64."""
    tile, scale = 32, 2
    whole = upscale(photo, model, scale=scale)
    tiled = upscale(photo, model, scale=scale, tile=tile)
    radius = model.encoder.receptive_radius
    model.encoder.receptive_radius = 0
    try:
        bare = upscale(photo, model, scale=scale, tile=tile)
    finally:
        model.encoder.receptive_radius = radius
    bar, gap = 22, 6
    sheet = Image.new("RGB", (2 * whole.width + gap, 2 * (whole.height + bar)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    parts = [
        ("tiles of 32 with the overlap that the encoder needs", tiled),
        ("tiles of 32 without overlap", bare),
        ("their difference from the untiled output, x 64", amplified(tiled, whole)),
        ("their difference from the untiled output, x 64", amplified(bare, whole)),
    ]
    for index, (label, image) in enumerate(parts):
        at = index % 2 * (whole.width + gap), index // 2 * (whole.height + bar)
        sheet.paste(image, (at[0], at[1] + bar))
        draw.text((at[0] + 2, at[1] + 2), label, fill="black", font=font)
    return sheet


def amplified(one: Image.Image, other: Image.Image) -> Image.Image:
    """Return the absolute difference, 64 times as large."""
    return ImageChops.difference(one, other).point(lambda level: min(64 * level, 255))


if __name__ == "__main__":
    main()
