"""Hold only those tiles of an image's features that windows of its output read."""

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
from liif_fast.models.tiles import FEW_VALUES, Span, encode_window, spans
from liif_fast.upscaling.cache import Cache
from liif_fast.upscaling.options import MIN_TILE, Options
from liif_fast.upscaling.sizes import Frame
from liif_fast.window import Window

logger = logging.getLogger("liif_fast.upscaling")

FEATURE_BYTES = 128 << 20  # approximate size of the held tiles; on a GPU a quarter of its free memory


class Features:
    """The features of an image, encoded tile by tile when a window of the output first reads them.

    A model that renders parts and whose encoder has a receptive radius renders from the tiles that a window reads, with
    the same bits as from the whole map. For any other model the features of the whole image are held.

    Args:
        plane: [H, W, C] with the model's channels, or its part `input_window`; a single channel is repeated for the
            model.
        top: the value of `plane` that means 1.
        part: the window (top, left, height, width) of the image that will be encoded at most.
        report: called after each encoded tile.
        kept: where tiles are kept; None makes a new cache, with room for two rows of tiles or `FEATURE_BYTES`.
    """

    def __init__(
        self,
        model: FeatureModel,
        encoder: nn.Module,
        plane: NDArray | Part,
        top: float,
        part: Window,
        options: Options,
        report: Callable[[], None],
        kept: Cache[Tensor] | None = None,
    ) -> None:
        self.view = cast(Any, copy.copy(model))
        if options.backend is not None:
            self.view.backend = options.backend
        parameter = next(model.parameters())
        self.device, self.own_dtype = parameter.device, parameter.dtype
        self.plane, self.top = plane, top
        self.encoder, self.report = encoder, report
        self.dtype, self.tile = options.dtype, options.tile
        self.norm = model.norm()  # moved to the device once, because each copy would wait for its work
        self.shape, self.channels = plane.shape[:2], model.channels_in
        self.tiles = model.receptive_radius is not None
        self.whole_map = not _in_parts(model)
        first, left, height, width = (0, 0, *self.shape) if self.whole_map or is_small(model, self.shape) else part
        self.pixels, self.encoded = height * width, 0
        rows, cols = (first, first + height), (left, left + width)
        self.rows, self.cols = [rows], [cols]  # the edges of the tiles
        budget = self._budget() if kept is None else kept.budget
        if not self.whole_map:
            row = width * self.view.encoder.out_dim * 4
            high = max(min(self.tile, 64), min(self.tile, budget // (2 * row)))
            self.rows, self.cols = spans(rows, high), spans(cols, self.tile)
            budget = max(
                budget, 2 * row * high
            )  # a strip that lies on two rows of tiles needs both, and so may the next
        self.kept = Cache[Tensor](budget) if kept is None else kept
        self.name = object()  # of the tiles in a cache of several images; not self, which would keep the image, too
        if model.reads_input:
            y, x, height, width = plane.window if isinstance(plane, Part) else (0, 0, *self.shape)
            self.view.inp = self._read((y, y + height), (x, x + width))
            if (height, width) != self.shape:
                self.view.inp_place = (y, x, *self.shape)

    def render(self, frame: Frame) -> Tensor:
        """Render a window, float32 `[C, h, w]`, not clamped to [0, 1]."""
        place = self._provide(frame)
        while not _is_finite(out := self._decode(frame, place)):
            if self.dtype is None:
                raise RuntimeError("the model's output has NaN or infinite values")
            self._to_float32()
        return out

    def _provide(self, frame: Frame) -> Place | None:
        """Give the model the features that a window of the output reads, and return their place in the map."""
        self.view.feat = None
        if len(self.rows) == len(self.cols) == 1:
            self.view.feat = self._tile(0, 0)
            at = self.rows[0][0], self.cols[0][0]
        else:
            first, left, height, width = latents_read(frame.size, frame.region, self.shape, extent=frame.extent)
            at, end = (first, left), (first + height, left + width)
            bands = [
                torch.cat([self._tile(i, j)[..., y, x] for j, x in _overlaps(self.cols, left, end[1])], 3)
                for i, y in _overlaps(self.rows, first, end[0])
            ]
            self.view.feat = torch.cat(bands, 2)
        if self.dtype is None:
            self.view.feat = self.view.feat.to(self.own_dtype)
        whole = self.whole_map or tuple(self.view.feat.shape[2:]) == tuple(self.shape)
        return None if whole else (*at, *self.shape)

    def _budget(self) -> int:
        """Return how many bytes of features to hold, about."""
        if self.device.type != "cuda":
            return FEATURE_BYTES
        return max(FEATURE_BYTES, torch.cuda.mem_get_info(self.device)[0] // 4)

    def _tile(self, i: int, j: int) -> Tensor:
        """Return the features of a tile."""
        feat = self.kept.get((self.name, i, j))
        if feat is None:
            feat = self._encode(self.rows[i], self.cols[j]).contiguous()  # without the overlap that it was cut from
            self.kept.put((self.name, i, j), feat, feat.nbytes)
        return feat

    def _encode(self, rows: Span, cols: Span) -> Tensor:
        """Encode a tile: in float32 if half precision overflows, and in smaller tiles if memory runs out."""
        before = self.encoded
        while True:
            try:
                feat = self._encode_once(rows, cols)
                break
            except Exception as error:
                if not out_of_memory(error) or self.tile <= MIN_TILE or not self.tiles:
                    raise
            self.encoded = before
            free_cached(self.device)
            self.tile = max(MIN_TILE, self.tile // 2)
            logger.warning("out of memory: continuing with tiles of %d pixels", self.tile)
        if self.dtype is not None and not _is_finite(feat):
            self._to_float32()
            self.encoded = before
            feat = self._encode_once(rows, cols)
        return feat

    def _encode_once(self, rows: Span, cols: Span) -> Tensor:
        with self._precision():
            feat = encode_window(self.encoder, self._read, self.shape, rows, cols, self.tile, self._encoded)
        height, width = rows[1] - rows[0], cols[1] - cols[0]
        if not self.whole_map and tuple(feat.shape[2:]) != (height, width):
            raise RuntimeError(
                f"the encoder makes {feat.shape[2]}x{feat.shape[3]} features of {height}x{width} pixels: "
                "its attribute enlargement must give their number per pixel"
            )
        return feat.to(self.own_dtype) if self.device.type == "cpu" else feat

    def _encoded(self, pixels: int) -> None:
        self.encoded += pixels
        self.report()

    def _decode(self, frame: Frame, place: Place | None) -> Tensor:
        cell = self.view.cell_for(frame.size, self.shape, frame.extent)
        further = {"cell": cell, "place": place, "extent": frame.extent}  # a user's model may not take them
        with self._precision():
            pred = self.view.render_rgb(*frame[:2], **{key: each for key, each in further.items() if each is not None})
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
        last = self.device.type in ("cpu", "cuda")  # where convolutions are faster with the channels last
        return inp.contiguous(memory_format=torch.channels_last) if last else inp


def _is_finite(values: Tensor) -> bool:
    """Say whether no value is NaN or infinite, in one pass; isfinite() makes four."""
    low, high = values.aminmax()
    return bool(low.isfinite() & high.isfinite())


def _overlaps(edges: list[Span], first: int, end: int) -> list[tuple[int, slice]]:
    """Return the tiles along one axis that meet a span, and the part of each that lies in it."""
    return [
        (i, slice(max(first, start) - start, min(end, stop) - start))
        for i, (start, stop) in enumerate(edges)
        if start < end and first < stop
    ]


def _in_parts(model: FeatureModel) -> bool:
    """Return whether a model renders from some rows of its features with the same bits as from all of them."""
    return model.renders_parts and model.receptive_radius is not None and model.enlargement == 1


def input_window(model: FeatureModel, frame: Frame, shape: tuple[int, int]) -> Window:
    """Return the window of the input of a shape (height, width) that a window of the output depends on.

    It includes at least two pixels around those that are read, because alpha is compared with its bicubic
    interpolation.
    """
    radius = model.receptive_radius
    if radius is None or not _in_parts(model) or is_small(model, shape):
        return 0, 0, *shape
    radius = max(radius, 2)
    first, left, height, width = latents_read(frame.size, frame.region, shape, extent=frame.extent)
    top, bottom = max(0, first - radius), min(shape[0], first + height + radius)
    start, end = max(0, left - radius), min(shape[1], left + width + radius)
    return top, start, bottom - top, end - start


def is_small(model: FeatureModel, shape: tuple[int, ...]) -> bool:
    """Say whether an image is encoded whole, since a part of one of few values would have other bits."""
    return model.channels_in * shape[0] * shape[1] <= FEW_VALUES


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
