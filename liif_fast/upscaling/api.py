"""`upscale` an image, a file, or strip by strip."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from liif_fast.images import (
    Colour,
    Format,
    Part,
    Picture,
    check_content,
    check_output,
    flat_channels,
    flatten,
    mode_of,
    normalise,
    open_picture,
    parse_colour,
    tuned,
    write_strips,
)
from liif_fast.images.exif import resized
from liif_fast.images.picture import DRAWN
from liif_fast.models.base import FeatureModel
from liif_fast.models.catalogue import resolve_model
from liif_fast.models.tiles import TILE
from liif_fast.upscaling.choice import chosen
from liif_fast.upscaling.features import input_window
from liif_fast.upscaling.options import Options, Progress
from liif_fast.upscaling.sizes import MAX_FILE_PIXELS, MAX_PIXELS, Frame, frame
from liif_fast.upscaling.strips import check_image, render_strips
from liif_fast.window import TURNS, Window, union, window_after

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("liif_fast.upscaling")

ImageLike = TypeVar("ImageLike", Image.Image, NDArray)
Restore = Callable[[NDArray], Image.Image | NDArray]
Model = FeatureModel | str | os.PathLike[str] | None


def upscale(
    image: ImageLike,
    model: Model = None,
    *,
    scale: float | None = None,
    size: tuple[int | None, int | None] | None = None,
    region: Window | None = None,
    device: "str | torch.device" = "auto",
    backend: str | None = None,
    precision: str = "float32",
    tile: int = TILE,
    progress: Progress | None = None,
    self_ensemble: bool = False,
) -> ImageLike:
    """Upscale an image to any size with a LIIF model (LIIF, section 3).

    Colour, gray and alpha come out as they came in: mode, dtype, ICC profile, EXIF data (with the new size). Gray goes
    through the model as three equal channels and their mean comes back; so does RGB where R, G and B are equal in every
    visible pixel of the whole input. Alpha goes through it alone, like a gray image, and is kept within the range of
    the 3x3 input pixels around; where the nearest input pixel and the bicubic interpolation both are 0, or both 1, so
    is it. The colour under fully transparent pixels is first replaced by that of the visible pixels next to it. So no
    hidden colour bleeds into the edges, nothing appears outside an outline, and what was opaque stays opaque.

    Args:
        image: a PIL image, or an array [H, W], [H, W, 1], [H, W, 2] (gray, alpha), [H, W, 3] or [H, W, 4] of uint8,
            uint16, or floating point in [0, 1]. A PIL image is turned upright by its EXIF orientation; a palette
            image becomes RGB or RGBA, a 1-bit image L, either with a logged notice. For a model of neither 1 nor 3
            channels an array [H, W, C] of that many, without alpha.
        model: a model (it is used as it is), the path or name of a checkpoint, or None for the one of the package's
            models that `choose` takes. A model of 1 channel takes gray images.
        scale: output size over input size, at least 1; each side is `round(side * scale)`.
        size: instead of scale, (width, height) in pixels, neither below the input's; one of them may be None, and
            then keeps the aspect.
        region: (top, left, height, width) in pixels of the output: only this window of it is made, with the values that
            it has in the whole.
        device: "auto" (where a given model is; else a GPU if there is one), "cpu", "cuda", "cuda:1", "mps".
        backend: which backend decodes; None leaves the choice to the model ("auto" unless set otherwise).
        precision: "float32", or "bf16" or "fp16" for the encoder and the decoder; where the result is not
            finite, float32 is used from there on, with a notice.
        tile: largest side of the tiles in which the image is encoded, pixels. It changes the result by rounding alone.
        progress: called as `progress(stage, done, total)` with stage "encode" (in input pixels) and "render" (in rows).
        self_ensemble: the mean over the eight turns of the image (EDSR, section 3.4): eight times the work, a little
            sharper. The output is held in floating point.

    Returns:
        An image of the same kind; values are clamped to the range of the dtype and rounded to nearest.

    Raises:
        ValueError: a wrong shape, scale, size, region or device, or values outside [0, 1].
        TypeError: a dtype or an object that is no image.
        RuntimeError: the backend cannot run this model, or its output is not finite.
    """
    pixels, restore = _unpack(image)
    options = Options(backend, precision, tile, progress, self_ensemble)
    wanted = frame(pixels.shape[1::-1], scale, size, region, MAX_PIXELS)
    rendered = _strips(pixels, resolve_model(chosen(model, image), device), wanted, options)
    out = np.empty(rendered.shape, rendered.dtype)
    top = 0
    for rows in rendered:
        out[top : top + len(rows)] = rows
        top += len(rows)
    return cast(ImageLike, restore(out))


class Strips:
    """An upscaled image that is made while it is read: iterate over it once, for its rows from top to bottom.

    Attributes:
        shape: (height, width, channels) of the whole.
        dtype: of the strips, arrays [rows, width, channels].
    """

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype, made: Iterator[NDArray]) -> None:
        self.shape, self.dtype, self._made = shape, dtype, made

    def __iter__(self) -> Iterator[NDArray]:
        return self._made


def upscale_strips(
    image: Image.Image | NDArray,
    model: Model = None,
    *,
    scale: float | None = None,
    size: tuple[int | None, int | None] | None = None,
    region: Window | None = None,
    device: "str | torch.device" = "auto",
    backend: str | None = None,
    precision: str = "float32",
    tile: int = TILE,
    progress: Progress | None = None,
    self_ensemble: bool = False,
) -> Strips:
    """Upscale an image, strip by strip, so that the whole output never is in memory.

    Args:
        image, model, scale, size, region, device, backend, precision, tile, progress, self_ensemble: as for `upscale`.
            Of a PIL image only the pixels come back, as an array.

    Returns:
        `Strips`, with the output's shape and dtype; nothing is computed before it is iterated over.

    Raises:
        ValueError, TypeError: as `upscale`, at once; RuntimeError: while iterating.
    """
    pixels, _ = _unpack(image)
    options = Options(backend, precision, tile, progress, self_ensemble)
    wanted = frame(pixels.shape[1::-1], scale, size, region, MAX_FILE_PIXELS)
    return _strips(pixels, resolve_model(chosen(model, image), device), wanted, options)


def upscale_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    model: Model = None,
    *,
    scale: float | None = None,
    size: tuple[int | None, int | None] | None = None,
    region: Window | None = None,
    device: "str | torch.device" = "auto",
    backend: str | None = None,
    precision: str = "float32",
    tile: int = TILE,
    progress: Progress | None = None,
    self_ensemble: bool = False,
    quality: int | None = None,
    lossless: bool = False,
    background: str | Sequence[int] | None = None,
) -> None:
    """Upscale an image file into another, strip by strip; `target` is the whole new file or what it was before.

    Args:
        source: the image file; see `liif_fast.images.read_image`. For a region only the part of it is decoded that the
            model sees, where the file and the model allow that.
        target: the file to write; its extension names the format. PNG, TIFF, PPM and PGM are written while they are
            made; for the other formats the output is first collected in memory.
        model, scale, size, region, device, backend, precision, tile, progress, self_ensemble: as for `upscale`.
        quality: of JPEG, WebP and AVIF, 1 to 100; None is 95, 95 and 90.
        lossless: keep every pixel in WebP, as PNG, TIFF, BMP, PPM and PGM always do; others are refused.
        background: an opaque colour, as "white", "#fff" or (255, 255, 255), on which a picture with alpha is laid.

    Raises:
        ImageFileError: the source cannot be read, or the target cannot be written or cannot hold the output.
        ValueError, TypeError, RuntimeError: as `upscale`.
    """
    kind = tuned(target, check_output(target), quality, lossless)
    colour = None if background is None else parse_colour(background)
    picture = open_picture(source)
    checked = check_target(target, kind, picture, scale, size, region, colour)
    options = Options(backend, precision, tile, progress, self_ensemble)
    upscale_picture(picture, checked, resolve_model(chosen(model, picture), device), options)


class Target(NamedTuple):
    """A file to write that has been checked, and what goes into it."""

    path: str | os.PathLike[str]
    kind: Format
    frame: Frame
    background: Colour | None


def check_target(
    path: str | os.PathLike[str],
    kind: Format,
    picture: Picture,
    scale: float | None,
    size: tuple[int | None, int | None] | None,
    region: Window | None,
    background: Colour | None = None,
) -> Target:
    """Check that the output of a picture fits into a file of the kind that `check_output` has found.

    Raises:
        ImageFileError: the format cannot hold the output.
        ValueError, TypeError: as `upscale`.
    """
    wanted = frame(picture.size, scale, size, region, MAX_FILE_PIXELS)
    height, width = wanted.region[2:]
    check_content(path, kind, mode_of(flat_channels(picture.shape[2], background), picture.depth), (width, height))
    # Without streaming the output is in memory; a region is all that is held.
    if not kind.streams and width * height > MAX_PIXELS:
        raise ValueError(
            f"the output {width}x{height} has more than {MAX_PIXELS} pixels, which {kind.name} needs in memory; "
            "write a .png or .tif file"
        )
    return Target(path, kind, wanted, background)


def upscale_picture(picture: Picture, target: Target, model: FeatureModel, options: Options) -> None:
    """Upscale a picture that is open into a file that has been checked; otherwise as `upscale_file`."""
    _notice_drawn(picture.path, picture.info)
    rendered = _strips(_needed(picture, model, target.frame, options), model, target.frame, options)
    if target.background and picture.shape[2] in (2, 4):
        channels = flat_channels(picture.shape[2], target.background)
        made = (flatten(strip, target.background) for strip in rendered)
        rendered = Strips((*rendered.shape[:2], channels), rendered.dtype, made)
    write_strips(target.path, rendered, rendered.shape, picture.depth, picture.info, target.kind)


def _needed(picture: Picture, model: FeatureModel, wanted: Frame, options: Options) -> NDArray | Part:
    """Return the pixels that the output depends on: all where some are hidden, since their colours come from afar."""
    whole = picture.shape[:2]
    windows = []
    for how in TURNS.values() if options.self_ensemble else [TURNS[1]]:
        turned = whole[::-1] if how[0] else whole
        windows.append(window_after(input_window(model, *wanted.turn_back(how), turned), turned, how))
    window = union(windows)
    if window[2:] == whole:
        return picture.pixels
    part = Part(picture, window)
    if picture.shape[2] in (1, 3) or part.pixels[..., -1].all():
        return part
    logger.warning("%s: is decoded as a whole, since the region has transparent pixels", picture.path)
    return picture.pixels


def _strips(pixels: NDArray | Part, model: FeatureModel, wanted: Frame, options: Options) -> Strips:
    check_image(pixels, model)
    height, width = wanted.region[2:]
    if options.self_ensemble and height * width > MAX_PIXELS:
        raise ValueError(f"the output {width}x{height} has more than {MAX_PIXELS} pixels, which a self-ensemble holds")
    made = render_strips(pixels, model, wanted, options)
    return Strips((height, width, pixels.shape[2]), pixels.dtype, made)


def _unpack(image: Image.Image | NDArray) -> tuple[NDArray, Restore]:
    """Pixels `[H, W, C]`, and what makes the same kind of image of such an array."""
    if isinstance(image, Image.Image):
        upright = normalise(image)
        _notice_drawn("image", upright.info)
        pixels = np.asarray(upright)
        kept = {key: value for key, value in upright.info.items() if key in ("icc_profile", "exif", "dpi")}
        restore: Restore = partial(_to_pil, info=kept)
    elif isinstance(image, np.ndarray):
        pixels = image
        if image.dtype.kind != "f" and not (image.dtype.kind == "u" and image.dtype.itemsize <= 2):
            raise TypeError(f"image must be uint8, uint16 or floating point, got {image.dtype}")
        if image.ndim not in (2, 3):
            raise ValueError(f"image must have shape [H, W] or [H, W, C], got {list(image.shape)}")
        if image.dtype.kind == "f" and image.size and not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(f"a floating point image must be in [0, 1], got {image.min():g} to {image.max():g}")
        restore = (lambda pixels: pixels[..., 0]) if image.ndim == 2 else (lambda pixels: pixels)
    else:
        raise TypeError(f"image must be a PIL image or a numpy array, got {type(image).__name__}")
    if not pixels.size:
        raise ValueError(f"image must not be empty, got {pixels.shape[1]}x{pixels.shape[0]} pixels")
    return pixels.reshape(*pixels.shape[:2], -1), restore


def _notice_drawn(name: str | os.PathLike[str], info: Mapping[Any, Any]) -> None:
    if DRAWN in info:
        logger.warning(
            "%s: has %s; the models are made for photographs and turn dithering and stepped edges into worm patterns",
            name,
            info[DRAWN],
        )


def _to_pil(pixels: NDArray, info: dict[str, Any]) -> Image.Image:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.info.update(info)
    if "exif" in info:
        image.info["exif"] = resized(info["exif"], image.size) or b""
    return image
