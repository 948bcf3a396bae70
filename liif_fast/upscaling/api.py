"""Upscale an image, a file, or an image strip by strip."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from liif_fast.images import (
    Animation,
    Colour,
    Format,
    Part,
    Picture,
    animated,
    check_content,
    check_output,
    flat_channels,
    flatten,
    mode_of,
    normalise,
    open_picture,
    parse_colour,
    tuned,
    write_animation,
    write_strips,
)
from liif_fast.images.exif import resized
from liif_fast.images.picture import DRAWN
from liif_fast.images.xmp import resized_xmp
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

    The output has the input's mode, dtype, ICC profile and EXIF data (with the new size).

    * Gray, and RGB whose visible pixels are all gray, goes through the model as three equal channels. Their mean is the
      result.
    * Alpha goes through the model separately, like a gray image, and is clamped to the range of the 3x3 input pixels
      around. If the nearest input pixel and the bicubic interpolation are both 0 or both 1, alpha is too. So nothing
      appears outside an outline, and opaque pixels stay opaque.
    * Fully transparent pixels first take the colour of visible pixels next to them, so no hidden colour bleeds.

    Args:
        image: a PIL image, or an array [H, W], [H, W, 1], [H, W, 2] (gray, alpha), [H, W, 3] or [H, W, 4] of uint8,
            uint16, or floating point in [0, 1]. A PIL image is turned upright by its EXIF orientation. A palette image
            becomes RGB or RGBA, a 1-bit image L, with a logged notice. For a model of neither 1 nor 3 channels, an
            array [H, W, C] of that many, without alpha.
        model: a model (used unchanged), the path or name of a checkpoint, or None for one of the package's models
            (`choose`). A model of 1 channel takes gray images.
        scale: output size over input size, at least 1; each side is `round(side * scale)`.
        size: instead of scale, (width, height) in pixels, not below the input's; one of them may be None and then
            keeps the aspect ratio.
        region: (top, left, height, width) in pixels of the output; only this window is made, with its values in the
            whole.
        device: "auto" (a given model's device; else a GPU if there is one), "cpu", "cuda", "cuda:1", "mps".
        backend: the decoder's backend; None means the model's choice ("auto" unless set otherwise).
        precision: "float32", or "bf16" or "fp16" for encoder and decoder. If a result is not finite, float32 is used
            from there on, with a notice.
        tile: largest side of the encoder's tiles in pixels; affects only rounding.
        progress: called as `progress(stage, done, total)` with stage "encode" (in input pixels) and "render" (in rows).
        self_ensemble: average over the eight turns of the image (EDSR, section 3.4): eight times the work, a little
            sharper. The output is held in floating point.

    Returns:
        An image of the same kind; values are clamped to the range of the dtype and rounded to nearest.

    Raises:
        ValueError: a wrong shape, scale, size, region or device, or values outside [0, 1].
        TypeError: the object is not an image, or has a wrong dtype.
        RuntimeError: the backend cannot run this model, or its output is not finite.
    """
    pixels, restore = unpack(image)
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
    """An upscaled image computed during iteration, which yields its rows from top to bottom, once.

    Attributes:
        shape: (height, width, channels) of the whole.
        dtype: dtype of the strips, arrays [rows, width, channels].
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
    """Upscale an image strip by strip, so that the whole output is never in memory.

    Args:
        image, model, scale, size, region, device, backend, precision, tile, progress, self_ensemble: as for `upscale`.
            A PIL image also gives arrays.

    Returns:
        `Strips`, with the output's shape and dtype; iteration computes them.

    Raises:
        ValueError, TypeError: as for `upscale`, at once; RuntimeError: during iteration.
    """
    pixels, _ = unpack(image)
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
    """Upscale an image file to another file strip by strip; `target` is replaced atomically.

    An animated GIF, PNG or WebP stays one if the target is one of these; else its first frame is taken, with a notice.

    Args:
        source: the image file; see `liif_fast.images.read_image`. For a region only the part that the model sees is
            decoded, if the file and the model allow that.
        target: the file to write; its extension sets the format. PNG, TIFF, PPM and PGM are written during the
            computation; for other formats the output is first collected in memory.
        model, scale, size, region, device, backend, precision, tile, progress, self_ensemble: as for `upscale`.
        quality: 1 to 100 for JPEG, WebP and AVIF; None means 95, 95 and 90.
        lossless: keep every pixel in WebP, as PNG, TIFF, BMP, PPM and PGM always do; refused for others.
        background: an opaque colour, such as "white", "#fff" or (255, 255, 255), that replaces alpha.

    Raises:
        ImageFileError: the source cannot be read, or the target cannot be written or cannot hold the output.
        ValueError, TypeError, RuntimeError: as for `upscale`.
    """
    kind = tuned(target, check_output(target), quality, lossless)
    colour = None if background is None else parse_colour(background)
    picture = animated(open_picture(source), kind)
    checked = check_target(target, kind, picture, scale, size, region, colour)
    options = Options(backend, precision, tile, progress, self_ensemble)
    upscale_picture(picture, checked, resolve_model(chosen(model, picture), device), options)


class Target(NamedTuple):
    """A checked output file and its content."""

    path: str | os.PathLike[str]
    kind: Format
    frame: Frame
    background: Colour | None


def check_target(
    path: str | os.PathLike[str],
    kind: Format,
    picture: Picture | Animation,
    scale: float | None,
    size: tuple[int | None, int | None] | None,
    region: Window | None,
    background: Colour | None = None,
) -> Target:
    """Check that a picture's output fits into a file of the format that `check_output` returned.

    Raises:
        ImageFileError: the format cannot hold the output.
        ValueError, TypeError: as for `upscale`.
    """
    wanted = frame(picture.size, scale, size, region, MAX_FILE_PIXELS)
    height, width = wanted.region[2:]
    check_content(path, kind, mode_of(flat_channels(picture.shape[2], background), picture.depth), (width, height))
    # Without streaming the output, or its region, is held in memory.
    frames = len(picture.frames) if isinstance(picture, Animation) else 1
    if frames * width * height > MAX_PIXELS and (frames > 1 or not kind.streams):
        what = f"{width}x{height}" if frames == 1 else f"{frames} frames of {width}x{height}"
        other = "; write a .png or .tif file" if frames == 1 else ""
        raise ValueError(
            f"the output {what} has more than {MAX_PIXELS} pixels, which {kind.name} needs in memory{other}"
        )
    return Target(path, kind, wanted, background)


def upscale_picture(picture: Picture | Animation, target: Target, model: FeatureModel, options: Options) -> None:
    """Upscale an open picture to a checked target; otherwise as `upscale_file`."""
    _notice_drawn(picture.path, picture.info)
    if isinstance(picture, Animation):
        write_animation(target.path, _enlarged(picture, target, model, options), picture, target.kind)
        return
    rendered = _strips(_needed(picture, model, target.frame, options), model, target.frame, options)
    rendered = _laid(rendered, target.background)
    write_strips(target.path, rendered, rendered.shape, picture.depth, picture.info, target.kind)


def _enlarged(animation: Animation, target: Target, model: FeatureModel, options: Options) -> Iterator[NDArray]:
    """Upscale each frame of an animation."""
    report = options.progress or (lambda stage, done, total: None)
    count = len(animation.frames)
    for number, pixels in enumerate(animation.frames):

        def progress(stage: str, done: int, total: int, before: int = number) -> None:
            report(stage, before * total + done, count * total)

        rendered = _strips(pixels, model, target.frame, replace(options, progress=progress))
        yield np.concatenate([*_laid(rendered, target.background)])


def _laid(rendered: Strips, background: Colour | None) -> Strips:
    """Lay alpha, if there is any, on a background, if one is wanted."""
    height, width, channels = rendered.shape
    if background is None or channels in (1, 3):
        return rendered
    made = (flatten(strip, background) for strip in rendered)
    return Strips((height, width, flat_channels(channels, background)), rendered.dtype, made)


def _needed(picture: Picture, model: FeatureModel, wanted: Frame, options: Options) -> NDArray | Part:
    """Return the pixels that the output depends on; all if some are hidden, because their colours come from afar."""
    whole = picture.shape[:2]
    windows = []
    for how in TURNS.values() if options.self_ensemble else [TURNS[1]]:
        turned = whole[::-1] if how[0] else whole
        windows.append(window_after(input_window(model, wanted.turn_back(how), turned), turned, how))
    window = union(windows)
    if window[2:] == whole:
        return picture.pixels
    part = Part(picture, window)
    if picture.shape[2] in (1, 3) or part.pixels[..., -1].all():
        return part
    logger.warning("%s: is decoded as a whole, because the region has transparent pixels", picture.path)
    return picture.pixels


def _strips(pixels: NDArray | Part, model: FeatureModel, wanted: Frame, options: Options) -> Strips:
    check_image(pixels, model)
    height, width = wanted.region[2:]
    if options.self_ensemble and height * width > MAX_PIXELS:
        raise ValueError(f"the output {width}x{height} has more than {MAX_PIXELS} pixels, which a self-ensemble holds")
    made = render_strips(pixels, model, wanted, options)
    return Strips((height, width, pixels.shape[2]), pixels.dtype, made)


def unpack(image: Image.Image | NDArray) -> tuple[NDArray, Restore]:
    """Return pixels `[H, W, C]`, and a function that converts such an array to the same kind of image."""
    if isinstance(image, Image.Image):
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # the further frames of an MPO are previews
            logger.warning("image: only its current frame is enlarged; upscale_file makes animations")
        upright = normalise(image)
        _notice_drawn("image", upright.info)
        pixels = np.asarray(upright)
        kept = {key: value for key, value in upright.info.items() if key in ("icc_profile", "exif", "xmp", "dpi")}
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
    if "xmp" in info:
        image.info["xmp"] = resized_xmp(info["xmp"], image.size) or b""
    return image
