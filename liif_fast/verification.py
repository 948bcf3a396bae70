"""Compare a checkpoint's plain formula with every available backend: error, PSNR, time and memory.

Two parts are compared. The decoder runs on features computed once. The whole model runs by `liif_fast.upscale_strips`,
and as the plain formula, which encodes the image as a whole and decodes by `reference`.
"""

import ctypes
import gc
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from liif_fast import backends
from liif_fast.images import read_rgb
from liif_fast.models.base import FeatureModel
from liif_fast.models.catalogue import resolve_model
from liif_fast.upscaling import upscale_strips

TOLERANCE = 1e-5  # relative to the largest output, in float32; the promise of docs/backends.md
PSNR_TOLERANCE = 0.005  # dB
LARGEST = 320  # pixels per side of the compared image; a larger one is cropped to its middle
SMALLEST = 8  # pixels per side of the reduced image
PLAIN = "plain"

_CLEAR_REFS = Path("/proc/self/clear_refs")


class Row(NamedTuple):
    """The measurements of one backend on one part.

    Args:
        part: "decoder" or "whole model".
        name: PLAIN or a backend.
        error: largest difference from the plain formula, relative to its largest output.
        psnr: in dB, against the original image.
        seconds: median time.
        ratio: the plain formula's time relative to this one; median over rounds in which each took a turn.
        memory: bytes by which memory peaked above its level before; None if that cannot be measured.
        refused: why the backend does not run this part; the other fields then mean nothing.
    """

    part: str
    name: str
    error: float = 0.0
    psnr: float = math.nan
    seconds: float = math.nan
    ratio: float = 1.0
    memory: int | None = None
    refused: str = ""


class Report(NamedTuple):
    """The rows of both parts.

    Args:
        rows: the plain formula comes first in each part.
        size_in: (width, height) of the reduced image.
        size_out: (width, height) of the enlarged one.
    """

    rows: tuple[Row, ...]
    size_in: tuple[int, int]
    size_out: tuple[int, int]

    def disagreements(self) -> list[str]:
        """Return a line for each broken promise."""
        found = []
        for row in self.rows:
            if row.refused:
                continue
            plain = self.plain(row.part)
            if not row.error <= TOLERANCE:
                found.append(f"{row.part}, {row.name}: an error of {row.error:.1e}, allowed are {TOLERANCE:.0e}")
            elif not abs(row.psnr - plain.psnr) <= PSNR_TOLERANCE:
                found.append(f"{row.part}, {row.name}: {row.psnr - plain.psnr:+.4f} dB, allowed are {PSNR_TOLERANCE}")
        return found

    def plain(self, part: str) -> Row:
        """Return the plain formula's row of a part."""
        return next(row for row in self.rows if row.part == part and row.name == PLAIN)


def verify(
    model: FeatureModel, image: str | os.PathLike[str], scale: float = 4.0, turns: int = 5, names: tuple[str, ...] = ()
) -> Report:
    """Compare a model's backends with its plain formula on an image that is reduced and enlarged again.

    Args:
        model: float32, on the device to compare on.
        image: the original that outputs are scored against; a large image is cropped to its middle.
        scale: factor of the reduction by Pillow's bicubic filter, above 1.
        turns: number of timed runs of each backend, interleaved, after one untimed run.
        names: backends; empty means all except the plain formula.

    Returns:
        A `Report`.

    Raises:
        ImageFileError: the image cannot be read.
        ValueError: the image is too small for the scale, scale is not above 1, or the model takes neither gray nor RGB.
        RuntimeError: the plain formula gives NaN or infinite values.
    """
    if not scale > 1 or not math.isfinite(scale):
        raise ValueError(f"scale must be above 1, got {scale:g}")
    model = resolve_model(model)
    original, reduced = _pair(image, scale, model.channels_in)
    device, norm = next(model.parameters()).device, model.norm()
    low = torch.from_numpy(reduced.transpose(2, 0, 1).copy())[None].to(device)
    size = original.shape[:2]
    view: Any = model

    def decode(name: str) -> Tensor:
        view.backend = name
        return view.render_rgb(size)

    def plain() -> Tensor:
        view.backend = "reference"
        return view.predict(low, size).clamp(0, 1).cpu()

    def whole(name: str) -> Tensor:
        made = list(upscale_strips(reduced, model, size=(size[1], size[0]), backend=name))
        return torch.from_numpy(np.concatenate(made).transpose(2, 0, 1))[None]

    names = names or tuple(name for name in backends.NAMES if name != "reference")
    before = view.backend, view.feat, view.inp
    target = torch.from_numpy(original.transpose(2, 0, 1).copy())[None]
    try:
        # With TF32 the encoder's rounding errors would exceed the differences between backends.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            view.gen_feat(norm.inp(low))
            score = partial(_psnr, target=target)

            def decoded(out: Tensor) -> float:
                return score(norm.image(out).clamp(0, 1).cpu())

            rows = _compare("decoder", lambda: decode("reference"), decode, names, decoded, turns, device)
            rows += _compare("whole model", plain, whole, names, score, turns, device)
    finally:
        view.backend, view.feat, view.inp = before
    return Report(tuple(rows), (reduced.shape[1], reduced.shape[0]), (size[1], size[0]))


