"""Scans in files: points or range images, read whole and checked, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from liif_fast.files import atomic_file
from liif_fast.lidar import pcd, ply
from liif_fast.lidar.sensor import Sensor

MAX_POINTS = 1 << 28
POINT_FORMATS = (".bin", ".pcd", ".ply")
IMAGE_FORMATS = (".npy", ".npz", ".rimg")
FORMATS = (*POINT_FORMATS, *IMAGE_FORMATS)


class ScanFileError(ValueError):
    """A file that holds no scan that can be used, and why."""


class Scan(NamedTuple):
    """Points, or a range image."""

    points: np.ndarray  # float32 [N, 3], metres
    channels: dict[str, np.ndarray]  # of the points [N], or of the image [H, W]
    ranges: np.ndarray | None = None  # float32 [H, W], metres, 0 without a return
    beams: np.ndarray | None = None  # elevation of the image's rows in degrees, if the file says

    @property
    def size(self) -> int:
        """Number of returns."""
        return len(self.points) if self.ranges is None else int((self.ranges > 0).sum())


def is_scan(name: str) -> bool:
    """Say whether a name ends as those of scans do."""
    return Path(name).suffix.lower() in FORMATS


def read_scan(path: str | os.PathLike[str], point_floats: int | None = None) -> Scan:
    """Read a scan.

    Args:
        path: `.bin` (float32 x, y, z, intensity; `.pcd.bin` has the ring as a fifth), `.pcd`, `.ply`, `.npy` (a range
            image, or points where there are 3 to 6 columns), `.npz` (`range_m` [H, W], `altitude_deg` [H]) or `.rimg`.
        point_floats: floats a point of a `.bin`, where its name says another number than there is.

    Returns:
        The scan; values that are not finite come through.

    Raises:
        ScanFileError: the file is not one of these, or damaged; naming it.
        OSError: it cannot be read.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ScanFileError(f"{path}: not a kind of scan that can be read; known are {', '.join(FORMATS)}")
    if not path.is_file():
        raise ScanFileError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        if kind == ".bin":
            return _read_bin(path, point_floats)
        if kind in (".pcd", ".ply"):
            with open(path, "rb") as file:
                return from_fields((pcd if kind == ".pcd" else ply).read(file))
        return {".npy": _read_npy, ".npz": _read_npz, ".rimg": _read_rimg}[kind](path)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file makes a parser raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ScanFileError(f"{path}: {reason}") from error


def write_points(path: str | os.PathLike[str], points: np.ndarray, channels: dict[str, np.ndarray]) -> None:
    """Write points; the old file stays until the new one is whole.

    Args:
        path: ends in `.bin` (x, y, z, intensity), `.pcd` or `.ply` (binary, with all channels).
        points: float32 [N, 3].
        channels: float32, uint16 or uint8 [N] each.

    Raises:
        ValueError: the ending is another one.
    """
    kind = Path(path).suffix.lower()
    if kind not in POINT_FORMATS:
        raise ValueError(f"{path}: points are written as {', '.join(POINT_FORMATS)}")
    if kind == ".bin":
        intensity = channels.get("intensity", np.zeros(len(points)))
        rows = np.column_stack((points, intensity)).astype("<f4")
        with atomic_file(path) as file:
            file.write(rows.tobytes())
        return
    fields = {name: np.ascontiguousarray(points[:, i], "<f4") for i, name in enumerate("xyz")} | channels
    table = np.empty(len(points), [(name, np.dtype(values.dtype).newbyteorder("<")) for name, values in fields.items()])
    for name, values in fields.items():
        table[name] = values
    write: Callable[[IO[bytes], np.ndarray], None] = (pcd if kind == ".pcd" else ply).write
    with atomic_file(path) as file:
        write(file, table)


def write_image(path: str | os.PathLike[str], ranges: np.ndarray, sensor: Sensor) -> None:
    """Write a range image; the old file stays until the new one is whole.

    Args:
        path: ends in `.npy`, `.npz` (top beam first, with its beams) or `.rimg` (lowest beam first, half precision).
        ranges: float32 [H, W], metres, 0 without a return, rows as `sensor` has them.
        sensor: of the rows.

    Raises:
        ValueError: the ending is another one.
    """
    kind = Path(path).suffix.lower()
    if kind not in IMAGE_FORMATS:
        raise ValueError(f"{path}: range images are written as {', '.join(IMAGE_FORMATS)}")
    beams = np.asarray(sensor.beams)
    ascends = len(beams) > 1 and beams[0] < beams[-1]
    with atomic_file(path) as file:
        if kind == ".npy":
            np.save(file, ranges.astype(np.float32))
        elif kind == ".npz":
            order = slice(None, None, -1 if ascends else 1)
            offset = np.zeros(len(beams))
            np.savez_compressed(
                file, range_m=ranges[order].astype(np.float32), altitude_deg=beams[order], azimuth_offset_deg=offset
            )
        else:
            lowest_first = ranges if ascends else ranges[::-1]
            file.write(np.array(ranges.shape, "<u8").tobytes())
            file.write(np.ascontiguousarray(lowest_first.T, "<f2").tobytes())


