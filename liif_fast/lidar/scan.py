"""Read and check scans, points or range images, from files, and write them atomically."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from liif_fast.files import atomic_file, reason
from liif_fast.lidar import pcd, ply
from liif_fast.lidar.sensor import Sensor

POINT_FORMATS = (".bin", ".pcd", ".ply")
IMAGE_FORMATS = (".npy", ".npz", ".rimg")
FORMATS = (*POINT_FORMATS, *IMAGE_FORMATS)


class ScanFileError(ValueError):
    """A file holds no usable scan; the message says why."""


class Scan(NamedTuple):
    """Points, or a range image."""

    points: np.ndarray  # float32 [N, 3] in metres
    channels: dict[str, np.ndarray]  # values of the points [N] or of the image [H, W]
    ranges: np.ndarray | None = None  # float32 [H, W] in metres, 0 without a return
    beams: np.ndarray | None = None  # elevations of the image's rows in degrees, if the file has them

    @property
    def size(self) -> int:
        """Return the number of returns."""
        return len(self.points) if self.ranges is None else int((self.ranges > 0).sum())


def is_scan(name: str) -> bool:
    """Return whether a file name has a scan's extension."""
    return Path(name).suffix.lower() in FORMATS


def read_scan(path: str | os.PathLike[str], point_floats: int | None = None) -> Scan:
    """Read a scan.

    Args:
        path: `.bin` (float32 x, y, z, intensity; `.pcd.bin` has the ring as a fifth), `.pcd`, `.ply`, `.npy` (a range
            image, or points if there are 3 to 6 columns), `.npz` (`range_m` [H, W], `altitude_deg` [H]) or `.rimg`.
        point_floats: number of floats per point of a `.bin`, if its name implies a wrong one.

    Returns:
        The scan, including values that are not finite.

    Raises:
        ScanFileError: the file is not one of these or is damaged; the message names it.
        OSError: the file cannot be read.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ScanFileError(f"{path}: unknown scan format; known are {', '.join(FORMATS)}")
    if not path.is_file():
        raise ScanFileError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        if kind == ".bin":
            return _read_bin(path, point_floats)
        if kind in (".pcd", ".ply"):
            with open(path, "rb") as file:
                try:
                    fields = (pcd if kind == ".pcd" else ply).read(file)
                except LookupError as error:  # its text would be an index or a bare name
                    raise ValueError("its header is damaged or lacks a part") from error
            return from_fields(fields)
        return {".npy": _read_npy, ".npz": _read_npz, ".rimg": _read_rimg}[kind](path)
    except OSError:
        raise
    except Exception as error:  # parsers of damaged files raise anything
        raise ScanFileError(f"{path}: {reason(error)}") from error


def write_points(path: str | os.PathLike[str], points: np.ndarray, channels: dict[str, np.ndarray]) -> None:
    """Write points to a file atomically.

    Args:
        path: ends in `.bin` (x, y, z, intensity), `.pcd` or `.ply` (binary, with all channels).
        points: float32 [N, 3].
        channels: float32, uint16 or uint8 [N] each.

    Raises:
        ValueError: the path has another extension.
    """
    kind = Path(path).suffix.lower()
    if kind not in POINT_FORMATS:
        raise ValueError(f"{path}: cannot write points in this format; use {', '.join(POINT_FORMATS)}")
    if kind == ".bin":
        intensity = channels.get("intensity", np.zeros(len(points)))
        rows = np.column_stack((points, intensity)).astype("<f4")
        with atomic_file(path) as file:
            file.write(rows.tobytes())
        return
    write: Callable[[IO[bytes], np.ndarray], None] = (pcd if kind == ".pcd" else ply).write
    with atomic_file(path) as file:
        write(file, table_of(points, channels))


def table_of(points: np.ndarray, channels: dict[str, np.ndarray]) -> np.ndarray:
    """Return points [N, 3] and their channels [N] as one structured little-endian array [N]."""
    fields = {name: np.ascontiguousarray(points[:, i], "<f4") for i, name in enumerate("xyz")} | channels
    table = np.empty(len(points), [(name, np.dtype(values.dtype).newbyteorder("<")) for name, values in fields.items()])
    for name, values in fields.items():
        table[name] = values
    return table


def write_image(path: str | os.PathLike[str], ranges: np.ndarray, sensor: Sensor) -> None:
    """Write a range image to a file atomically.

    Args:
        path: ends in `.npy`, `.npz` (top beam first, with its beams) or `.rimg` (lowest beam first, half precision).
        ranges: float32 [H, W] in metres, 0 without a return, rows in the order of `sensor`.
        sensor: gives the beams.

    Raises:
        ValueError: the path has another extension.
    """
    kind = Path(path).suffix.lower()
    if kind not in IMAGE_FORMATS:
        raise ValueError(f"{path}: cannot write range images in this format; use {', '.join(IMAGE_FORMATS)}")
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
        raise ScanFileError(f"{size} bytes are not a whole number of points of {floats} floats; give --point-floats")
    values = np.fromfile(path, "<f4").reshape(-1, floats)
    channels = {"intensity": values[:, 3]} if floats > 3 else {}
    if floats == 5:
        channels["ring"] = values[:, 4]
    return Scan(np.ascontiguousarray(values[:, :3]), channels)


def from_fields(fields: dict[str, np.ndarray]) -> Scan:
    """Return x, y, z as points and the other fields as channels; raise ScanFileError if x, y or z is missing."""
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
            raise ScanFileError(f"{size} bytes do not make a .rimg: height, width, then half-precision ranges")
        values = np.frombuffer(file.read(), "<f2").reshape(width, height)
    return _image(values.T)