def _compare(
    part: str,
    plain: Callable[[], Tensor],
    other: Callable[[str], Tensor],
    names: tuple[str, ...],
    score: Callable[[Tensor], float],
    turns: int,
    device: torch.device,
) -> list[Row]:
    runs: dict[str, Callable[[], Tensor]] = {PLAIN: plain}
    refused: dict[str, str] = {}
    expected = plain()
    if not expected.isfinite().all():
        raise RuntimeError("the plain formula gives NaN or infinite values: the model is damaged")
    largest = float(expected.abs().max()) or 1.0  # if the model gives 0 everywhere, the error is absolute
    results = {PLAIN: (0.0, score(expected))}
    for name in names:
        try:
            out = other(name)
        except RuntimeError as error:
            if "cannot run" not in str(error):
                raise
            refused[name] = str(error).split(": ", 1)[-1]
            continue
        difference = (out.double() - expected.to(out.device).double()).abs().max()
        results[name] = (float(difference) / largest if out.isfinite().all() else math.inf, score(out))
        runs[name] = partial(other, name)
    del expected
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            seconds[name].append(_timed(run, device))
    memory = {name: _peak(run, device) for name, run in runs.items()}

    def ratio(name: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[PLAIN], seconds[name], strict=True))

    return [
        Row(part, name, *results[name], statistics.median(seconds[name]), ratio(name), memory[name])
        if name in runs
        else Row(part, name, refused=refused[name])
        for name in (PLAIN, *names)
    ]


def _pair(image: str | os.PathLike[str], scale: float, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the original `[H, W, channels]` and its reduction, float32 in [0, 1]."""
    if channels not in (1, 3):
        raise ValueError(f"model must take gray or RGB photographs, it has {channels} channels")
    photo = Image.fromarray(read_rgb(image)).convert("RGB" if channels == 3 else "L")
    width, height = (min(side, LARGEST) for side in photo.size)
    small = int(width / scale), int(height / scale)
    if min(small) < SMALLEST:
        raise ValueError(
            f"{image}: {photo.width}x{photo.height} reduced by {scale:g} must keep {SMALLEST} pixels a side; "
            "take a larger image or a smaller scale"
        )
    width, height = (min(round(side * scale), limit) for side, limit in zip(small, (width, height), strict=True))
    left, top = (photo.width - width) // 2, (photo.height - height) // 2
    photo = photo.crop((left, top, left + width, top + height))
    reduced = photo.resize(small, Image.Resampling.BICUBIC)
    original, low = (
        np.asarray(each, np.float32).reshape(each.height, each.width, channels) / 255 for each in (photo, reduced)
    )
    return original, low


def _psnr(pred: Tensor, target: Tensor) -> float:
    return -10 * math.log10(max(float((pred.double() - target.double()).square().mean()), 1e-12))


def _timed(run: Callable[[], Tensor], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _peak(run: Callable[[], Tensor], device: torch.device) -> int | None:
    """Return by how many bytes memory peaks during a call above its level before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        run()
        _synchronise(device)
        return torch.cuda.max_memory_allocated(device) - start
    if device.type != "cpu":
        return None
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    try:
        if libc is not None and hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)  # memory freed by earlier calls would hide this one's
        _CLEAR_REFS.write_text("5")  # resets the peak
        start = _resident("VmRSS")
        run()
        return max(_resident("VmHWM") - start, 0)
    except OSError:  # not Linux, or not allowed
        return None


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
