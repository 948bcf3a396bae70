"""One image of three channels, of which only some rows of features are held while its output is rendered."""

import copy
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from liif_fast.encode import Span, encode_window
from liif_fast.functional import latents_read
from liif_fast.images import Part
from liif_fast.models.base import FeatureModel
from liif_fast.models.checkpoint import DATA_NORM
from liif_fast.models.liif import LIIF
from liif_fast.models.mlp import fusable
from liif_fast.upscaling.devices import free_cached, out_of_memory
from liif_fast.upscaling.options import MIN_TILE, Options
from liif_fast.upscaling.plan import Region
from liif_fast.upscaling.transfer import Transfers

logger = logging.getLogger("liif_fast.upscaling")

FEATURE_BYTES = 128 << 20  # of the rows held, about; on a GPU a quarter of its free memory


class Features:
    """The features of an image, encoded row of tiles by row of tiles as the output's rows ask for them.

    A LIIF whose encoder has a receptive radius and whose decoder is an MLP is rendered from the rows at hand, with the
    same bits as from the whole map. Any other model keeps the features of the whole region.

    Args:
        model: a shallow copy keeps the features, so that the caller's model stays as it was.
        encoder: the model's, as `encoder_for` gives it.
        plane: [H, W, 1 or 3], or the part of it that `input_window` names; one channel is given to the model three
            times.
        top: the value of `plane` that stands for 1.
        size: (height, width) of the whole output.
        region: the part of it that will be rendered.
        options: how to compute.
        transfers: the ways to the model's device.
        report: called after each tile.

    Attributes:
        pixels: how many input pixels will be encoded.
        encoded: how many have been.
    """

    def __init__(
        self,
        model: FeatureModel,
        encoder: nn.Module,
        plane: NDArray | Part,
        top: float,
        size: tuple[int, int],
        region: Region,
        options: Options,
        transfers: Transfers,
        report: Callable[[], None],
    ) -> None:
        self.view = cast(Any, copy.copy(model))
        if options.backend is not None:
            self.view.backend = options.backend
        parameter = next(model.parameters())
        self.device, self.own_dtype = parameter.device, parameter.dtype
        self.plane, self.top, self.size = plane, top, size
        self.encoder, self.transfers, self.report = encoder, transfers, report
        self.dtype, self.tile = options.dtype, options.tile
        norm = getattr(model, "data_norm", DATA_NORM)  # on the device once: each copy there would wait for its work
        self.inp_norm, self.gt_norm = (self._on_device(norm[part]) for part in ("inp", "gt"))
        self.shape = plane.shape[:2]
        self.tiles = getattr(model.encoder, "receptive_radius", None) is not None
        self.whole_map = not renders_parts(model)
        first, left, height, width = latents_read(size, region, self.shape)
        if self.whole_map:
            first, left, (height, width) = 0, 0, self.shape
        self.rows, self.cols = (first, first + height), (left, left + width)  # what will be encoded
        self.held = (first, first)
        self.pixels, self.encoded = height * width, 0
        if getattr(model, "residual", None) is not None:
            y, x, height, width = plane.window if isinstance(plane, Part) else (0, 0, *self.shape)
            self.view.inp = self._read((y, y + height), (x, x + width))
            if (height, width) != self.shape:
                self.view.inp_place = (y, x, *self.shape)
        else:
            self.view.inp = None

    def render(self, region: Region) -> Tensor:
        """A window of the output, `[3, h, w]` float32, nominally in [0, 1] but not clamped.

        Args:
            region: (top, left, height, width); windows must come from top to bottom.

        Raises:
            RuntimeError: the output is not finite or not RGB, or the backend cannot run this.
        """
        place = self._provide(region)
        out = self._decode(region, place)
        if self.dtype is not None and not out.isfinite().all():
            self._to_float32()
            out = self._decode(region, place)
        if not out.isfinite().all():
            raise RuntimeError("the model's output has NaN or infinite values")
        return out

    def _provide(self, region: Region) -> tuple[int, int, int, int] | None:
        """Hold the rows of features that a window of the output reads; their place in the map."""
        if self.whole_map:
            if self.held != self.rows:
                self.view.feat = self._encode(self.rows)
                self.held = self.rows
            return None
        first, _, count, _ = latents_read(self.size, region, self.shape)
        while self.held[1] < first + count:
            more = (self.held[1], min(self.held[1] + self._band(), self.rows[1]))
            kept = None
            if self.held[1] > first:  # a few rows that the new window shares with the old ones
                kept = self.view.feat[:, :, first - self.held[0] :].clone()
            self.view.feat = None
            feat = self._encode(more)
            self.held = (more[0] if kept is None else first, more[1])
            self.view.feat = feat if kept is None else torch.cat([kept.to(feat.dtype), feat], 2)
        if tuple(self.view.feat.shape[2:]) == tuple(self.shape):
            return None
        return self.held[0], self.cols[0], *self.shape

    def _band(self) -> int:
        """How many rows to encode at a time."""
        budget = FEATURE_BYTES
        if self.device.type == "cuda":
            budget = max(budget, torch.cuda.mem_get_info(self.device)[0] // 4)
        row = (self.cols[1] - self.cols[0]) * getattr(self.view.encoder, "out_dim", 64) * 4
        rows = budget // row
        return max(min(self.tile, 64), rows if rows < self.tile else rows // self.tile * self.tile)

    def _encode(self, rows: Span) -> Tensor:
        """Features of some rows, finite where float32 makes them so; the tile is halved when memory runs out."""
        before = self.encoded
        while True:
            try:
                feat = self._encode_once(rows)
                break
            except Exception as error:
                if not out_of_memory(error) or self.tile <= MIN_TILE or not self.tiles:
                    raise
            self.encoded = before
            free_cached(self.device)
            self.tile = max(MIN_TILE, self.tile // 2)
            logger.warning("out of memory: going on with tiles of %d pixels", self.tile)
        if self.dtype is not None and not feat.isfinite().all():
            self._to_float32()
            self.encoded = before
            feat = self._encode_once(rows)
        return feat

    def _encode_once(self, rows: Span) -> Tensor:
        with self._precision(self.dtype):
            feat = encode_window(self.encoder, self._read, self.shape, rows, self.cols, self.tile, self._encoded)
        return feat.to(self.own_dtype) if self.device.type == "cpu" else feat

    def _encoded(self, pixels: int) -> None:
        self.encoded += pixels
        self.report()

    def _decode(self, region: Region, place: tuple[int, int, int, int] | None) -> Tensor:
        # On a CPU the fused kernels compute in float32, faster than plain PyTorch does in half precision.
        with self._precision(None if self.device.type == "cpu" else self.dtype):
            if place is None:
                pred = self.view.render_rgb(self.size, region)
            else:
                pred = self.view.render_rgb(self.size, region, place=place)
        if pred.shape[1] != 3:
            raise RuntimeError(f"the model gives {pred.shape[1]} channels, expected 3 (RGB)")
        pred = pred.float()
        sub, div = self.gt_norm
        return (pred * div + sub)[0]

    def _precision(self, dtype: torch.dtype | None) -> AbstractContextManager[object]:
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _to_float32(self) -> None:
        logger.warning("the result in %s has NaN or infinite values: going on in float32", self.dtype)
        self.dtype = None
        if self.view.feat is not None:
            self.view.feat = self.view.feat.to(self.own_dtype)

    def _on_device(self, norm: dict[str, list[float]]) -> tuple[Tensor, Tensor]:
        """The `sub` and the `div` of a data_norm, float32 `[1 or 3, 1, 1]`."""
        sub, div = (torch.tensor(norm[key], dtype=torch.float32)[:, None, None] for key in ("sub", "div"))
        return sub.to(self.device), div.to(self.device)

    def _read(self, rows: Span, cols: Span) -> Tensor:
        """Pixels of a window, `[1, 3, h, w]`, normalised, on the device."""
        part = self.plane[rows[0] : rows[1], cols[0] : cols[1]].transpose(2, 0, 1)
        host = torch.from_numpy(np.array(part, np.float32, order="C"))[None]  # a copy: it is changed in place
        inp = self.transfers.to_device(host).div_(self.top).expand(-1, 3, -1, -1).contiguous()
        sub, div = self.inp_norm
        inp = inp.sub_(sub).div_(div).to(self.own_dtype)  # in place: of a model with a residual this is the whole image
        return inp.contiguous(memory_format=torch.channels_last) if self.device.type == "cuda" else inp


def renders_parts(model: FeatureModel) -> bool:
    """Whether a model renders from some rows of its features with the same bits as from all of them."""
    if getattr(model.encoder, "receptive_radius", None) is None:
        return False
    if not isinstance(model, LIIF) or fusable(model.imnet) is None:
        return False
    if type(model).render_rgb is not LIIF.render_rgb:  # of a subclass: it may know no `place`
        return False
    parameter = next(model.parameters())
    with torch.inference_mode():  # an encoder with upsampling makes a larger map
        probe = torch.zeros(1, 3, 1, 1, dtype=parameter.dtype, device=parameter.device)
        return model.encoder(probe).shape[2] == 1


def input_window(model: FeatureModel, size: tuple[int, int], region: Region, shape: tuple[int, int]) -> Region:
    """Give the window of the input that a region of the output depends on; the whole where the model needs that.

    Args:
        model: as for `Features`.
        size: (height, width) of the whole output.
        region: of the output.
        shape: (height, width) of the input.
    """
    if not renders_parts(model) or cast(Any, type(model))._interpolate is not LIIF._interpolate:
        return 0, 0, *shape
    first, left, height, width = latents_read(size, region, shape)
    radius = cast(int, model.encoder.receptive_radius)
    top, bottom = max(0, first - radius), min(shape[0], first + height + radius)
    start, end = max(0, left - radius), min(shape[1], left + width + radius)
    return top, start, bottom - top, end - start


def encoder_for(model: FeatureModel, device: torch.device) -> nn.Module:
    """The model's encoder; for a GPU a copy whose weights are channels last, as cuDNN's fast half-precision wants."""
    encoder: nn.Module = model.encoder
    if device.type != "cuda":
        return encoder
    try:
        encoder = copy.deepcopy(encoder)
    except RuntimeError:  # PyTorch's old weight_norm, for one, keeps a tensor that cannot be copied; slower, but right
        return encoder
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not among its overloads
    return encoder
