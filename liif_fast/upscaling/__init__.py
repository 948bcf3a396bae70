"""Enlarge an image to any size, strip by strip.

`sizes` checks the output's size and window. `options` holds the options of the computation. `alpha` preserves
transparency. `features` holds the tiles of features that windows read, in a `cache`. `strips` makes the output.
`opened` keeps an image open for any windows of it. `choice` picks a model if none is given.
"""

from liif_fast.upscaling.api import check_target, upscale, upscale_file, upscale_picture, upscale_strips
from liif_fast.upscaling.choice import choose
from liif_fast.upscaling.opened import Upscaler
from liif_fast.upscaling.options import Options
from liif_fast.upscaling.sizes import Frame, output_size
