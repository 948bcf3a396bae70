"""Hold only those rows of an image's features that are needed while its output is rendered."""

import copy
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from liif_fast.call import Place
from liif_fast.devices import free_cached, out_of_memory
from liif_fast.functional import latents_read
from liif_fast.images import Part
from liif_fast.models.base import FeatureModel
from liif_fast.models.catalogue import other_channels
from liif_fast.models.tiles import Span, encode_window
from liif_fast.upscaling.options import MIN_TILE, Options
from liif_fast.window import Window

logger = logging.getLogger("liif_fast.upscaling")

FEATURE_BYTES = 128 << 20  # approximate size of the held rows; on a GPU a quarter of its free memory


class Features:
    """The features of an image, encoded by rows of tiles as the output's rows need them.

    A model that renders parts and whose encoder has a receptive radius renders from the held rows, with the same bits
    as from the whole map. For any other model the features of the whole image are held.

    Args:
        plane: [H, W, C] with the model's channels, or its part `input_window`; a single channel is repeated for the
            model.
        top: the value of `plane` that means 1.
        size: (height, width) of the whole output.
    """

    def __init__(
        self,
        model: FeatureModel,
        encoder: nn.Module,
        plane: NDArray | Part,
        top: float,
        size: tuple[int, int],
        region: Window,
        options: Options,
        report: Callable[[], None],
    ) -> None:
        self.view = cast(Any, copy.copy(model))
        if options.backend is not None:
            self.view.backend = options.backend
        parameter = next(model.parameters())
        self.device, self.own_dtype = parameter.device, parameter.dtype
        self.plane, self.top, self.size = plane, top, size
        self.encoder, self.report = encoder, report
        self.dtype, self.tile = options.dtype, options.tile
        self.norm = model.norm()  # moved to the device once, because each copy would wait for its work
        self.shape, self.channels = plane.shape[:2], model.channels_in
        self.tiles = model.receptive_radius is not None
        self.whole_map = not _in_parts(model)
        first, left, height, width = latents_read(size, region, self.shape)
        if self.whole_map:
            first, left, (height, width) = 0, 0, self.shape
        self.rows, self.cols = (first, first + height), (left, left + width)  # to be encoded
        self.held = (first, first)
        self.pixels, self.encoded = height * width, 0
        if model.reads_input:
            y, x, height, width = plane.window if isinstance(plane, Part) else (0, 0, *self.shape)
            self.view.inp = self._read((y, y + height), (x, x + width))
            if (height, width) != self.shape:
                self.view.inp_place = (y, x, *self.shape)

    def render(self, region: Window) -> Tensor:
        """Render a window, float32 `[C, h, w]`, not clamped to [0, 1]; call it for windows from top to bottom."""
        place = self._provide(region)
        out = self._decode(region, place)
        if self.dtype is not None and not out.isfinite().all():
            self._to_float32()
            out = self._decode(region, place)
        if not out.isfinite().all():
            raise RuntimeError("the model's output has NaN or infinite values")
        return out

    def _provide(self, region: Window) -> Place | None:
        """Hold the rows of features that a window of the output reads; return their place in the map."""
        if self.whole_map:
            if self.held != self.rows:
                self.view.feat = self._encode(self.rows)
                self.held = self.rows
            return None
        first, _, count, _ = latents_read(self.size, region, self.shape)
        while self.held[1] < first + count:
            more = (self.held[1], min(self.held[1] + self._band(), self.rows[1]))
            kept = None
            if self.held[1] > first:  # a few rows that both windows read
                kept = self.view.feat[:, :, first - self.held[0] :].clone()
            self.view.feat = None
            feat = self._encode(more)
            self.held = (more[0] if kept is None else first, more[1])
            self.view.feat = feat if kept is None else torch.cat([kept.to(feat.dtype), feat], 2)
        if tuple(self.view.feat.shape[2:]) == tuple(self.shape):
            return None
        return self.held[0], self.cols[0], *self.shape

    def _band(self) -> int:
        """Return how many rows to encode at a time."""
        budget = FEATURE_BYTES
        if self.device.type == "cuda":
            budget = max(budget, torch.cuda.mem_get_info(self.device)[0] // 4)
        row = (self.cols[1] - self.cols[0]) * self.view.encoder.out_dim * 4
        rows = budget // row
        return max(min(self.tile, 64), rows if rows < self.tile else rows // self.tile * self.tile)

    def _encode(self, rows: Span) -> Tensor:
        """Encode some rows; halve the tile if memory runs out, and switch to float32 if they are not finite."""
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
            logger.warning("out of memory: continuing with tiles of %d pixels", self.tile)
        if self.dtype is not None and not feat.isfinite().all():
            self._to_float32()
            self.encoded = before
            feat = self._encode_once(rows)
        return feat

    def _encode_once(self, rows: Span) -> Tensor:
        with self._precision():
            feat = encode_window(self.encoder, self._read, self.shape, rows, self.cols, self.tile, self._encoded)
        height, width = rows[1] - rows[0], self.cols[1] - self.cols[0]
        if not self.whole_map and tuple(feat.shape[2:]) != (height, width):
            raise RuntimeError(
                f"the encoder makes {feat.shape[2]}x{feat.shape[3]} features of {height}x{width} pixels: "
                "its attribute enlargement must give their number per pixel"
            )
        return feat.to(self.own_dtype) if self.device.type == "cpu" else feat

    def _encoded(self, pixels: int) -> None:
        self.encoded += pixels
        self.report()

    def _decode(self, region: Window, place: Place | None) -> Tensor:
        with self._precision():
            if place is None:
                pred = self.view.render_rgb(self.size, region)
            else:
                pred = self.view.render_rgb(self.size, region, place=place)
        if pred.shape[1] != self.channels:
            raise RuntimeError(other_channels(pred.shape[1], self.channels))
        return self.norm.image(pred.float())[0]

    def _precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def _to_float32(self) -> None:
        logger.warning("the result in %s has NaN or infinite values: continuing in float32", self.dtype)
        self.dtype = None
        if self.view.feat is not None:
            self.view.feat = self.view.feat.to(self.own_dtype)

    def _read(self, rows: Span, cols: Span) -> Tensor:
        """Return the normalised pixels of a window, `[1, C, h, w]`, on the device."""
        part = self.plane[rows[0] : rows[1], cols[0] : cols[1]].transpose(2, 0, 1)
        host = torch.from_numpy(np.array(part, np.float32, order="C"))[None]  # a copy, because it is modified in place
        host = host.pin_memory() if self.device.type == "cuda" else host
        inp = host.to(self.device, non_blocking=True).div_(self.top).expand(-1, self.channels, -1, -1).contiguous()
        inp = self.norm.inp(inp, out=inp).to(self.own_dtype)  # in place, because it may be the whole image
        return inp.contiguous(memory_format=torch.channels_last) if self.device.type == "cuda" else inp


def _in_parts(model: FeatureModel) -> bool:
    """Return whether a model renders from some rows of its features with the same bits as from all of them."""
    return model.renders_parts and model.receptive_radius is not None and model.enlargement == 1


def input_window(model: FeatureModel, size: tuple[int, int], region: Window, shape: tuple[int, int]) -> Window:
    """Return the window of the input of a shape (height, width) that a region of the output depends on.

    It includes at least two pixels around those that are read, because alpha is compared with its bicubic
    interpolation.
    """
    radius = model.receptive_radius
    if radius is None or not _in_parts(model):
        return 0, 0, *shape
    radius = max(radius, 2)
    first, left, height, width = latents_read(size, region, shape)
    top, bottom = max(0, first - radius), min(shape[0], first + height + radius)
    start, end = max(0, left - radius), min(shape[1], left + width + radius)
    return top, start, bottom - top, end - start


def encoder_for(model: FeatureModel, device: torch.device) -> nn.Module:
    """Return the model's encoder; for a GPU a copy with channels-last weights, for cuDNN's fast half precision."""
    encoder: nn.Module = model.encoder
    if device.type != "cuda":
        return encoder
    try:
        encoder = copy.deepcopy(encoder)
    except RuntimeError:  # e.g. PyTorch's old weight_norm keeps a tensor that cannot be copied; slower, but correct
        return encoder
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not among its overloads
    return encoder
