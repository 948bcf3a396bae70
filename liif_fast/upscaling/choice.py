"""Which model of the package enlarges an image where nobody asks for one: by how the image was stored."""

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
    """A model of the package, and why it."""

    model: str
    why: str

    def __str__(self) -> str:
        return f"by {self.model}: {self.why}"

    @property
    def path(self) -> Path:
        """The model's file."""
        return shipped_model(self.model)


def choose(image: Picture | Animation | Image.Image | Any) -> Choice:
    """Choose between the model for clean images and the one for what was compressed with loss.

    JPEG, HEIC, AVIF and lossy WebP were; a file's content tells, not its name. A PIL image is judged by its `format`,
    which does not tell how a WebP was compressed: it counts as lossy. All else is taken as clean, and so is what has
    no format: arrays, and PIL images that were made or changed.

    Args:
        image: what `images.open_picture` or `images.animated` returns, a PIL image, or an array (as all else is).
    """
    if not isinstance(image, Picture | Animation | Image.Image) or image.format is None:
        return Choice(SHIPPED, "what has no format is taken as clean")
    if image.format in (*LOSSY, "WEBP") if isinstance(image, Image.Image) else image.lossy:
        return Choice(SHIPPED_PHOTO, f"{image.format} compresses with loss")
    return Choice(SHIPPED, f"{'lossless ' * (image.format == 'WEBP')}{image.format} is taken as clean")


def chosen(model: Any, image: Any) -> Any:
    """Return the model that was asked for, or the file of the one that `choose` takes, with a logged line."""
    if model is not None:
        return model
    choice = choose(image)
    logger.info("%s", choice)
    return choice.path
