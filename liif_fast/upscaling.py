"""The main job: an image in, the same image at any larger size out.

The low-resolution image is encoded once, in tiles if it is large, and the output is rendered in strips of rows, so
that memory beyond the features and the output is bounded.
"""

import copy
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from liif_fast import backends
from liif_fast.encode import encode
from liif_fast.imageio import WHY_NOT_SMALLER, normalise
from liif_fast.models.base import FeatureModel
from liif_fast.models.checkpoint import DATA_NORM, load_model

MAX_PIXELS = 2**30  # of the output, which is held in memory
_STRIP_QUERIES = 2**17  # output pixels rendered at a time: enough for every core, a second or so of work on two

ImageLike = TypeVar("ImageLike", Image.Image, NDArray)
Progress = Callable[[str, int, int], None]
Region = tuple[int, int, int, int]
Restore = Callable[[NDArray], Image.Image | NDArray]


def upscale(
    image: ImageLike,
    model: FeatureModel | str | os.PathLike[str] | None = None,
    *,
    scale: float | None = None,
    size: tuple[int | None, int | None] | None = None,
    device: str | torch.device = "auto",
    backend: str | None = None,
    progress: Progress | None = None,
) -> ImageLike:
    """Upscale an image to any size with a LIIF model (LIIF, section 3).

    Colour, gray and alpha come out as they came in: mode, dtype, ICC profile. Gray goes through the model as three
    equal channels and their mean comes back. Alpha goes through it alone, like a gray image, and is kept within the
    range of the 3x3 input pixels around; the colour under fully transparent pixels is first replaced by that of the
    visible pixels next to it. So no hidden colour bleeds into the edges, and what was opaque stays opaque.

    Args:
        image: a PIL image, or an array [H, W], [H, W, 1], [H, W, 2] (gray, alpha), [H, W, 3] or [H, W, 4] of uint8,
            uint16, or floating point in [0, 1]. A PIL image is turned upright by its EXIF orientation; a palette
            image becomes RGB or RGBA, a 1-bit image L.
        model: a model (it is used as it is), the path of a checkpoint, or None for the model that ships with the
            package.
        scale: output size over input size, at least 1; each side is `round(side * scale)`.
        size: instead of scale, (width, height) in pixels, neither below the input's; one of them may be None, and
            then keeps the aspect.
        device: "auto" (where a given model is; else a GPU if there is one), "cpu", "cuda", "cuda:1", "mps".
        backend: which backend decodes; None leaves the choice to the model ("auto" unless set otherwise).
        progress: called as `progress(stage, done, total)` with stage "encode" (in tiles) and "render" (in rows).

    Returns:
        An image of the same kind; values are clamped to the range of the dtype and rounded to nearest.

    Raises:
        ValueError: a wrong shape, scale, size or device, or values outside [0, 1].
        TypeError: a dtype or an object that is no image.
        RuntimeError: the backend cannot run this model, or its output is not finite.
    """
    pixels, restore = _unpack(image)
    height, width = pixels.shape[:2]
    width_out, height_out = output_size((width, height), scale, size)
    net = resolve_model(model, device)
    out = np.empty((height_out, width_out, pixels.shape[2]), pixels.dtype)
    for top, rows in strips(pixels, net, (height_out, width_out), backend=backend, progress=progress):
        out[top : top + len(rows)] = rows
    return cast(ImageLike, restore(out))


