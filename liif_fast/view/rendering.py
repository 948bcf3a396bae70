"""Make the pixels of a request: by the model above the photograph's size, by an ordinary resize below it."""

import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from liif_fast.images import ImageFileError, Picture, open_picture
from liif_fast.models.catalogue import resolve_model
from liif_fast.upscaling.cache import Cache
from liif_fast.upscaling.choice import CHOICES, chosen
from liif_fast.upscaling.opened import WINDOW_BYTES, Upscaler
from liif_fast.upscaling.sizes import MAX_PIXELS, Frame, frame_over
from liif_fast.view.iiif import ImageRequest, RequestError
from liif_fast.view.shelf import Entry, encode

logger = logging.getLogger("liif_fast.view")

PICTURE_BYTES = 1 << 30  # of photographs that are kept open, decoded
CPU_AREA, GPU_AREA = 1 << 20, 1 << 26  # most pixels of an answer: 3.5 s of two cores


class _Photograph:
    def __init__(self, picture: Picture, open_once: Callable[[Picture], Upscaler]) -> None:
        self.picture, self._open_once, self._lock = picture, open_once, Lock()

    @property
    def pixels(self) -> NDArray:
        with self._lock:  # one thread decodes them
            return self.picture.pixels

    @functools.cached_property
    def upscaler(self) -> Upscaler:
        """Return the opened image that renders windows. Call it in the model's thread only."""
        return self._open_once(self.picture)

    @property
    def nbytes(self) -> int:
        """Return the most memory it takes, bytes: the pixels, and of each plane three float32 channels.

        With alpha there are two planes, and the colour that hidden pixels take.
        """
        height, width, channels = self.picture.shape
        floats = 9 if channels in (2, 4) else 3
        return height * width * (channels * self.picture.dtype.itemsize + 4 * floats)


class Renderer:
    """Open photographs and render windows of them; one thread calls the model, another does the rest.

    Args:
        model: as for `upscale`; None leaves the choice to it, photograph by photograph.
        device: as for `upscale`.
        backend: as for `upscale`.
        precision: as for `upscale`.
    """

    def __init__(
        self,
        model: str | None = None,
        device: str = "auto",
        backend: str | None = None,
        precision: str = "float32",
    ) -> None:
        self._asked, self._backend, self._precision = model, backend, precision
        self._model = functools.cache(lambda name: resolve_model(name, device))
        self._open: Cache[_Photograph] = Cache(PICTURE_BYTES)
        self._lock = Lock()
        self._features: Cache[Any] = Cache(WINDOW_BYTES)

    def warm(self) -> None:
        """Load the model and render a few pixels with it, so that the first request does not wait for that.

        Raises:
            ValueError, TypeError, RuntimeError, OSError: the model or an option is not one that `upscale` takes.
        """
        for name in CHOICES if self._asked is None else [self._asked]:
            model = self._model(name)
            pixels = np.zeros((8, 8, min(model.channels_in, 3)), np.uint8)
            Upscaler(pixels, model, backend=self._backend, precision=self._precision).render(scale=2)

    def render(self, entry: Entry, request: ImageRequest) -> bytes:
        """Make the image file that a request asks for.

        Raises:
            RequestError: the photograph cannot be read or upscaled.
        """
        photograph = self._photograph(entry)
        try:
            pixels = photograph.pixels
            made = self._pixels(photograph, pixels, request)
        except ImageFileError as error:
            raise _unreadable(entry, error) from error
        except (ValueError, RuntimeError, MemoryError) as error:
            logger.warning("%s: %s", entry.path, error)
            raise RequestError(500, f"{entry.path.name}: cannot be rendered") from error
        if request.mirrored:
            made = made[:, ::-1]
        made = np.ascontiguousarray(np.rot90(made, -request.rotation // 90))
        if request.quality == "gray" and made.shape[2] > 2:
            made = _gray(made)
        return encode(made, request.format, photograph.picture.info)

    def _photograph(self, entry: Entry) -> _Photograph:
        with self._lock:
            photograph = self._open.get(entry.stamp)
            if photograph is None:
                photograph = _Photograph(_opened(entry), self._upscaler)
                self._open.put(entry.stamp, photograph, photograph.nbytes)
            return photograph

    def _upscaler(self, picture: Picture) -> Upscaler:
        return Upscaler(
            picture.pixels,
            self._model(chosen(self._asked, picture)),
            backend=self._backend,
            precision=self._precision,
            memory=self._features,
        )

    def _pixels(self, photograph: _Photograph, pixels: NDArray, request: ImageRequest) -> NDArray:
        if not needs_model(request):
            top, left, height, width = request.extent
            kernels = {"bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}
            how = kernels.get(request.quality, Image.Resampling.LANCZOS)
            return _resized(pixels, request.size, (left, top, left + width, top + height), how)
        if request.window is not None:
            frame = Frame(request.full[::-1], request.window)
        else:
            frame = frame_over(photograph.picture.size, None, request.size, None, request.extent, MAX_PIXELS)
        return photograph.upscaler.window(frame)


def needs_model(request: ImageRequest) -> bool:
    """Say whether the model renders a request: it enlarges, and no plain interpolation is asked for."""
    (wide, high), (_, _, height, width) = request.size, request.extent
    if request.quality in ("bicubic", "nearest") or (wide <= width and high <= height):
        return False
    return wide >= math.floor(width) and high >= math.floor(height)


@functools.lru_cache(4096)
def photograph_size(entry: Entry) -> tuple[int, int]:
    """Return the (width, height) of a photograph from its header.

    Raises:
        RequestError: it cannot be read.
    """
    return _opened(entry).size


def _opened(entry: Entry) -> Picture:
    try:
        return open_picture(entry.path)
    except ImageFileError as error:
        raise _unreadable(entry, error) from error


def _resized(
    pixels: NDArray, size: tuple[int, int], box: tuple[float, float, float, float], how: Image.Resampling
) -> NDArray:
    """Resize a part of an image [H, W, C] by Pillow; of 16 bits plane by plane in float32, which it has for these."""
    box = (box[0], box[1], min(box[2], pixels.shape[1]), min(box[3], pixels.shape[0]))
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
        made = np.asarray(image.resize(size, how, box))
        return made.reshape(*made.shape[:2], -1)
    # Only what the kernels reach, up to 3 pixels of the coarser grid, because float32 planes of a photograph are large.
    reach = [math.ceil(3 * max(1, (box[axis + 2] - box[axis]) / size[axis])) + 1 for axis in (0, 1)]
    left, top = (max(0, math.floor(box[axis]) - reach[axis]) for axis in (0, 1))
    right, bottom = (math.ceil(box[axis + 2]) + reach[axis] for axis in (0, 1))
    pixels, box = pixels[top:bottom, left:right], (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    planes = [
        np.asarray(Image.fromarray(pixels[..., channel].astype(np.float32)).resize(size, how, box))
        for channel in range(pixels.shape[2])
    ]
    return np.stack(planes, -1).round().clip(0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)


def _gray(pixels: NDArray) -> NDArray:
    """Return the luma of ITU-R BT.601, as Pillow's mode L, with the alpha if there is one."""
    luma = (pixels[..., :3].astype(np.float64) @ (0.299, 0.587, 0.114)).round().astype(pixels.dtype)
    return np.concatenate((luma[..., None], pixels[..., 3:]), 2)


def _unreadable(entry: Entry, error: ImageFileError) -> RequestError:
    logger.warning("%s", error)
    return RequestError(404, f"{Path(entry.path).name}: cannot be read")
