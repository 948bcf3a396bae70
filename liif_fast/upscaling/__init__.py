"""The main job: an image in, the same image at any larger size out, strip by strip.

`sizes` checks the output's size and window, `options` say how to compute, `alpha` keeps transparency, `features` holds
the rows of features that are read while strips are rendered, `strips` makes the output. `choice` picks a model where
none is asked for.
"""

from liif_fast.upscaling.api import (
    Strips,
    Target,
    check_target,
    upscale,
    upscale_file,
    upscale_picture,
    upscale_strips,
)
from liif_fast.upscaling.choice import Choice, choose
from liif_fast.upscaling.options import Options, Progress
from liif_fast.upscaling.sizes import MAX_FILE_PIXELS, MAX_PIXELS, Frame, output_size
