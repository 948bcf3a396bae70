"""Render pages of text and line drawings, whose thin strokes photographs and dead leaves lack."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from liif_fast.data.datasets import _shipped
from liif_fast.data.generated import Generated, generator
from liif_fast.data.registry import register

SUPERSAMPLE = 4  # images are drawn this many times larger and then reduced, so that strokes are antialiased
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10"),
)
LETTERS = "etaoinshrdlucmfwypvbgkjqxz" * 6 + "ETAOINSHRDLUCMFWYPVBGKJQXZ" * 2 + "0123456789" * 2 + ".,;:-()!?%&/+="


def drawing(size: int, seed: int, index: int = 0) -> np.ndarray:
    """Draw a page of text, a line drawing, or both.

    Args:
        size, seed, index: as for `dead_leaves`.

    Returns:
        uint8 array [size, size, 3], RGB, a function of the arguments and the versions of Pillow and matplotlib.

    Raises:
        ValueError: an argument is out of its range.
        FileNotFoundError: matplotlib, which ships the fonts, is not installed.
    """
    rng = generator(size, seed, index)
    n = size * SUPERSAMPLE
    paper, ink = _colours(rng)
    image = Image.new("RGB", (n, n), paper)
    pen = ImageDraw.Draw(image)
    kind = rng.random()
    if kind > 0.55:
        _lines(rng, pen, n, ink)
    if kind < 0.7:
        _text(rng, pen, n, ink)
    if rng.random() < 0.3:  # a slightly unsharp scan or lens
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2) * SUPERSAMPLE))
    filters = (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    pixels = np.asarray(image.resize((size, size), filters[rng.integers(3)]), np.float32)
    if rng.random() < 0.3:  # uneven light
        slope = rng.uniform(-0.3, 0.3, 2) / size
        light = 1 + slope[0] * np.arange(size)[:, None] + slope[1] * np.arange(size)
        pixels = pixels * light[:, :, None] / max(light.max(), 1)
    return (pixels + 0.5).clip(0, 255).astype(np.uint8)


def _colours(rng: Generator) -> tuple[tuple[int, ...], Callable[[], tuple[int, ...]]]:
    """Return the paper's colour, and a function that draws the next ink's."""
    grey = int(rng.integers(215, 256))
    paper, ink = np.full(3, grey), np.full(3, int(rng.integers(0, 60)))
    if rng.random() < 0.3:
        paper = rng.integers(150, 256, 3)
    if rng.random() < 0.2:
        paper, ink = ink, paper
    coloured = rng.random() < 0.35

    def draw() -> tuple[int, ...]:
        return tuple(int(c) for c in (rng.integers(0, 256, 3) if coloured else ink))

    return tuple(int(c) for c in paper), draw


def _text(rng: Generator, pen: ImageDraw.ImageDraw, n: int, ink: Callable[[], tuple[int, ...]]) -> None:
    height = float(np.exp(rng.uniform(np.log(7), np.log(32))))  # of the font in pixels of the image
    top, left = (float(each) * SUPERSAMPLE for each in rng.uniform(-10, 20, 2))
    font, colour = _font(rng, height), ink()
    while top < n:
        if rng.random() < 0.15:
            font, colour = _font(rng, height), ink()
        words = ["".join(rng.choice(list(LETTERS), int(rng.integers(1, 10)))) for _ in range(int(260 / height))]
        pen.text((left, top), " ".join(words), fill=colour, font=font)
        top += height * SUPERSAMPLE * float(rng.uniform(1.1, 1.5))


def _font(rng: Generator, height: float) -> ImageFont.FreeTypeFont:
    path = _shipped("matplotlib", f"mpl-data/fonts/ttf/{FONTS[rng.integers(len(FONTS))]}.ttf")
    return ImageFont.truetype(str(path), height * SUPERSAMPLE)


def _lines(rng: Generator, pen: ImageDraw.ImageDraw, n: int, ink: Callable[[], tuple[int, ...]]) -> None:
    """Draw strokes, polygons, ellipses, curves, and sometimes a bundle of parallels."""
    for _ in range(int(rng.integers(8, 50))):
        width = max(1, round(float(np.exp(rng.uniform(np.log(0.6), np.log(6)))) * SUPERSAMPLE))
        colour, kind = ink(), rng.random()
        points = rng.uniform(-0.1, 1.1, (int(rng.integers(2, 6)), 2)) * n
        if kind < 0.3:
            pen.line([tuple(point) for point in points], fill=colour, width=width, joint="curve")
        elif kind < 0.5:
            half = np.abs(points[1] - n / 2) * rng.uniform(0.05, 0.8)
            fill = ink() if rng.random() < 0.2 else None
            pen.ellipse([*(points[0] - half), *(points[0] + half)], outline=colour, width=width, fill=fill)
        elif kind < 0.65:
            fill = ink() if rng.random() < 0.3 else None
            corners = points[0] + (rng.uniform(-0.25, 0.25, (int(rng.integers(3, 6)), 2)) * n)
            pen.polygon([tuple(corner) for corner in corners], outline=colour, width=width, fill=fill)
        elif kind < 0.9:  # a Bezier curve of four points
            t = np.linspace(0, 1, 64)[:, None]
            a, b, c, d = rng.uniform(-0.1, 1.1, (4, 2)) * n
            curve = a * (1 - t) ** 3 + 3 * b * t * (1 - t) ** 2 + 3 * c * t * t * (1 - t) + d * t**3
            pen.line([tuple(point) for point in curve], fill=colour, width=width, joint="curve")
        else:
            step = (points[1] - points[0]) / n * width * rng.uniform(1.5, 6)
            along = np.array([-step[1], step[0]]) * rng.uniform(5, 40)
            for number in range(int(rng.integers(4, 30))):
                start = points[0] + number * step
                pen.line([*start, *(start + along)], fill=colour, width=width)


@register("drawings")
class Drawings(Generated):
    """A set of pages and line drawings (256 x 256: 0.15 s of a core per image); arguments as `Generated`.

    Raises:
        FileNotFoundError: matplotlib, which ships the fonts, is not installed.
    """

    draw = staticmethod(drawing)
