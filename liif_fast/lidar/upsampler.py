"""Upsample scans by running an ILN in the directions of another sensor, planned once for a stream of scans."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from liif_fast import functional
from liif_fast.convolution import fast_convolutions
from liif_fast.lidar.sensor import Sensor
from liif_fast.models.iln import ILN, LidarLIIF
from liif_fast.models.tiles import encode

DEFAULT_NORM = {"min_r": 0.3, "max_r": 80.0, "norm_r": 100.0}  # for a model whose file names no sensor
JUMP = (1.0, 0.05)  # metres, and share of the range; corners that differ by more than the sum are at an edge
TILE = 1 << 14  # columns encoded at a time


class Upsampled(NamedTuple):
    """Ranges in the directions of another sensor, in its order of rows and columns."""

    ranges: Tensor  # float32 [B, H', W'] in metres, the network's output, kept or not
    weights: Tensor  # float32 [B, H', W', 4] of the four pixels around
    channels: Tensor  # float32 [B, V, H', W'], blended by the same weights
    beyond: Tensor  # bool [B, H', W'], outside the ranges that the sensor measures
    edge: Tensor  # bool [B, H', W'], between near and far pixels without one dominant weight

    @property
    def kept(self) -> Tensor:
        """Return where there is a point, bool [B, H', W']."""
        return ~(self.beyond | self.edge)


class Upsampler:
    """Run a model between two sensors; the parts that depend on the sensors alone are computed once.

    Args:
        model: an ILN, or a LiDAR-LIIF. The latter has no weights, so the nearest pixel decides edges and channels.
        sensor_in: sensor of the input scans.
        sensor_out: sensor whose directions to compute.
        edge: smallest weight of one pixel to accept a point if the four pixels around it differ by more than 1 m + 5 %;
            0 accepts all.
        device: device to compute on; None means the model's.

    Attributes:
        remarks: lines on how the sensor differs from the one that the model was trained for.
        measured: int64 [H' * W'], the input's pixel in the same direction, -1 if there is none.

    Raises:
        TypeError: the model is of another class.
        ValueError: edge is not in [0, 1].
    """

    def __init__(
        self,
        model: ILN | LidarLIIF,
        sensor_in: Sensor,
        sensor_out: Sensor,
        *,
        edge: float = 0.6,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(model, ILN | LidarLIIF):
            raise TypeError(f"model must be an ILN or a LiDAR-LIIF, got {type(model).__name__}")
        if not 0 <= edge <= 1:
            raise ValueError(f"edge must be in [0, 1], got {edge}")
        self.model: Any = model.eval() if device is None else model.eval().to(device)
        self.sensor_in, self.sensor_out, self.edge = sensor_in, sensor_out, edge
        limits = model.lidar_in or DEFAULT_NORM
        self.norm_range = float(limits["norm_r"])
        self.min_range = sensor_in.min_range
        self.max_range = min(sensor_in.max_range, float(limits["max_r"]))
        self.descends = sensor_in.lines > 1 and sensor_in.beams[0] > sensor_in.beams[-1]
        self.remarks = _compare(sensor_in, model.lidar_in)
        rows = sensor_in.row_of(sensor_out.elevations)
        columns = np.arange(sensor_out.columns) * (sensor_in.columns / sensor_out.columns)
        self.measured = _same(rows, columns, sensor_in)
        if self.descends:  # in the networks, row 0 is the lowest beam
            rows = sensor_in.lines - 1 - rows
        axes = [(2 * place + 1) / count - 1 for place, count in ((rows, sensor_in.lines), (columns, sensor_in.columns))]
        grid = np.stack(np.broadcast_arrays(axes[0][:, None], axes[1]), -1).reshape(1, -1, 2).astype(np.float32)
        coord = torch.from_numpy(grid).to(next(model.parameters()).device)
        wrap = bool(getattr(model, "wrap", False))
        self.plan = functional.plan_attention(coord, (sensor_in.lines, sensor_in.columns), wrap=wrap)
        self.coord = coord

    @torch.inference_mode()
    def __call__(self, ranges: Tensor | np.ndarray, channels: Tensor | np.ndarray | None = None) -> Upsampled:
        """Compute the ranges in the directions of `sensor_out`.

        Args:
            ranges: [B, H, W] or [H, W] in metres, 0 (or NaN) without a return, in `sensor_in`'s order of rows.
            channels: [B, V, H, W] or [V, H, W], further values to blend, such as intensity.

        Returns:
            The ranges with their weights; B is 1 for an unbatched input.

        Raises:
            ValueError: a shape does not fit the sensor.
        """
        device = self.coord.device
        metres = torch.as_tensor(ranges).to(device, torch.float32)
        metres = metres[None] if metres.ndim == 2 else metres
        batch, shape = len(metres), (self.sensor_in.lines, self.sensor_in.columns)
        if metres.ndim != 3 or tuple(metres.shape[1:]) != shape:
            raise ValueError(f"ranges must have shape [B, {shape[0]}, {shape[1]}], got {list(metres.shape)}")
        more = metres.new_zeros(batch, 0, *shape)
        if channels is not None:
            more = torch.as_tensor(channels).to(device, torch.float32)
            more = more[None] if more.ndim == 3 else more
            if more.ndim != 4 or (len(more), *more.shape[2:]) != (batch, *shape):
                raise ValueError(
                    f"channels must have shape [{batch}, V, {shape[0]}, {shape[1]}], got {list(more.shape)}"
                )
        values = torch.cat((self._normalised(metres)[:, None], more), 1)
        if self.descends:
            values = values.flip(2)
        inp = values[:, :1]
        with fast_convolutions():
            self.model.keep(encode(self.model.encoder, inp, TILE), inp)
        out, weights = self._decode(values)
        made = ((out[..., 0] + 1) * (self.norm_range / 2)).unflatten(1, self._size())
        return Upsampled(
            made,
            weights.unflatten(1, self._size()),
            out[..., 1:].mT.unflatten(2, self._size()),
            ~((made >= self.min_range) & (made <= self.max_range)),
            self._edges(values[:, 0], weights).unflatten(1, self._size()),
        )

    def _decode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        try:
            if isinstance(model, ILN):
                return model.attend(self.plan, values)
            batch = len(values)
            made = model.query(self.coord.expand(batch, -1, -1))
            nearest = self.plan.rel.abs().amax(-1).argmin(-1)  # [1, Q]
            weights = torch.nn.functional.one_hot(nearest, 4).float().expand(batch, -1, -1)
            at = self.plan.at.gather(2, nearest[..., None])[..., 0].expand(batch, -1)
            others = values[:, 1:].flatten(2).gather(2, at[:, None].expand(-1, values.shape[1] - 1, -1))
            return torch.cat((made, others.mT), 2), weights
        finally:
            model.feat = model.inp = None

    def _size(self) -> tuple[int, int]:
        return self.sensor_out.lines, self.sensor_out.columns

    def _normalised(self, metres: Tensor) -> Tensor:
        """Clip ranges in the order of ILN's authors: no return and too far become norm_range, too near becomes 0."""
        metres = torch.where(metres.isfinite() & (metres >= 1e-9), metres, self.norm_range)
        metres = torch.where(metres < self.min_range, 0.0, metres)
        metres = torch.where(metres > self.max_range, self.norm_range, metres)
        return metres * (2 / self.norm_range) - 1

    def _edges(self, values: Tensor, weights: Tensor) -> Tensor:
        """Return where the corners' ranges differ and no weight dominates, bool [B, Q]."""
        if not self.edge:
            return weights.new_zeros(weights.shape[:2], dtype=torch.bool)
        metres = (values.flatten(1) + 1) * (self.norm_range / 2)
        around = metres[:, self.plan.at[0]]  # [B, Q, 4]
        low, high = around.amin(-1), around.amax(-1)
        return (high - low > JUMP[0] + JUMP[1] * low) & (weights.amax(-1) < self.edge)


