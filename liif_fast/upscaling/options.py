"""How to compute, none of which changes what is computed beyond rounding."""

from collections.abc import Callable
from numbers import Integral
from typing import NamedTuple

import torch

from liif_fast import backends
from liif_fast.encode import TILE

Progress = Callable[[str, int, int], None]

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_TILE = 32  # pixels; halving stops there, since the overlap is by then most of a tile


class Options(NamedTuple):
    """Arguments of `upscale`; see there."""

    backend: str | None = None
    precision: str = "float32"
    tile: int = TILE
    progress: Progress | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the encoder and, but for the CPU, of the decoder; None is the model's own."""
        return PRECISIONS[self.precision]


def check_options(options: Options) -> None:
    """Raise ValueError, or TypeError for a tile that is no whole number, unless every option can be used."""
    if options.backend not in (None, "auto", *backends.NAMES):
        raise ValueError(f"backend must be one of {', '.join(('auto', *backends.NAMES))}, got {options.backend!r}")
    if options.precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {options.precision!r}")
    if not isinstance(options.tile, Integral):
        raise TypeError(f"tile must be a whole number of pixels, got {options.tile!r:.80}")
    if options.tile < MIN_TILE:
        raise ValueError(f"tile must be at least {MIN_TILE} pixels, got {options.tile}")
