"""Options of the computation; except for the self-ensemble, they affect only rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch

from liif_fast import backends
from liif_fast.models.tiles import TILE

Progress = Callable[[str, int, int], None]

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_TILE = 32  # pixels; smaller tiles would consist mostly of overlap


@dataclass(frozen=True)
class Options:
    """The arguments of `upscale` on how to compute."""

    backend: str | None = None
    precision: str = "float32"
    tile: int = TILE
    progress: Progress | None = None
    self_ensemble: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        """Return the autocast dtype; None keeps the model's dtype."""
        return PRECISIONS[self.precision]

    def __post_init__(self) -> None:
        """Check the options."""
        if self.backend not in (None, "auto", *backends.NAMES):
            raise ValueError(f"backend must be one of {', '.join(('auto', *backends.NAMES))}, got {self.backend!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not isinstance(self.tile, Integral):
            raise TypeError(f"tile must be a whole number of pixels, got {self.tile!r:.80}")
        if self.tile < MIN_TILE:
            raise ValueError(f"tile must be at least {MIN_TILE} pixels, got {self.tile}")
