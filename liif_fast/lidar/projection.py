"""Convert points to range images and back; each pixel keeps its nearest point, unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from liif_fast.lidar.sensor import Sensor


class Projection(NamedTuple):
    """A scan as a range image, and counts of its points."""

    ranges: np.ndarray  # float32 [lines, columns] in metres, 0 without a return
    channels: dict[str, np.ndarray]  # values of each pixel's point, [lines, columns], 0 without a return
    point: np.ndarray  # int64 [lines, columns], index of each pixel's point, -1 without a return
    points: int  # all points
    invalid: int  # points that are not finite or at the sensor itself
    outside: int  # points above, below or between the beams
    hidden: int  # points behind a nearer one in the same pixel

    @property
    def filled(self) -> float:
        """Return the share of pixels with a return."""
        return float((self.ranges > 0).mean())


def project(
    points: np.ndarray,
    sensor: Sensor,
    channels: Mapping[str, np.ndarray] | None = None,
    rings: np.ndarray | None = None,
) -> Projection:
    """Sort points into the pixels of a sensor.

    Args:
        points: [N, 3] x, y, z in metres from the sensor, any float dtype.
        sensor: gives the beams and columns.
        channels: further values per point, [N] each, such as intensity.
        rings: row of each point, int [N], -1 for none. None takes the nearest beam and drops points more than half the
            outermost spacing beyond the first or the last beam.

    Returns:
        The range image with its counts.

    Raises:
        ValueError: a shape or a row does not fit.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must have shape [N, 3], got {list(points.shape)}")
    channels = dict(channels or {})
    for name, values in (*channels.items(), *(() if rings is None else (("rings", rings),))):
        if np.shape(values) != (len(points),):
            raise ValueError(f"{name} must have shape [{len(points)}], one per point, got {list(np.shape(values))}")
    if rings is not None and len(rings) and not (-1 <= np.min(rings) and np.max(rings) < sensor.lines):
        raise ValueError(f"rings must be from -1 to {sensor.lines - 1}, got {np.min(rings)} to {np.max(rings)}")
    xyz = points.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.sqrt((xyz**2).sum(1))
    valid = np.flatnonzero(np.isfinite(distance) & (distance > 1e-9))
    x, y, z = xyz[valid].T
    if rings is None:
        row = np.round(sensor.row_of(np.arctan2(z, np.hypot(x, y))))
        inside = (row >= 0) & (row < sensor.lines)
    else:
        row = np.asarray(rings, np.int64)[valid]
        inside = row >= 0
    column = np.round((np.arctan2(x, y) + np.pi) / (2 * np.pi) * sensor.columns).astype(np.int64) % sensor.columns
    kept = valid[inside]
    pixel = row[inside].astype(np.int64) * sensor.columns + column[inside]
    farthest_first = np.argsort(-distance[kept], kind="stable")
    point = np.full(sensor.lines * sensor.columns, -1, np.int64)
    point[pixel[farthest_first]] = kept[farthest_first]  # NumPy lets the last of equal indices win
    found = point >= 0
    shape = (sensor.lines, sensor.columns)

    def image(values: np.ndarray, dtype: type | np.dtype) -> np.ndarray:
        out = np.zeros(len(point), dtype)
        out[found] = np.asarray(values)[point[found]]
        return out.reshape(shape)

    return Projection(
        image(distance, np.float32),
        {name: image(values, np.asarray(values).dtype) for name, values in channels.items()},
        point.reshape(shape),
        len(points),
        len(points) - len(valid),
        len(valid) - len(kept),
        len(kept) - int(found.sum()),
    )


def unproject(ranges: np.ndarray, sensor: Sensor) -> tuple[np.ndarray, np.ndarray]:
    """Convert a range image to points.

    Args:
        ranges: [lines, columns] in metres; values that are not positive and finite mean no return.
        sensor: gives the beams and columns.

    Returns:
        Points float32 [N, 3] (x, y, z), and the pixel of each, int64 [N], row * columns + column.

    Raises:
        ValueError: the shape does not fit the sensor.
    """
    ranges = np.asarray(ranges)
    if ranges.shape != (sensor.lines, sensor.columns):
        raise ValueError(f"ranges must have shape [{sensor.lines}, {sensor.columns}], got {list(ranges.shape)}")
    with np.errstate(invalid="ignore"):
        pixel = np.flatnonzero(np.isfinite(ranges.ravel()) & (ranges.ravel() > 0))
    row, column = np.divmod(pixel, sensor.columns)
    distance = ranges.ravel()[pixel].astype(np.float64)
    elevation, azimuth = sensor.elevations[row], sensor.azimuths[column]
    flat = np.cos(elevation) * distance
    points = np.stack((np.sin(azimuth) * flat, np.cos(azimuth) * flat, np.sin(elevation) * distance), -1)
    return points.astype(np.float32), pixel