def _read_bin(path: Path, point_floats: int | None) -> Scan:
    floats = point_floats or (5 if path.name.lower().endswith(".pcd.bin") else 4)
    if floats < 3:
        raise ScanFileError(f"--point-floats must be at least 3, got {floats}")
    size = path.stat().st_size
    if size % (4 * floats):
        raise ScanFileError(
            f"{size} bytes are no whole number of points of {floats} floats; --point-floats says another"
        )
    values = np.fromfile(path, "<f4").reshape(-1, floats)
    channels = {"intensity": values[:, 3]} if floats > 3 else {}
    if floats == 5:
        channels["ring"] = values[:, 4]
    return Scan(np.ascontiguousarray(values[:, :3]), channels)


def from_fields(fields: dict[str, np.ndarray]) -> Scan:
    """Return the points x, y, z and the other fields as channels; ScanFileError without x, y or z."""
    by_name = {name.lower(): values for name, values in fields.items()}
    missing = [name for name in "xyz" if name not in by_name]
    if missing:
        raise ScanFileError(f"no field {', '.join(missing)}; it has {', '.join(fields) or 'none'}")
    points = np.column_stack([by_name.pop(name) for name in "xyz"]).astype(np.float32)
    for other in ("i", "scalar_intensity", "reflectivity"):
        if "intensity" not in by_name and other in by_name:
            by_name["intensity"] = by_name.pop(other)
    return Scan(points, by_name)


def _image(ranges: np.ndarray, beams: np.ndarray | None = None, channels: dict[str, np.ndarray] | None = None) -> Scan:
    if ranges.ndim != 2 or 0 in ranges.shape or ranges.dtype.kind not in "fiu":
        raise ScanFileError(f"a range image must be numbers [H, W], got {ranges.dtype} {list(ranges.shape)}")
    ranges = ranges.astype(np.float32)
    ranges = np.where(np.isfinite(ranges) & (ranges > 0), ranges, np.float32(0))
    return Scan(np.zeros((0, 3), np.float32), channels or {}, ranges, beams)


def _read_npy(path: Path) -> Scan:
    array = np.load(path, allow_pickle=False)
    if array.ndim == 2 and 3 <= array.shape[1] <= 6 and array.dtype.kind == "f":
        channels = {"intensity": array[:, 3].astype(np.float32)} if array.shape[1] > 3 else {}
        return Scan(array[:, :3].astype(np.float32), channels)
    return _image(array)


def _read_npz(path: Path) -> Scan:
    with np.load(path, allow_pickle=False) as archive:
        if "range_m" not in archive.files:
            raise ScanFileError(f"no range_m in it; it has {', '.join(archive.files) or 'nothing'}")
        ranges = archive["range_m"]
        beams = archive["altitude_deg"].astype(np.float64) if "altitude_deg" in archive.files else None
        names = [name for name in ("intensity", "reflectivity") if name in archive.files]
        channels = {"intensity": archive[names[0]].astype(np.float32)} if names else {}
    if beams is not None and beams.shape != ranges.shape[:1]:
        raise ScanFileError(f"altitude_deg must have one value a row, {ranges.shape[0]}, got {list(beams.shape)}")
    if any(each.shape != ranges.shape for each in channels.values()):
        raise ScanFileError(f"{names[0]} must have the shape of range_m, {list(ranges.shape)}")
    return _image(ranges, beams, channels)


def _read_rimg(path: Path) -> Scan:
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(16)
        height, width = np.frombuffer(head, "<u8").tolist() if len(head) == 16 else (0, 0)
        if height * width * 2 != size - 16:
            raise ScanFileError(f"{size} bytes are not those of a .rimg: height and width, then half-precision ranges")
        values = np.frombuffer(file.read(), "<f2").reshape(width, height)
    return _image(values.T)
