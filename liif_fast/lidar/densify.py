"""Densify a scan: find the sensor, project the points, run the model, keep the measured points."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liif_fast.lidar.detection import detect
from liif_fast.lidar.projection import Projection, project, unproject
from liif_fast.lidar.scan import Scan
from liif_fast.lidar.sensor import Sensor
from liif_fast.lidar.upsampler import Upsampled, Upsampler

SAME_BEAM = 0.05  # degrees by which a beam may differ between two scans of one sensor


@dataclass(frozen=True)
class Dense:
    """A dense scan and statistics of its directions.

    Attributes:
        points: float32 [N, 3] in metres; the measured points unchanged, then the new ones.
        channels: values of the points [N]: `intensity` if the scan has it, `measured` (0 or 1), `ring` (the row).
        ranges: float32 [H', W'] in metres, 0 without a return; measured values in the directions of the scan.
        sensor: the sensor of `ranges`.
        source: the scan as a range image, with its counts.
        sensor_in: the sensor of `source`.
        new, edge, beyond: number of directions with a new point, dropped at an edge, dropped beyond the sensor's range.
        seconds: time of each stage.
    """

    points: np.ndarray
    channels: dict[str, np.ndarray]
    ranges: np.ndarray
    sensor: Sensor
    source: Projection
    sensor_in: Sensor
    new: int
    edge: int
    beyond: int
    seconds: dict[str, float] = field(default_factory=dict)


class Densifier:
    """Densify scans of one sensor with a model; the plan is made once.

    Args:
        model: an ILN or a LiDAR-LIIF.
        target: maps the scan's sensor to the sensor of the dense scan.
        sensor: the scans' sensor; None detects it from the beams in the file, the rings, the order or the elevations.
        edge: as for `Upsampler`.
        replace: drop the measured points and also run the model in their directions.
        device: as for `Upsampler`.

    Attributes:
        found: how the sensor was found, in words; set by the first scan.
    """

    def __init__(
        self,
        model: Any,
        target: Callable[[Sensor], Sensor],
        sensor: Sensor | None = None,
        *,
        edge: float = 0.6,
        replace: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.model, self.target, self.sensor = model, target, sensor
        self.edge, self.replace, self.device = edge, replace, device
        self.found = "" if sensor is None else f"{sensor.name}, {sensor.lines} beams"
        self.upsampler: Upsampler | None = None

    def __call__(self, scan: Scan) -> Dense:
        """Densify a scan of points or ranges; raise ValueError if the sensor cannot be found or does not fit."""
        clock = [time.perf_counter()]
        sensor, source = self._projected(scan)
        clock.append(time.perf_counter())
        upsampler = self._upsampler(sensor)
        clock.append(time.perf_counter())
        intensity = source.channels.get("intensity")
        more = None if intensity is None else intensity[None].astype(np.float32)
        made = upsampler(source.ranges, more)
        clock.append(time.perf_counter())
        names = ("project", "plan", "model", "points")
        dense = self._merged(scan, source, upsampler, made)
        clock.append(time.perf_counter())
        dense.seconds.update(zip(names, np.diff(clock).tolist(), strict=True))
        return dense

    def _projected(self, scan: Scan) -> tuple[Sensor, Projection]:
        if scan.ranges is not None:
            sensor = self._of_image(scan)
            point = np.where(scan.ranges > 0, np.arange(scan.ranges.size).reshape(scan.ranges.shape), -1)
            return sensor, Projection(scan.ranges, scan.channels, point, scan.size, 0, 0, 0)
        keep = {name: values for name, values in scan.channels.items() if name == "intensity"}
        ring = scan.channels.get("ring", scan.channels.get("channel"))
        if self.sensor is not None:
            return self.sensor, project(scan.points, self.sensor, keep)
        found = detect(scan.points, ring)
        sensor = found.sensor
        known = self.upsampler.sensor_in if self.upsampler is not None else None
        if known is not None and (known.lines, known.columns) == (sensor.lines, sensor.columns):
            if np.abs(np.subtract(known.beams, sensor.beams)).max() < SAME_BEAM:
                sensor = known
        self.found = found.how
        return sensor, project(scan.points, sensor, keep, found.rings)

    def _of_image(self, scan: Scan) -> Sensor:
        assert scan.ranges is not None
        lines, columns = scan.ranges.shape
        if self.sensor is not None:
            if self.sensor.lines != lines:
                raise ValueError(f"the image has {lines} lines, the sensor {self.sensor.name} has {self.sensor.lines}")
            return self.sensor.with_columns(columns)
        if scan.beams is None:
            raise ValueError("the file has no beam elevations; give --sensor")
        self.found = f"{lines} beams from the file"
        return Sensor(tuple(scan.beams.tolist()), columns, 0.3, 200.0, "auto")

    def _upsampler(self, sensor: Sensor) -> Upsampler:
        if self.upsampler is None or self.upsampler.sensor_in != sensor:
            edge, device = self.edge, self.device
            self.upsampler = Upsampler(self.model, sensor, self.target(sensor), edge=edge, device=device)
        return self.upsampler

    def _merged(self, scan: Scan, source: Projection, upsampler: Upsampler, made: Upsampled) -> Dense:
        sensor, shape = upsampler.sensor_out, (upsampler.sensor_out.lines, upsampler.sensor_out.columns)
        ranges, kept = made.ranges[0].cpu().numpy(), made.kept[0].cpu().numpy()
        at = upsampler.measured.reshape(shape)
        known: np.ndarray = np.zeros(shape, np.float32)
        if not self.replace:
            known = np.where(at >= 0, source.ranges.ravel()[at], np.float32(0))
        fresh = np.where(kept & (known == 0), ranges, np.float32(0))
        points, pixel = unproject(fresh, sensor)
        parts: dict[str, np.ndarray] = {
            "measured": np.zeros(len(points), np.uint8),
            "ring": (pixel // sensor.columns).astype(np.uint16),
        }
        if "intensity" in source.channels:
            parts["intensity"] = made.channels[0, 0].flatten().cpu().numpy()[pixel]
        if not self.replace:
            before, channels = self._measured(scan, source, upsampler.sensor_in, sensor)
            points = np.concatenate((before, points))
            parts = {name: np.concatenate((channels[name], values)) for name, values in parts.items()}
        open_ = known == 0
        return Dense(
            points,
            {name: parts[name] for name in ("intensity", "ring", "measured") if name in parts},
            np.where(known > 0, known, fresh),
            sensor,
            source,
            upsampler.sensor_in,
            len(pixel),
            int((made.edge[0].cpu().numpy() & open_).sum()),
            int((made.beyond[0].cpu().numpy() & ~made.edge[0].cpu().numpy() & open_).sum()),
        )

    @staticmethod
    def _measured(
        scan: Scan, source: Projection, sensor_in: Sensor, sensor: Sensor
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the measured points, unchanged, and their channels."""
        if scan.ranges is not None:
            points, pixel = unproject(scan.ranges, sensor_in)
            intensity = {name: values.ravel()[pixel] for name, values in source.channels.items()}
        else:
            points = scan.points
            intensity = {name: scan.channels[name] for name in source.channels}
        elevation = np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1]))
        ring = np.clip(np.nan_to_num(np.round(sensor.row_of(elevation))), 0, sensor.lines - 1)
        channels: dict[str, np.ndarray] = {"measured": np.ones(len(points), np.uint8), "ring": ring.astype(np.uint16)}
        return points, channels | {name: values.astype(np.float32) for name, values in intensity.items()}


