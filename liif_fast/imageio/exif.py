"""EXIF data that stays true of an image whose size changes."""

import warnings
from collections.abc import MutableMapping
from typing import Any

from PIL import ExifTags, Image

# Tags of a TIFF's first folder that are of the picture: description, make, model, date, artist, copyright.
_OF_THE_PICTURE = (0x010E, 0x010F, 0x0110, 0x0132, 0x013B, 0x8298)


def resized(exif: bytes, size: tuple[int, int]) -> bytes | None:
    """EXIF data of an image, for another size of it: the tags that say the size follow, the thumbnail is left out.

    Args:
        exif: as in the `info` of a PIL image.
        size: the new (width, height), pixels.

    Returns:
        The new data; None if the old data is damaged.
    """
    tags = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd entries
            tags.load(exif)
            _set(tags, (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength), size)
            if ExifTags.IFD.Exif in tags:
                inner = tags.get_ifd(ExifTags.IFD.Exif)
                _set(inner, (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight), size)
            return tags.tobytes()  # without the second folder, which is the thumbnail's
    except Exception:  # whatever damaged bytes lead to
        return None


def _set(folder: MutableMapping[int, Any], names: tuple[int, int], size: tuple[int, int]) -> None:
    for name, side in zip(names, size, strict=True):
        if name in folder:
            folder[name] = side


def of_tiff(image: Image.Image) -> bytes | None:
    """What a TIFF says of the picture, as EXIF data; its other tags are of the file and untrue of the output."""
    tags, kept = image.getexif(), Image.Exif()
    for tag in _OF_THE_PICTURE:
        if tag in tags:
            kept[tag] = tags[tag]
    for folder in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if entries := tags.get_ifd(folder):
            kept[folder] = dict(entries)
    return kept.tobytes() if kept else None
