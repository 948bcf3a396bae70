"""The 16-bit TIFF files that Pillow does not read, or not rightly: gray with alpha, and planes one after the other."""

import os
from typing import TYPE_CHECKING, Any

from PIL import Image

from liif_fast.images.errors import ImageFileError, too_large
from liif_fast.images.exif import of_tiff

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAMPLES = {"MINISBLACK": (1, 2), "RGB": (3, 4)}
_ICC_PROFILE = 34675


def read_deep_tiff(path: str | os.PathLike[str]) -> "tuple[NDArray, dict[str, Any]] | None":
    """Read the first page of a TIFF with 16 bits a channel, upright.

    Args:
        path: the file.

    Returns:
        [H, W, C] uint16 with C = 1 to 4, and its `icc_profile`, `dpi` and `exif`, if any; None if it is another file.

    Raises:
        ImageFileError: it has floating-point samples, more pixels than Pillow's limit, or a compression that needs
            `imagecodecs`.
    """
    import numpy as np
    import tifffile

    try:
        tiff = tifffile.TiffFile(path)
    except tifffile.TiffFileError:
        return None
    with tiff:
        page: Any = tiff.pages[0]
        if page.dtype is not None and page.dtype.kind == "f":
            raise ImageFileError(f"{path}: a TIFF of {page.dtype} samples; supported are whole numbers of 8 or 16 bits")
        wanted = _SAMPLES.get(getattr(page.photometric, "name", ""), ())
        if page.dtype != np.uint16 or page.samplesperpixel not in wanted or page.imagedepth != 1:
            return None
        if Image.MAX_IMAGE_PIXELS is not None and page.imagelength * page.imagewidth > 2 * Image.MAX_IMAGE_PIXELS:
            raise too_large(path)
        try:
            pixels = page.asarray()
        except ValueError as error:
            raise ImageFileError(
                f"{path}: a 16-bit TIFF of this kind, compressed as {page.compression.name}, needs `pip install "
                f"imagecodecs`, or save it anew with another compression ({error})"
            ) from error
        if page.samplesperpixel == 1:
            pixels = pixels[..., None]
        elif page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            pixels = np.moveaxis(pixels, 0, -1)
        tags = page.tags
        info: dict[str, Any] = {"icc_profile": bytes(tags[_ICC_PROFILE].value)} if _ICC_PROFILE in tags else {}
        if "ResolutionUnit" in tags and tags["ResolutionUnit"].value in (2, 3):  # inch, centimetre
            info["dpi"] = page.get_resolution("inch")
        with open(path, "rb") as file:
            if kept := of_tiff(file):
                info["exif"] = kept
        turn = int(tags["Orientation"].value) if "Orientation" in tags else 1
        return np.ascontiguousarray(_upright(pixels, turn)), info


def _upright(pixels: "NDArray", orientation: int) -> "NDArray":
    """Undo one of the eight orientations of TIFF 6."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    flip_rows, flip_columns = {2: (0, 1), 3: (1, 1), 4: (1, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}.get(
        orientation, (0, 0)
    )
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
