"""Detect the sensor of a point cloud: find its beams from a ring field, the order of points, or the elevations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from liif_fast.lidar.sensor import Sensor

COLUMNS = (512, 1024, 2048, 4096, 900, 1800, 3600, 2083, 2170)  # of real sensors at 10 turns a second
FEWEST = 8  # points of a beam
CLUSTER = 0.02  # largest gap in degrees between one beam's elevations, if these are exact


class Detected(NamedTuple):
    """A sensor, the row of each point (-1: none), and how the sensor was found, in words."""

    sensor: Sensor
    rings: np.ndarray  # int64 [N]
    how: str


def detect(points: np.ndarray, ring: np.ndarray | None = None) -> Detected:
    """Find the beams of a scan.

    Args:
        points: [N, 3] in metres.
        ring: [N], the number of each point's beam, if the file has it.

    Returns:
        The sensor, lowest beam first.

    Raises:
        ValueError: the beams cannot be separated.
    """
    xyz = np.asarray(points, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.sqrt((xyz**2).sum(1))
    valid = np.isfinite(distance) & (distance > 1e-9)
    if valid.sum() < FEWEST:
        raise ValueError(f"{int(valid.sum())} points are too few to detect a sensor's beams; give --sensor")
    elevation, azimuth = np.full(len(xyz), np.nan), np.full(len(xyz), np.nan)
    elevation[valid] = np.degrees(np.arctan2(xyz[valid, 2], np.hypot(xyz[valid, 0], xyz[valid, 1])))
    azimuth[valid] = np.arctan2(xyz[valid, 0], xyz[valid, 1])
    if ring is not None:
        found, how = _by_label(np.asarray(ring), elevation, valid), "from its ring field"
    else:
        found, how = _by_order(azimuth, elevation, valid), "from the order of its points"
        if found is None:
            found, how = _by_elevation(elevation, valid), "from its elevations"
    if found is None:
        raise ValueError("its beams cannot be separated; give --sensor")
    beams, rings = found
    columns = _columns(azimuth, rings)
    sensor = Sensor(tuple(beams.tolist()), columns, 0.3, 200.0, "auto")
    span = f"{beams[0]:.2f} to {beams[-1]:.2f} degrees"
    return Detected(sensor, rings, f"{len(beams)} beams {how}, {span}, {columns} columns")


def _by_label(label: np.ndarray, elevation: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Sort labelled beams by their elevations."""
    names, group, counts = np.unique(label[valid], return_inverse=True, return_counts=True)
    if len(names) > 1024:
        return None
    by_group = np.split(elevation[valid][np.argsort(group, kind="stable")], np.cumsum(counts)[:-1])
    middle = np.array([np.median(each) for each in by_group])
    enough = np.flatnonzero(counts >= min(FEWEST, counts.max()))
    order = enough[np.argsort(middle[enough], kind="stable")]
    beams, first = np.unique(middle[order], return_index=True)
    row_of = np.full(len(names), -1)
    row_of[order[first]] = np.arange(len(beams))
    rings = np.full(len(label), -1, np.int64)
    rings[valid] = row_of[group]
    return beams, rings


def _by_order(azimuth: np.ndarray, elevation: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Separate points stored beam by beam, as in KITTI's files, where the azimuth turns once per beam."""
    kept = np.flatnonzero(valid)
    jumps = np.abs(np.diff(azimuth[kept])) > np.pi
    label = np.concatenate(([0], np.cumsum(jumps)))
    count = int(label[-1]) + 1
    if not 4 <= count <= 300:
        return None
    # A file may start within a turn, so the first and the last beam may be incomplete. A beam's elevations spread
    # little, and the beams ascend or descend.
    middle = np.array([np.median(elevation[kept][label == each]) for each in range(count)])
    spread = np.array(
        [np.percentile(np.abs(elevation[kept][label == each] - middle[each]), 75) for each in range(count)]
    )
    steps = np.diff(middle)
    if np.median(spread) > np.median(np.abs(steps)) or max((steps > 0).mean(), (steps < 0).mean()) < 0.9:
        return None
    full = np.full(len(azimuth), -1, np.int64)
    full[kept] = label
    return _by_label(full, elevation, valid)


def _by_elevation(elevation: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Separate beams whose elevations form few narrow clusters."""
    kept = np.flatnonzero(valid)
    order = kept[np.argsort(elevation[kept], kind="stable")]
    new = np.diff(elevation[order]) > CLUSTER
    label = np.full(len(elevation), -1, np.int64)
    label[order] = np.concatenate(([0], np.cumsum(new)))
    counts = np.bincount(label[kept])
    large = counts >= max(FEWEST, len(kept) // 5000)
    if not 2 <= large.sum() <= 300 or counts[large].sum() < 0.95 * len(kept):
        return None
    widths = [np.ptp(elevation[label == each]) for each in np.flatnonzero(large)]
    if np.median(widths) > 10 * CLUSTER:
        return None
    label[kept] = np.where(large[label[kept]], label[kept], -1)
    return _by_label(label, elevation, valid & (label >= 0))


def _columns(azimuth: np.ndarray, rings: np.ndarray) -> int:
    """Return the number of columns, from the azimuth steps of the beam with the most points."""
    counts = np.bincount(rings[rings >= 0])
    ring = np.sort(azimuth[rings == int(counts.argmax())])
    steps = np.diff(ring)
    steps = steps[steps > 1e-5]
    if not len(steps):
        return 1
    columns = 2 * np.pi / float(np.median(steps))
    near = min(COLUMNS, key=lambda each: abs(each - columns))
    if abs(near - columns) < 0.03 * near:
        return near
    return int(np.clip(round(columns), 1, 1 << 16))
