"""The one error of image files."""

import os

from PIL import Image

# Why it does not reduce; here, since the command line says so before torch is loaded.
WHY_NOT_SMALLER = "the model interpolates without a low-pass filter, so it would alias; use an ordinary resize"


class ImageFileError(ValueError):
    """An image file cannot be read or written; the message is one line that names the file and the reason."""


def reason(error: BaseException) -> str:
    """One line, with the system's words for an OSError instead of its errno and path, and libvips's last."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if hasattr(error, "detail"):  # of libvips, whose earlier lines may be of other files
        text = (error.detail.strip() or "the file is damaged").splitlines()[-1]
    return " ".join(text.split()) or type(error).__name__


def too_large(path: str | os.PathLike[str]) -> ImageFileError:
    """The error of an image with more pixels than Pillow lets pass."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return ImageFileError(
        f"{path}: refused as a possible decompression bomb, since it has more than {limit} pixels; "
        "--max-input-pixels, or PIL.Image.MAX_IMAGE_PIXELS, moves that limit"
    )