def strips(
    pixels: NDArray,
    model: FeatureModel,
    size: tuple[int, int],
    *,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, NDArray]]:
    """Render an image to `size` strip by strip, from top to bottom.

    Args:
        pixels: [H, W, C], C = 1 to 4: gray or RGB, each with or without alpha; uint8, uint16, or floating point.
        model: a LIIF model; the work is done on its device.
        size: (height, width) of the output, pixels.
        backend: as in `upscale`.
        progress: as in `upscale`.

    Yields:
        (top, rows): the first row's index, and rows [h, width, C] in the dtype of `pixels`.
    """
    report = progress or (lambda stage, done, total: None)
    if backend not in (None, "auto", *backends.NAMES):
        raise ValueError(f"backend must be one of {', '.join(('auto', *backends.NAMES))}, got {backend!r}")
    colour, alpha = _split(pixels)
    with torch.inference_mode():
        planes = [colour]
        if alpha is not None and alpha.min() < alpha.max():
            planes = [_bleed(colour, alpha), alpha]
        layers = [_Layer(model, plane, backend, report) for plane in planes]
    height, width = size
    step = max(1, _STRIP_QUERIES // width)
    report("render", 0, height)
    for top in range(0, height, step):
        region = (top, 0, min(step, height - top), width)
        with torch.inference_mode():
            channels = layers[0].render(size, region)
            if colour.shape[1] == 1:
                channels = channels.mean(0, keepdim=True)
            if len(layers) == 2:
                assert alpha is not None
                opacity = layers[1].render(size, region).mean(0)
                channels = torch.cat([channels, _within_neighbours(opacity, alpha[0, 0], size, region)[None]])
            elif alpha is not None:  # the same everywhere
                channels = torch.cat([channels, alpha[0, :, :1, :1].to(channels).expand(1, *channels.shape[1:])])
            strip = _quantise(channels.permute(1, 2, 0), pixels.dtype)
        yield top, strip
        report("render", top + len(strip), height)


def output_size(
    size_in: tuple[int, int], scale: float | None = None, size: tuple[int | None, int | None] | None = None
) -> tuple[int, int]:
    """The output's (width, height) in pixels.

    Args:
        size_in: (width, height) of the input.
        scale: as in `upscale`.
        size: as in `upscale`.

    Raises:
        ValueError: both or none of scale and size; not finite, below the input, or more than `MAX_PIXELS`.
    """
    width, height = size_in
    if (scale is None) == (size is None):
        raise ValueError("exactly one of scale and size must be given")
    if scale is not None:
        check_scale(scale)
        if width * scale * height * scale <= 2 * MAX_PIXELS:  # else refused below, and perhaps beyond an int
            width_out, height_out = round(width * scale), round(height * scale)
        else:
            raise ValueError(f"scale {scale:g} makes too many pixels of {width}x{height}; the limit is {MAX_PIXELS}")
    else:
        assert size is not None
        if len(size) != 2 or size == (None, None) or any(side is not None and side < 1 for side in size):
            raise ValueError(f"size must be (width, height) in pixels, one of them may be None; got {size}")
        width_out = size[0] if size[0] is not None else max(1, round(width * cast(int, size[1]) / height))
        height_out = size[1] if size[1] is not None else max(1, round(height * cast(int, size[0]) / width))
    if width_out < width or height_out < height:
        raise ValueError(
            f"the output {width_out}x{height_out} is smaller than the input {width}x{height}: {WHY_NOT_SMALLER}"
        )
    if width_out * height_out > MAX_PIXELS:
        raise ValueError(f"the output {width_out}x{height_out} has more than {MAX_PIXELS} pixels")
    return width_out, height_out


def check_scale(scale: float) -> None:
    """Raise ValueError unless `scale` is a finite number of at least 1."""
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale}")
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale:g}")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale:g}: {WHY_NOT_SMALLER}")


