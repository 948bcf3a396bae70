"""Define the error of image files."""

import os

from PIL import Image

from liif_fast.files import reason as reason

# Defined here, because the command line reports it before torch is loaded.
WHY_NOT_SMALLER = "the model interpolates without a low-pass filter, so it would alias; use an ordinary resize"


class ImageFileError(ValueError):
    """Report that an image file cannot be read or written; the message is one line with the file and the reason."""


def too_large(path: str | os.PathLike[str]) -> ImageFileError:
    """Return the error for an image with more pixels than Pillow accepts."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return ImageFileError(
        f"{path}: refused as a possible decompression bomb, because it has more than {limit} pixels; "
        "--max-input-pixels, or PIL.Image.MAX_IMAGE_PIXELS, changes the limit"
    )
