"""The main job: an image in, the same image at any larger size out, strip by strip.

`plan` sizes and regions, `options` how to compute, `devices` where and with which model, `alpha` transparency,
`features` the rows of features that are held while strips are rendered, `transfer` the ways to the device and back,
`strips` the output.
"""

from liif_fast.upscaling.api import Strips, check_target, upscale, upscale_file, upscale_strips
from liif_fast.upscaling.devices import default_model_path, load_upscaler, pick_device, resolve_model
from liif_fast.upscaling.options import Options, Progress
from liif_fast.upscaling.plan import MAX_FILE_PIXELS, MAX_PIXELS, Region, output_size

__all__ = [
    "MAX_FILE_PIXELS",
    "MAX_PIXELS",
    "Options",
    "Progress",
    "Region",
    "Strips",
    "check_target",
    "default_model_path",
    "load_upscaler",
    "output_size",
    "pick_device",
    "resolve_model",
    "upscale",
    "upscale_file",
    "upscale_strips",
]
