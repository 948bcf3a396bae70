"""Dead-leaves images: layers of random shapes that occlude one another, a substitute for photographs.

With radii distributed as r^-3 they have the scale invariance, edges and power spectrum of natural images (Lee, Mumford
and Huang, "Occlusion models for natural images", IJCV 2001). If the shapes also have textures and depth, restoration
networks trained on them come close to networks trained on photographs (Achddou et al., "Fully synthetic training for
image restoration tasks", CVIU 2023).
"""

import multiprocessing
import os
import sys
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader

from liif_fast.data.generated import Generated, generator
from liif_fast.data.loader import leave_signals, start
from liif_fast.data.registry import register

SHARE = 32  # a further process pays off for so many images
SUPERSAMPLE = 2  # images are drawn this many times larger and then reduced, so that edges are antialiased


def dead_leaves(size: int, seed: int, index: int = 0) -> np.ndarray:
    """Draw one dead-leaves image.

    Args:
        size: side of the square image in pixels, at least 16.
        seed: seed of the set of images, at least 0.
        index: number of the image in its set, at least 0.

    Returns:
        uint8 array [size, size, 3], RGB, a function of the arguments alone.

    Raises:
        ValueError: an argument is out of its range.
    """
    rng = generator(size, seed, index)
    n = size * SUPERSAMPLE
    painter = _Painter(rng, n)
    smallest = np.exp(rng.uniform(np.log(3.0), np.log(16.0)))
    painter.paint(smallest, coverage=3.0)
    if rng.random() < 0.5:  # depth: the shapes so far are out of focus, those that follow are not
        painter.blur(rng.uniform(0.5, 5.0))
        painter.paint(smallest * 2, coverage=rng.uniform(0.3, 0.9))
    image = Image.fromarray(painter.pixels())
    if rng.random() < 0.3:  # a slightly unsharp lens
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    filters = (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    return np.asarray(image.resize((size, size), filters[rng.integers(3)]))


def dead_leaves_set(count: int, size: int, seed: int) -> np.ndarray:
    """Draw the first images of a set, uint8 [count, size, size, 3]; on Linux several processes share a large set."""
    workers = 0
    # On other systems a process would import the caller's script, which may not be written for that.
    if sys.platform == "linux" and not multiprocessing.current_process().daemon:  # a daemon may not have children
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = min(cores, count // SHARE)
    draw, numbers = partial(dead_leaves, size, seed), cast(Any, range(count))
    options: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    own = torch.Generator()  # otherwise the loader would draw from the global one
    loader = DataLoader(numbers, None, collate_fn=draw, worker_init_fn=leave_signals, generator=own, **options)
    return np.stack(list(start(loader)))


class _Painter:
    """The canvas, the palette and the noise fields of one image."""

    def __init__(self, rng: Generator, n: int) -> None:
        self.rng, self.n = rng, n
        self.canvas: np.ndarray = np.empty((n, n, 3), np.float32)
        # Fields of noise with spectra 1/f^a, from grainy to cloudy; textures are crops of them.
        self.fields = [_noise(rng, n, slope) for slope in (rng.uniform(0.0, 0.8), rng.uniform(0.8, 1.5), 2.0)]
        self.brightness, self.contrast = rng.uniform(0.25, 0.75), rng.uniform(0.1, 0.35)
        self.saturation = rng.beta(1.2, 2.5)  # mostly muted images, a few with saturated colours
        self.hue, self.hues = rng.random(), rng.choice([0.05, 0.2, 1.0])
        self.textured = rng.uniform(0.4, 0.95)
        self.canvas[:] = self._colour()

    def paint(self, smallest: float, coverage: float) -> None:
        """Drop leaves on the canvas until their areas add up to `coverage` canvases."""
        largest, area, whole = float(self.n), 0.0, float(self.n * self.n)
        while area < coverage * whole:
            u = self.rng.random()
            radius = (largest**-2 + u * (smallest**-2 - largest**-2)) ** -0.5  # density proportional to r^-3
            area += np.pi * radius * radius
            self._leaf(radius)

    def blur(self, sigma: float) -> None:
        image = Image.fromarray(self.pixels()).filter(ImageFilter.GaussianBlur(sigma))
        self.canvas = np.asarray(image, np.float32) / 255

    def pixels(self) -> np.ndarray:
        return (self.canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)

    def _leaf(self, radius: float) -> None:
        rng, n = self.rng, self.n
        row, col = rng.uniform(-0.2 * radius, n + 0.2 * radius, 2)
        top, left = max(int(row - 1.3 * radius), 0), max(int(col - 1.3 * radius), 0)
        bottom, right = min(int(row + 1.3 * radius) + 2, n), min(int(col + 1.3 * radius) + 2, n)
        if top >= bottom or left >= right:
            return
        y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(row)
        x = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(col)
        inside = self._outline(y, x, radius, top, left)
        window = self.canvas[top:bottom, left:right]
        window[inside] = self._texture(y, x, radius, inside)

    def _outline(self, y: np.ndarray, x: np.ndarray, radius: float, top: int, left: int) -> np.ndarray:
        """Return the mask of a disc, an ellipse or a convex polygon, sometimes with a warped edge."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.3:
            distance = np.hypot(y, x)
        else:
            a, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 3.0)
            u = (np.cos(a) * x + np.sin(a) * y) / np.float32(stretch**0.5)
            v = (np.cos(a) * y - np.sin(a) * x) * np.float32(stretch**0.5)
            if kind < 0.45:
                distance = np.hypot(u, v)
            else:  # the largest distance to a side; rectangles stand for man-made objects
                sides = int(rng.integers(3, 8))
                angles = np.arange(sides) * (2 * np.pi / sides) + rng.uniform(-0.3, 0.3, sides) * (rng.random() < 0.7)
                distance = np.float32(-np.inf)
                for angle, reach in zip(angles, rng.uniform(0.6, 0.9, sides), strict=True):
                    distance = np.maximum(distance, (np.cos(angle) * u + np.sin(angle) * v) / np.float32(reach))
        if rng.random() < 0.3:
            bump = self.fields[2][top : top + y.shape[0], left : left + x.shape[1]]
            distance = distance * (1 + np.float32(rng.uniform(0.05, 0.25)) * bump)
        return distance < radius

    def _colour(self) -> np.ndarray:
        rng = self.rng
        hue = (self.hue + self.hues * rng.uniform(-0.5, 0.5)) * 6
        wheel = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
        value = np.clip(self.brightness + self.contrast * rng.normal(), 0.02, 1)
        return (value * (1 - np.clip(self.saturation * rng.uniform(0.3, 1.7), 0, 1) * (1 - wheel))).astype(np.float32)

    def _field(self, which: int, shape: tuple[int, ...]) -> np.ndarray:
        top, left = (int(self.rng.integers(0, self.n - s + 1)) for s in shape)
        return self.fields[which][top : top + shape[0], left : left + shape[1]]

    def _texture(self, y: np.ndarray, x: np.ndarray, radius: float, inside: np.ndarray) -> np.ndarray:
        """Return colours [pixels inside, 3]: flat, a gradient, noise, or two colours mixed by noise or warped waves."""
        rng = self.rng
        colour = self._colour()
        if rng.random() > self.textured:
            return np.broadcast_to(colour, (int(inside.sum()), 3))
        kind, angle = rng.integers(4), rng.uniform(0, 2 * np.pi)
        along = np.cos(angle).astype(np.float32) * x + np.sin(angle).astype(np.float32) * y
        other = self._colour() if rng.random() < 0.5 else colour * np.float32(rng.uniform(0.4, 1.6))
        if kind == 0:
            mix = along / np.float32(2 * radius) + 0.5
        elif kind == 1:
            mix = self._field(int(rng.integers(3)), inside.shape) * np.float32(rng.uniform(0.05, 0.4))
        else:
            wave = self._field(int(rng.integers(1, 3)), inside.shape) * np.float32(rng.uniform(0.5, 3.0))
            if kind == 2:  # stripes bent by noise
                period = np.exp(rng.uniform(np.log(5.0), np.log(60.0)))
                wave = np.sin(along * np.float32(2 * np.pi / period) + wave)
            sharpness = np.float32(np.exp(rng.uniform(np.log(0.5), np.log(8.0))))
            mix = 0.5 + 0.5 * np.tanh(sharpness * wave)
        shade = colour + mix[inside][:, None] * (other - colour)
        if rng.random() < 0.5:
            grain = self._field(int(rng.integers(2)), inside.shape)[inside][:, None]
            shade = shade * (1 + np.float32(rng.uniform(0.02, 0.2)) * grain)
        return shade


def _noise(rng: Generator, n: int, slope: float) -> np.ndarray:
    """Return Gaussian noise [n, n] with an amplitude spectrum of 1/f^slope, mean 0 and deviation 1."""
    f = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    f[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((n, n))) * f**-slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (n, n))
    return (field / field.std()).astype(np.float32)


@register("dead-leaves")
class DeadLeaves(Generated):
    """A set of dead-leaves images (256 x 256: 0.25 s of a core per image); arguments as `Generated`."""

    draw = staticmethod(dead_leaves)

    def _draw_all(self, count: int, size: int, seed: int) -> np.ndarray:
        return dead_leaves_set(count, size, seed)
