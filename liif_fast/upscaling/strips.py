"""Make the output strip by strip: combine colour and alpha, quantise, and copy to the host."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liif_fast.devices import free_cached, out_of_memory
from liif_fast.functional import frozen_weights, latents_read
from liif_fast.images import Part
from liif_fast.images.picture import in_memory
from liif_fast.models.base import FeatureModel
from liif_fast.upscaling.alpha import fill_hidden, is_gray, within_neighbours
from liif_fast.upscaling.cache import Cache
from liif_fast.upscaling.features import Features, encoder_for
from liif_fast.upscaling.options import Options
from liif_fast.upscaling.sizes import Frame
from liif_fast.window import TURNS, Window, turn_back

logger = logging.getLogger("liif_fast.upscaling")

STRIP_QUERIES = 2**17  # output pixels rendered at a time: enough for all cores, about a second of work on two
GPU_STRIP_QUERIES = 2**21


def render_strips(
    pixels: NDArray | Part,
    model: FeatureModel,
    frame: Frame,
    options: Options,
) -> Iterator[NDArray]:
    """Render an image strip by strip, from top to bottom.

    Args:
        pixels: [H, W, C] as `check_image` requires; uint8, uint16, or floating point. If all its pixels are visible,
            the part `features.input_window` suffices.

    Yields:
        Rows [h, width, C] in the dtype of `pixels`.
    """
    if options.self_ensemble:
        yield _self_ensemble(pixels, model, frame, options)
        return
    canvas = Canvas(pixels, model, options, _read_at_most(pixels, frame))
    yield from canvas.strips(frame, pixels.dtype)


def _self_ensemble(pixels: NDArray | Part, model: FeatureModel, frame: Frame, options: Options) -> NDArray:
    """Render an image in each of its eight turns and return the mean, turned back, of all (EDSR, section 3.4)."""
    mean = np.zeros((*frame.region[2:], pixels.shape[2]), np.float32)
    report = options.progress or (lambda stage, done, total: None)
    for number, how in enumerate(TURNS.values()):

        def progress(stage: str, done: int, total: int, before: int = number) -> None:
            report(stage, before * total + done, len(TURNS) * total)

        turned = pixels.turn_back(how) if isinstance(pixels, Part) else turn_back(pixels, how)
        there = frame.turn_back(how)
        canvas = Canvas(turned, model, replace(options, progress=progress), _read_at_most(turned, there))
        sums, row = turn_back(mean, how), 0
        for strip in canvas.strips(there, None):
            sums[row : row + len(strip)] += strip
            row += len(strip)
    mean /= len(TURNS)
    return _quantise(torch.from_numpy(mean), pixels.dtype).numpy().astype(pixels.dtype, copy=False)


def _read_at_most(pixels: NDArray | Part, frame: Frame) -> Window:
    return latents_read(frame.size, frame.region, pixels.shape[:2], extent=frame.extent)


def check_image(pixels: NDArray | Part, model: FeatureModel) -> None:
    """Raise ValueError unless a model can take an image.

    Args:
        pixels: [H, W, C]. A model of 1 or 3 channels takes pictures with C = 1 to 4: gray or RGB, each with or without
            alpha; colours only if it has 3. Any other model takes exactly its number of channels, without alpha.
    """
    shape, wanted = pixels.shape, model.channels_in
    if not _takes_pictures(model):
        if shape[2] != wanted:
            raise ValueError(f"image must have shape [H, W, {wanted}] for this model, got {list(shape)}")
    elif shape[2] not in (1, 2, 3, 4):
        raise ValueError(f"image must have shape [H, W] or [H, W, C] with C = 1 to 4, got {list(shape)}")
    elif wanted == 1 and shape[2] >= 3 and not is_gray(pixels):
        raise ValueError("image must be gray, because the model has 1 channel, got RGB")


def _takes_pictures(model: FeatureModel) -> bool:
    return model.channels_in in (1, 3)


class Canvas:
    """The planes of an image, of which any windows are rendered.

    Args:
        pixels: as for `render_strips`.
        model: a model for which `check_image` accepts the pixels.
        options: how to compute.
        part: the window (top, left, height, width) of the image that will be read at most; None is all of it.
        kept: where features are kept, see `Features`.
    """

    def __init__(
        self,
        pixels: NDArray | Part,
        model: FeatureModel,
        options: Options,
        part: Window | None = None,
        kept: Cache[Tensor] | None = None,
    ) -> None:
        part = part or (0, 0, *pixels.shape[:2])
        self.top = 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)
        self.progress = options.progress or (lambda stage, done, total: None)
        picture = _takes_pictures(model)
        self.colours = 3 if pixels.shape[2] >= 3 else 1
        if picture and self.colours == 3 and is_gray(pixels):  # in the whole image, so that every region agrees
            pixels = pixels[..., ::3]  # R, and alpha if any
        self.gray = picture and pixels.shape[2] < 3
        self.alpha: NDArray | Part | None = None
        planes: list[tuple[NDArray | Part, float]] = [(pixels, self.top)]
        if picture and pixels.shape[2] in (2, 4):
            self.alpha = pixels[..., -1:]
            planes = [(pixels[..., :-1], self.top)]
            seen = in_memory(self.alpha)
            if seen.min() < seen.max():
                colour = fill_hidden(pixels, self.top)
                planes = [(colour, 1.0 if colour.dtype != pixels.dtype else self.top), (self.alpha, self.top)]
        self.device = next(model.parameters()).device
        self.frozen = frozen_weights()  # entered only within a strip, so that the consumer of strips is outside it
        encoder = encoder_for(model, self.device)
        with torch.inference_mode():
            self.planes = [
                Features(model, encoder, plane, top, part, options, self._report, kept) for plane, top in planes
            ]
        if not self.planes[0].tiles and max(pixels.shape[:2]) > options.tile:
            logger.warning(
                "the model's encoder needs the whole image: it runs on all %dx%d pixels at once, without tiles, "
                "whatever memory that takes",
                *pixels.shape[1::-1],
            )
        self.total = sum(plane.pixels for plane in self.planes)

    def strips(self, frame: Frame, dtype: np.dtype | None) -> Iterator[NDArray]:
        """Yield a window as strips [h, width, C] from top to bottom, in a dtype; None: float32, not clamped."""
        return _to_host(self._on_device(frame, dtype), self.device, np.dtype(np.float32) if dtype is None else dtype)

    def _on_device(self, frame: Frame, dtype: np.dtype | None) -> Iterator[Tensor]:
        """Yield strips `[h, w, C]` on the device, as `_quantise` returns them."""
        first, left, height, width = frame.region
        budget = STRIP_QUERIES if self.device.type == "cpu" else GPU_STRIP_QUERIES
        step = max(1, budget // width)
        self.progress("encode", 0, self.total)
        self.progress("render", 0, height)
        done = 0
        while done < height:
            rows = min(step, height - done)
            try:
                strip = _quantise(self._strip(frame._replace(region=(first + done, left, rows, width))), dtype)
            except Exception as error:
                if not out_of_memory(error) or rows == 1:
                    raise
                strip = None
            if strip is None:  # outside the handler, which keeps the failed call's tensors alive
                free_cached(self.device)
                step = rows // 2
                continue
            yield strip
            done += rows
            self.progress("render", done, height)

    @torch.inference_mode()
    def _strip(self, frame: Frame) -> Tensor:
        """Render a window, float32 `[h, w, C]`, not clamped to [0, 1]."""
        with self.frozen:
            channels = self.planes[0].render(frame)
        if self.gray:
            channels = channels.mean(0, keepdim=True).expand(self.colours, -1, -1)
        if len(self.planes) == 2:
            assert self.alpha is not None
            with self.frozen:
                opacity = self.planes[1].render(frame).mean(0)
            kept = within_neighbours(opacity, self.alpha, self.top, frame)
            channels = torch.cat([channels, kept[None]])
        elif self.alpha is not None:  # a constant alpha
            opacity = in_memory(self.alpha).flat[0] / self.top
            channels = torch.cat([channels, channels.new_full((1, *channels.shape[1:]), opacity)])
        return channels.permute(1, 2, 0)

    def _report(self) -> None:
        self.progress("encode", sum(plane.encoded for plane in self.planes), self.total)


def _to_host(strips: Iterable[Tensor], device: torch.device, dtype: np.dtype) -> Iterator[NDArray]:
    """Copy strips to the host; from a GPU on a separate stream, while the next strip is rendered."""
    if device.type != "cuda":
        for strip in strips:
            yield strip.cpu().numpy().astype(dtype, copy=False)
        return
    back = torch.cuda.Stream(device)
    under_way: deque[tuple[Tensor, torch.Event]] = deque()

    def arrived() -> NDArray:
        host, event = under_way.popleft()
        event.synchronize()
        return host.numpy().astype(dtype, copy=False)

    for strip in strips:
        back.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(back):
            host = torch.empty(strip.shape, dtype=strip.dtype, pin_memory=True)
            host.copy_(strip, non_blocking=True)
        under_way.append((host, back.record_event()))
        strip.record_stream(back)
        if len(under_way) > 1:
            yield arrived()
    while under_way:
        yield arrived()


def _quantise(values: Tensor, dtype: np.dtype | None) -> Tensor:
    """Clamp values to [0, 1] and round them to `dtype`, with int32 for 16 bits; None leaves them unchanged."""
    if dtype is None:
        return values.contiguous()
    values = values.clamp(0, 1)
    if dtype.kind == "f":
        return values.contiguous()
    values = (values * float(np.iinfo(dtype).max)).round()
    return values.to(torch.uint8 if dtype.itemsize == 1 else torch.int32, memory_format=torch.contiguous_format)
