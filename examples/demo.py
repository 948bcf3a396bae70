"""Upscale the bundled photograph to several sizes, compare with bicubic, and time the kernels.

    python examples/demo.py [--out FOLDER] [--image FILE]

Writes a PNG for each size and `compare.png`. Prints the time, the queries (output pixels) per second, and the ratio to
the plain formula (the `reference` backend). The two take turns in this run, on a window of the x3.7 image.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import liif_fast
from liif_fast.images import read_rgb, write_image
from liif_fast.models.catalogue import shipped_model
from liif_fast.upscaling import upscale

PHOTO = Path(liif_fast.__file__).parent / "assets" / "chelsea.png"
SIZES: list[tuple[str, dict]] = [
    ("x2", {"scale": 2}),
    ("x3.7", {"scale": 3.7}),
    ("x6", {"scale": 6}),
    ("1000 wide", {"size": (1000, None)}),
]
WINDOW = (170, 240, 64, 256)  # top, left, height, width of the pixels on which the backends are compared
EYE = (62, 36, 132, 88)  # left, top, right, bottom in the bundled photograph, shown by compare.png
TURNS = 5


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the pictures (default: out)")
    parser.add_argument("--image", type=Path, default=PHOTO, help="another image than the bundled one")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    photo = Image.fromarray(read_rgb(args.image))
    model = liif_fast.load_model(shipped_model())
    print(
        f"{args.image.name}, {photo.width}x{photo.height}; model {shipped_model().name}; "
        f"{torch.get_num_threads()} threads"
    )
    upscale(photo.crop((0, 0, 16, 16)), model, scale=2)  # warm up

    results = {}
    for name, target in SIZES:
        clock = Clock()
        result = upscale(photo, model, progress=clock, **target)
        path = args.out / f"{args.image.stem}-{name.replace(' ', '-')}.png"
        write_image(result, path)
        results[name] = result
        queries = result.width * result.height
        print(
            f"  {name:<10}{result.width}x{result.height}: encoded in {clock.seconds('encode'):.2f} s, decoded in "
            f"{clock.seconds('render'):.2f} s ({queries / clock.seconds('render') / 1e3:.0f} k queries/s)  {path}"
        )

    compare_backends(model, photo, results["x3.7"].size)
    box = EYE if args.image == PHOTO else middle(photo.size)
    path = args.out / "compare.png"
    write_image(side_by_side(photo, {name: results[name] for name in ("x3.7", "x6")}, box), path)
    print(f"bicubic beside liif_fast: {path}")


class Clock:
    """Record when each stage of a progress callback began and ended."""

    def __init__(self) -> None:
        self.times: dict[str, tuple[float, float]] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        first, _ = self.times.get(stage, (now, now))
        self.times[stage] = first, now

    def seconds(self, stage: str) -> float:
        """Return the time from the stage's first call to its last."""
        first, last = self.times[stage]
        return last - first


@torch.inference_mode()
def compare_backends(model: torch.nn.Module, photo: Image.Image, size: tuple[int, int]) -> None:
    """Time the chosen backend and the reference on one window, in turns, and print the medians."""
    pixels = torch.frombuffer(bytearray(photo.tobytes()), dtype=torch.uint8)
    inp = pixels.reshape(1, photo.height, photo.width, 3).permute(0, 3, 1, 2) / 127.5 - 1
    model.gen_feat(inp)
    grid = size[1], size[0]
    top, left = min(WINDOW[0], grid[0] - 1), min(WINDOW[1], grid[1] - 1)
    window = top, left, min(WINDOW[2], grid[0] - top), min(WINDOW[3], grid[1] - left)
    queries = window[2] * window[3]
    seconds: dict[str, list[float]] = {"auto": [], "reference": []}
    outputs = {}
    for turn in range(TURNS + 1):
        for backend, taken in seconds.items():
            model.backend = backend
            start = time.perf_counter()
            outputs[backend] = model.render_rgb(grid, window)
            if turn > 0:  # the first is a warm-up
                taken.append(time.perf_counter() - start)
    model.backend = "auto"
    fast, plain = (statistics.median(taken) for taken in seconds.values())
    error = (outputs["auto"] - outputs["reference"]).abs().max().item()
    print(
        f"one window of {queries} queries: {queries / fast / 1e3:.0f} k queries/s, reference "
        f"{queries / plain / 1e3:.0f} k queries/s: {plain / fast:.1f} times as fast, largest difference {error:.0e}"
    )


def middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a box of EYE's size, or as much of it as fits, in the middle of an image."""
    width, height = min(EYE[2] - EYE[0], size[0]), min(EYE[3] - EYE[1], size[1])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def side_by_side(photo: Image.Image, results: dict[str, Image.Image], box: tuple[int, int, int, int]) -> Image.Image:
    """Draw a row for each result: the same crop of PIL's bicubic and of ours, at the size of the largest."""
    bar, gap = 30, 8
    largest = max(result.width for result in results.values()) / photo.width
    width, height = round((box[2] - box[0]) * largest), round((box[3] - box[1]) * largest)
    sheet = Image.new("RGB", (2 * width + gap, len(results) * (height + bar)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    for row, (name, result) in enumerate(results.items()):
        s = result.width / photo.width
        bicubic = photo.resize(result.size, Image.Resampling.BICUBIC)
        y = row * (height + bar)
        for x, label, image in (
            (0, f"bicubic {name}", bicubic),
            (width + gap, f"liif_fast {name}", result.convert("RGB")),
        ):
            crop = image.crop(tuple(round(side * s) for side in box))
            # Nearest, because a second interpolation would hide the pixels.
            sheet.paste(crop.resize((width, height), Image.Resampling.NEAREST), (x, y + bar))
            draw.text((x + 4, y + 3), label, fill="black", font=font)
    return sheet


if __name__ == "__main__":
    main()
