"""Score range images by errors in metres and by the overlap of voxels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from liif_fast.lidar.projection import unproject
from liif_fast.lidar.sensor import Sensor


class Scores(NamedTuple):
    """Scores of a range image; errors in metres. The voxels' scores are NaN without a sensor."""

    mae: float  # mean error over all directions
    mae_returns: float  # mean error over directions in which the truth has a return
    median: float  # median error over the same directions
    within: float  # share of the same directions with an error of at most `near`
    iou: float
    precision: float
    recall: float
    f1: float


def scores(
    ranges: np.ndarray,
    truth: np.ndarray,
    sensor: Sensor | None = None,
    *,
    max_range: float = 80.0,
    norm_range: float = 100.0,
    near: float = 0.2,
    voxel: float = 0.1,
) -> Scores:
    """Compare a range image with the truth.

    Args:
        ranges: [H, W] in metres, 0 without a return.
        truth: true ranges, likewise.
        sensor: sensor of both; None leaves the voxels out.
        max_range: metres; farther returns of the truth count as no return.
        norm_range: metres that stand for no return, in both images.
        near: limit of the share `within` in metres.
        voxel: side of a voxel in metres.

    Returns:
        The scores; a mean over nothing is NaN.

    Raises:
        ValueError: the shapes differ.

    Source: mae and the voxels are those of ILN's experiments (arXiv 2203.06413).
    """
    ranges, truth = np.asarray(ranges, np.float64), np.asarray(truth, np.float64)
    if ranges.shape != truth.shape:
        raise ValueError(f"ranges and truth must have one shape, got {list(ranges.shape)} and {list(truth.shape)}")
    returns = (truth > 0) & (truth <= max_range)
    made = np.clip(np.where(ranges > 0, ranges, norm_range), 0, norm_range)
    error = np.abs(made - np.where(returns, truth, norm_range))
    at_returns = error[returns]
    some = at_returns.size > 0
    overlap = (float("nan"),) * 4
    if sensor is not None:
        sets = [_voxels(np.where(each <= max_range, each, 0), sensor, voxel) for each in (ranges, truth)]
        overlap = _overlap(*sets)
    return Scores(
        float(error.mean()) if error.size else float("nan"),
        float(at_returns.mean()) if some else float("nan"),
        float(np.median(at_returns)) if some else float("nan"),
        float((at_returns <= near).mean()) if some else float("nan"),
        *overlap,
    )


def _voxels(ranges: np.ndarray, sensor: Sensor, side: float) -> np.ndarray:
    points, _ = unproject(ranges, sensor)
    return np.unique(np.floor(points.astype(np.float64) / side).astype(np.int64), axis=0)


def _overlap(made: np.ndarray, true: np.ndarray) -> tuple[float, float, float, float]:
    both = len(made) + len(true) - len(np.unique(np.concatenate((made, true)), axis=0))
    either = len(made) + len(true) - both
    if not either:
        return (float("nan"),) * 4
    precision, recall = both / max(len(made), 1), both / max(len(true), 1)
    return both / either, precision, recall, 2 * both / max(len(made) + len(true), 1)
