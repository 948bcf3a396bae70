"""Choose a shipped model by how the image was stored, if the caller names no model."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from liif_fast.images import Animation, Picture
from liif_fast.images.sniffing import LOSSY
from liif_fast.models.catalogue import SHIPPED, SHIPPED_PHOTO, shipped_model

logger = logging.getLogger("liif_fast.upscaling")

CHOICES = (shipped_model(SHIPPED), shipped_model(SHIPPED_PHOTO))  # the files that `chosen` returns


class Choice(NamedTuple):
    """A shipped model, and the reason for the choice."""

    model: str
    why: str

    def __str__(self) -> str:
        return f"by {self.model}: {self.why}"

    @property
    def path(self) -> Path:
        """Return the model's file."""
        return shipped_model(self.model)


def choose(image: Picture | Animation | Image.Image | Any) -> Choice:
    """Choose between the model for clean images and the one for lossy compression.

    JPEG, HEIC, AVIF and lossy WebP count as lossy; the content of a file decides, not its name. A PIL image is judged
    by its `format`, which does not tell how a WebP was compressed, so every WebP counts as lossy. Everything else
    counts as clean, also arrays and PIL images without a format, which were made or changed.

    Args:
        image: what `images.open_picture` or `images.animated` returns, a PIL image, or an array.
    """
    if not isinstance(image, Picture | Animation | Image.Image) or image.format is None:
        return Choice(SHIPPED, "what has no format is taken as clean")
    if image.format in (*LOSSY, "WEBP") if isinstance(image, Image.Image) else image.lossy:
        return Choice(SHIPPED_PHOTO, f"{image.format} compresses with loss")
    return Choice(SHIPPED, f"{'lossless ' * (image.format == 'WEBP')}{image.format} is taken as clean")


def chosen(model: Any, image: Any) -> Any:
    """Return `model`, or if it is None the file of the model that `choose` takes, with a logged line."""
    if model is not None:
        return model
    choice = choose(image)
    logger.info("%s", choice)
    return choice.path