def colours(ranges: np.ndarray) -> np.ndarray:
    """Map ranges in metres [H, W] to RGB, uint8 [H, W, 3]: near is red, far is blue, no return is black."""
    from PIL import Image

    depth = np.log(np.maximum(ranges, 1.0)) / np.log(100)
    hsv = np.stack((np.clip(depth, 0, 1) * 170, np.full(depth.shape, 220), np.where(ranges > 0, 255, 0)), -1)
    return np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"))


def picture(dense: Dense, path: str | Path) -> None:
    """Write a PNG of the scan before and after, coloured by `colours`."""
    from PIL import Image

    from liif_fast.files import atomic_file

    rows = []
    for ranges, sensor in ((dense.source.ranges, dense.sensor_in), (dense.ranges, dense.sensor)):
        top_first = ranges if sensor.beams[0] >= sensor.beams[-1] else ranges[::-1]
        image = Image.fromarray(colours(top_first))
        height = max(dense.sensor.lines, 64)
        rows.append(np.asarray(image.resize((max(dense.sensor.columns, 512), height), Image.Resampling.NEAREST)))
    gap = np.full((8, rows[0].shape[1], 3), 255, np.uint8)
    with atomic_file(path) as file:
        Image.fromarray(np.concatenate((rows[0], gap, rows[1]))).save(file, "PNG")