def _same(rows: np.ndarray, columns: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Return each direction's pixel of the input, -1 if no pixel has that direction."""
    near = [np.round(each).astype(np.int64) for each in (rows, columns)]
    hit = [np.abs(each - number) < 1e-6 for each, number in zip((rows, columns), near, strict=True)]
    hit[0] &= (near[0] >= 0) & (near[0] < sensor.lines)
    pixel = near[0][:, None] * sensor.columns + near[1]
    return np.where(hit[0][:, None] & hit[1], pixel, -1).ravel()


def _compare(sensor: Sensor, trained: dict[str, Any] | None) -> list[str]:
    """Return remarks on how a sensor differs from the one that a model was trained for."""
    if trained is None:
        return []
    own = sensor.lidar_in(trained["norm_r"])
    spacing = [math.degrees(each["max_v"] - each["min_v"]) / max(each["channels"] - 1, 1) for each in (own, trained)]
    remarks = []
    if min(spacing) > 0 and not 0.5 <= spacing[0] / spacing[1] <= 2:
        remarks.append(
            f"the scan's lines are {spacing[0]:.2f} degrees apart, those of the model's training {spacing[1]:.2f}"
        )
    if sensor.max_range > trained["max_r"]:
        remarks.append(f"returns beyond {trained['max_r']:g} m are dropped, because the model was trained up to there")
    return remarks