def pick_device(name: str | torch.device) -> torch.device:
    """The device of that name, or for "auto" a GPU if there is one, else the CPU.

    Raises:
        ValueError: no such device, here or at all.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(name)!r} is not available: PyTorch {torch.__version__} finds no CUDA GPU")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(name)!r} is not available: there are {torch.cuda.device_count()} GPUs")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not available: PyTorch finds no Metal GPU")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {str(name)!r}")
    return device


def default_model_path() -> Path:
    """The checkpoint that ships with the package."""
    return Path(str(files("liif_fast"))) / "assets" / "edsr-small-liif.safetensors"


class _Layer:
    """One image of three channels in [0, 1], encoded, to be rendered strip by strip.

    Args:
        model: the model; a shallow copy keeps the features, so that the caller's model stays as it was.
        plane: `[1, 3 or 1, H, W]` in [0, 1]; one channel is given to the model three times.
        backend: as in `upscale`.
        report: as `progress` there.
    """

    def __init__(self, model: FeatureModel, plane: Tensor, backend: str | None, report: Progress) -> None:
        self.view = cast(Any, copy.copy(model))
        if backend is not None:
            self.view.backend = backend
        norm = getattr(model, "data_norm", DATA_NORM)
        parameter = next(model.parameters())
        inp = plane.expand(-1, 3, -1, -1).to(parameter.device)
        inp = ((inp - _per_channel(norm["inp"]["sub"], inp)) / _per_channel(norm["inp"]["div"], inp)).to(
            parameter.dtype
        )
        self.gt = norm["gt"]
        self.view.inp = inp
        self.view.feat = encode(self.view.encoder, inp, partial(report, "encode"))

    def render(self, size: tuple[int, int], region: Region) -> Tensor:
        """`[3, h, w]` float32, nominally in [0, 1] but not clamped."""
        pred = self.view.render_rgb(size, region).float()
        return (pred * _per_channel(self.gt["div"], pred) + _per_channel(self.gt["sub"], pred))[0]


def _per_channel(values: list[float], like: Tensor) -> Tensor:
    return like.new_tensor(values)[:, None, None]


def resolve_model(
    model: FeatureModel | str | os.PathLike[str] | None, device: str | torch.device = "auto"
) -> FeatureModel:
    """The model that `upscale` uses; arguments and errors as there."""
    if isinstance(model, nn.Module):
        if not isinstance(model, FeatureModel):
            raise TypeError(f"model must be a LIIF or MetaSR of liif_fast, got {type(model).__name__}")
        here = next(model.parameters()).device
        if device != "auto":
            asked = torch.empty(0, device=pick_device(device)).device  # "cuda" is the current GPU
            if asked != here:
                raise ValueError(f"the model is on {here}, not on {asked}: move it, or leave device at auto")
        return model
    loaded = load_model(default_model_path() if model is None else model, device=pick_device(device))
    if not isinstance(loaded, FeatureModel):
        raise ValueError(f"{model}: holds a {type(loaded).__name__}, expected a LIIF or MetaSR model")
    return loaded


def _split(pixels: NDArray) -> tuple[Tensor, Tensor | None]:
    """Colour `[1, 1 or 3, H, W]` and alpha `[1, 1, H, W]` or None, both float32 in [0, 1]."""
    top = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))[None] / top
    if pixels.shape[2] in (1, 3):
        return planes, None
    return planes[:, :-1], planes[:, -1:]


def _quantise(values: Tensor, dtype: np.dtype) -> NDArray:
    """Values in [0, 1], clamped, as an array of `dtype`, rounded to nearest."""
    if not values.isfinite().all():
        raise RuntimeError("the model's output has NaN or infinite values")
    values = values.clamp(0, 1)
    if dtype.kind != "f":
        values = (values * np.iinfo(dtype).max).round()
    return values.cpu().numpy().astype(dtype)


def _bleed(colour: Tensor, alpha: Tensor) -> Tensor:
    """Give fully transparent pixels the colour of the visible ones around, found on ever coarser grids.

    Args:
        colour: `[1, C, H, W]`.
        alpha: `[1, 1, H, W]`, not 0 everywhere.

    Returns:
        The colour, unchanged where alpha is not 0.
    """
    if alpha.min() > 0:
        return colour
    weight = F.avg_pool2d(alpha, 2, ceil_mode=True)
    coarse = F.avg_pool2d(colour * alpha, 2, ceil_mode=True) / weight.clamp_min(torch.finfo(torch.float32).tiny)
    filled = F.interpolate(_bleed(coarse, weight), size=colour.shape[2:], mode="bilinear")
    return torch.where(alpha > 0, colour, filled)


def _within_neighbours(values: Tensor, plane: Tensor, size: tuple[int, int], region: Region) -> Tensor:
    """Clamp rendered values to the range of the 3x3 pixels of the low-resolution plane around each of them.

    Args:
        values: `[h, w]`, the window `region` of an image of `size`.
        plane: `[H, W]`, what it was rendered from.
        size: (height, width) of the output.
        region: (top, left, height, width).
    """
    (height, width), (top, left, h, w) = plane.shape, region
    rows = (torch.arange(top, top + h) * 2 + 1) * height // (2 * size[0])
    cols = (torch.arange(left, left + w) * 2 + 1) * width // (2 * size[1])
    high = F.max_pool2d(plane[None, None], 3, 1, 1)[0, 0][rows][:, cols]
    low = -F.max_pool2d(-plane[None, None], 3, 1, 1)[0, 0][rows][:, cols]
    return torch.minimum(torch.maximum(values, low.to(values.device)), high.to(values.device))


def _unpack(image: Image.Image | NDArray) -> tuple[NDArray, Restore]:
    """Pixels `[H, W, C]`, and what makes the same kind of image of such an array."""
    if isinstance(image, Image.Image):
        upright = normalise(image)
        pixels = np.asarray(upright)
        kept = {key: value for key, value in upright.info.items() if key in ("icc_profile", "exif", "dpi")}
        restore: Restore = partial(_to_pil, info=kept)
    elif isinstance(image, np.ndarray):
        pixels = image
        if image.dtype.kind != "f" and not (image.dtype.kind == "u" and image.dtype.itemsize <= 2):
            raise TypeError(f"image must be uint8, uint16 or floating point, got {image.dtype}")
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 2, 3, 4)):
            raise ValueError(f"image must have shape [H, W] or [H, W, C] with C = 1 to 4, got {list(image.shape)}")
        if image.dtype.kind == "f" and image.size and not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(f"a floating point image must be in [0, 1], got {image.min():g} to {image.max():g}")
        restore = _squeeze if image.ndim == 2 else _same
    else:
        raise TypeError(f"image must be a PIL image or a numpy array, got {type(image).__name__}")
    if not pixels.size:
        raise ValueError(f"image must not be empty, got {pixels.shape[1]}x{pixels.shape[0]} pixels")
    return pixels.reshape(*pixels.shape[:2], -1), restore


def _same(pixels: NDArray) -> NDArray:
    return pixels


def _squeeze(pixels: NDArray) -> NDArray:
    return pixels[..., 0]


def _to_pil(pixels: NDArray, info: dict[str, Any]) -> Image.Image:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.info.update(info)
    return image
