"""Open an image once and render windows of it at any size."""

import os
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from liif_fast.images import read_image
from liif_fast.models.catalogue import resolve_model
from liif_fast.upscaling.api import Model, Restore, unpack
from liif_fast.upscaling.cache import Cache
from liif_fast.upscaling.choice import chosen
from liif_fast.upscaling.options import Options
from liif_fast.upscaling.sizes import MAX_PIXELS, Frame, frame, frame_over
from liif_fast.upscaling.strips import Canvas, check_image
from liif_fast.window import Extent, Window

if TYPE_CHECKING:
    import torch

WINDOW_TILE = 128  # pixels a side: small, so that a window soon has the features that it reads
WINDOW_BYTES = 512 << 20  # of features kept; 2.8 million input pixels with the shipped model


class Upscaler:
    """An image that is opened once, to render windows of it at any size. Its features are kept for the next window.

    Args:
        image: a file, or an image as for `upscale`.
        model, device, backend, precision: as for `upscale`.
        tile: side of the tiles in which the image is encoded, pixels.
        memory: bytes of features to keep, unless this is a `Cache` that several images share.

    Attributes:
        size: (width, height) of the image.

    Raises:
        ImageFileError: the file cannot be read.
        ValueError, TypeError, RuntimeError: as `upscale`.
    """

    def __init__(
        self,
        image: Image.Image | NDArray | str | os.PathLike[str],
        model: Model = None,
        *,
        device: "str | torch.device" = "auto",
        backend: str | None = None,
        precision: str = "float32",
        tile: int = WINDOW_TILE,
        memory: int | Cache[Tensor] = WINDOW_BYTES,
    ) -> None:
        self._restore: Restore = lambda pixels: pixels
        if isinstance(image, str | os.PathLike):
            picture = read_image(image)
            pixels, model = picture.pixels, chosen(model, picture)
        else:
            pixels, self._restore = unpack(image)
            model = chosen(model, image)
        model = resolve_model(model, device)
        check_image(pixels, model)
        kept = Cache[Tensor](memory) if isinstance(memory, int) else memory
        self._canvas = Canvas(pixels, model, Options(backend, precision, tile), kept=kept)
        self._dtype = pixels.dtype
        self.size: tuple[int, int] = pixels.shape[1], pixels.shape[0]

    def render(
        self,
        *,
        scale: float | None = None,
        size: tuple[int | None, int | None] | None = None,
        region: Window | None = None,
        extent: Extent | None = None,
    ) -> Image.Image | NDArray:
        """Render the image or a window of it.

        Args:
            scale, size, region: as for `upscale`, with the same bits.
            extent: (top, left, height, width) in pixels of the image, fractions allowed: the part of it that is
                rendered. `scale` and `size` are then those of the part. Pixel j of W of a part (x, w) lies at
                x + (j + 0.5) w / W. A part that is a window of an output of whole pixels has the bits of `region`.

        Returns:
            An image of the kind that was opened; of a file an array [h, w, C] of uint8 or uint16.

        Raises:
            ValueError, TypeError, RuntimeError: as `upscale`.
        """
        if extent is None:
            wanted = frame(self.size, scale, size, region, MAX_PIXELS)
        else:
            wanted = frame_over(self.size, scale, size, region, extent, MAX_PIXELS)
        return self._restore(self.window(wanted))

    def window(self, frame: Frame) -> NDArray:
        """Render a window that has been checked, as an array [h, w, C] in the dtype of the image."""
        return np.concatenate(list(self._canvas.strips(frame, self._dtype)))
