"""Read and write image files safely: keep their metadata, warn about losses, raise one error, write atomically.

Nothing here imports torch, so that a bad path is reported before anything heavy is loaded.
"""

from liif_fast.images.animation import Animation, animated, write_animation
from liif_fast.images.background import Colour, flat_channels, flatten, parse_colour
from liif_fast.images.errors import WHY_NOT_SMALLER, ImageFileError
from liif_fast.images.formats import (
    ANIMATED,
    FORMATS,
    Format,
    check_content,
    check_format,
    check_output,
    check_place,
    ending_of,
    fits,
    mode_of,
    tuned,
)
from liif_fast.images.picture import Part, Picture
from liif_fast.images.pillow import normalise
from liif_fast.images.reading import check_input, open_picture, read_image, read_rgb
from liif_fast.images.sniffing import describe, endings
from liif_fast.images.spooling import spooled
from liif_fast.images.writing import write_image, write_strips
