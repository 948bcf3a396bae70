"""Describe the beam directions of spinning LiDAR sensors."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from liif_fast.files import reason
from liif_fast.lidar.parsing import value

MAX_LINES = 4096


@dataclass(frozen=True)
class Sensor:
    """The directions of a range image: one row per beam, one column per azimuth.

    Args:
        beams: elevation of each row in degrees, ascending or descending; real beams are not evenly spaced.
        columns: number of azimuths per turn, evenly spaced; column j is at -180 + 360 j / columns degrees.
        min_range: metres; nearer returns are unreliable.
        max_range: metres; farther returns count as no return.
        name: name for messages.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    beams: tuple[float, ...]
    columns: int
    min_range: float = 0.3
    max_range: float = 120.0
    name: str = "sensor"

    def __post_init__(self) -> None:
        beams = np.asarray(self.beams, np.float64)
        if beams.ndim != 1 or not 1 <= len(beams) <= MAX_LINES:
            raise ValueError(f"beams must be 1 to {MAX_LINES} elevations in degrees, got shape {list(beams.shape)}")
        steps = np.diff(beams)
        if not (np.isfinite(beams).all() and np.abs(beams).max() < 90):
            raise ValueError("beams must be finite and within -90 and 90 degrees")
        if len(steps) and not ((steps > 0).all() or (steps < 0).all()):
            raise ValueError("beams must ascend or descend, without two at one elevation; sort them first")
        if type(self.columns) is not int or not 1 <= self.columns <= 1 << 17:
            raise ValueError(f"columns must be a whole number from 1 to {1 << 17}, got {self.columns!r:.80}")
        if not 0 <= self.min_range < self.max_range < math.inf:
            raise ValueError(
                f"ranges must have 0 <= min_range < max_range in metres, got {self.min_range} and {self.max_range}"
            )
        object.__setattr__(self, "beams", tuple(beams.tolist()))

    @property
    def lines(self) -> int:
        """Return the number of beams."""
        return len(self.beams)

    @property
    def elevations(self) -> np.ndarray:
        """Return the elevation of each row in radians, float64 [lines]."""
        return np.radians(self.beams)

    @property
    def azimuths(self) -> np.ndarray:
        """Return the azimuth of each column in radians, float64 [columns]; 0 along +y, growing towards +x."""
        return -np.pi + np.arange(self.columns) * (2 * np.pi / self.columns)

    def row_of(self, elevation: np.ndarray) -> np.ndarray:
        """Return fractional row indices of elevations (radians), float64; linear between and beyond the beams."""
        beams, index = self.elevations, np.arange(self.lines, dtype=np.float64)
        if self.lines == 1:  # any spacing works, because all corners are the same row
            return (np.asarray(elevation, np.float64) - beams[0]) / np.radians(1.0)
        if beams[0] > beams[-1]:
            beams, index = beams[::-1], index[::-1]
        at = np.clip(np.searchsorted(beams, elevation, side="right") - 1, 0, self.lines - 2)
        part = (np.asarray(elevation, np.float64) - beams[at]) / (beams[at + 1] - beams[at])
        return index[at] + part * (index[at + 1] - index[at])

    def elevation_of(self, row: np.ndarray) -> np.ndarray:
        """Return the elevations (radians) of fractional row indices; the inverse of `row_of`."""
        row, beams = np.asarray(row, np.float64), self.elevations
        if self.lines == 1:
            return beams[0] + row * np.radians(1.0)
        at = np.clip(np.floor(row).astype(np.int64), 0, self.lines - 2)
        return beams[at] + (row - at) * (beams[at + 1] - beams[at])

    def with_lines(self, lines: int) -> Sensor:
        """Return a sensor with `lines` beams evenly from this one's first to its last."""
        return self._changed(np.linspace(self.beams[0], self.beams[-1], lines), f"{lines} lines")

    def between(self, factor: int) -> Sensor:
        """Return a sensor with factor - 1 new beams between neighbouring beams of this one."""
        rows = np.arange((self.lines - 1) * factor + 1) / factor
        return self._changed(np.degrees(self.elevation_of(rows)), f"x{factor}")

    def every(self, step: int, first: int = 0) -> Sensor:
        """Return a sensor of every `step`-th beam."""
        return self._changed(self.beams[first::step], f"every {step}")

    def with_columns(self, columns: int) -> Sensor:
        """Return a sensor with another number of columns."""
        return Sensor(self.beams, columns, self.min_range, self.max_range, self.name)

    def _changed(self, beams: Sequence[float] | np.ndarray, how: str) -> Sensor:
        return Sensor(tuple(map(float, beams)), self.columns, self.min_range, self.max_range, f"{self.name} {how}")

    def lidar_in(self, norm_range: float) -> dict[str, Any]:
        """Return the sensor as in checkpoints of ILN's authors: angles in radians, lowest beam first."""
        low, high = sorted((self.beams[0], self.beams[-1]))
        return {
            "max_r": self.max_range,
            "min_r": self.min_range,
            "norm_r": norm_range,
            "max_v": math.radians(high),
            "min_v": math.radians(low),
            "max_h": math.pi,
            "min_h": -math.pi,
            "channels": self.lines,
            "points_per_ring": self.columns,
        }

    @classmethod
    def named(cls, name: str) -> Sensor:
        """Return a sensor by its model name, such as `vlp-16` or `os1-64`; raise ValueError for unknown names."""
        table, key = _table(), name.lower()
        parted = re.fullmatch(r"(os[012])-([1-9]\d*)", key)
        if parted and key not in table and f"{parted[1]}-128" in table and 128 % int(parted[2]) == 0:
            whole = cls.named(f"{parted[1]}-128")
            step = 128 // int(parted[2])
            return cls(whole.beams[::step], whole.columns, whole.min_range, whole.max_range, key)
        if key not in table:
            raise ValueError(
                f"no sensor is called {name!r}; known are {', '.join(sorted(table))} and osN-16 to osN-128"
            )
        entry = table[key]
        beams = np.linspace(*entry["even"]) if "even" in entry else entry["beams"]
        return cls(tuple(beams), entry["columns"], entry["min_range"], entry["max_range"], key)

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Sensor:
        """Return the sensor given by a name, a YAML file, an Ouster's JSON metadata, or an .npz scan with its beams.

        Raises:
            ValueError: the file is none of these, or a value is out of its range; the message names the file.
            OSError: the file cannot be read.
        """
        path = Path(source)
        if path.suffix.lower() not in (".yaml", ".yml", ".json", ".npz"):
            return cls.named(str(source))
        if path.suffix.lower() == ".npz":
            from liif_fast.lidar.scan import read_scan

            scan = read_scan(path)
            if scan.beams is None or scan.ranges is None:
                raise ValueError(f"{path}: no altitude_deg in it")
            try:
                return cls(tuple(scan.beams.tolist()), scan.ranges.shape[1], 0.3, 200.0, path.stem)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        if path.suffix.lower() != ".json":
            return cls._from_yaml(path)
        try:
            return cls._from_ouster(json.loads(path.read_text(encoding="utf-8")), path.stem)
        except RecursionError:
            raise ValueError(f"{path}: is not a sensor's metadata: it is nested too deep") from None
        except ValueError as error:
            raise ValueError(f"{path}: {reason(error)}") from error

    @classmethod
    def _from_yaml(cls, path: Path) -> Sensor:
        """Read the file's mapping, or a single mapping inside it."""
        from liif_fast.config.reading import Document

        document = Document(path, "sensor")
        content, place = document.content, ""
        if isinstance(content, Mapping) and len(content) == 1:
            ((key, inner),) = content.items()
            content, place = (inner, f"{key}.") if isinstance(inner, Mapping) else (content, place)
        try:
            return cls._from_mapping(content, path.stem)
        except ValueError as error:
            raise ValueError(f"{document.where(f'{place}{error}')}: {reason(error)}") from error

    @classmethod
    def _from_mapping(cls, content: Any, name: str) -> Sensor:
        """Read `beams`, or ILN's keys in degrees."""
        if not isinstance(content, Mapping):
            raise ValueError(
                f"expected a mapping with beams or min_v, max_v and channels, got {type(content).__name__}"
            )
        beams = content.get("beams")
        if beams is None:
            missing = [key for key in ("min_v", "max_v", "channels") if key not in content]
            if missing:
                raise ValueError(f"no beams and no {', '.join(missing)}")
            lines = value(int, "channels", content["channels"], "a whole number")
            if not 1 <= lines <= MAX_LINES:  # before memory is taken for them
                raise ValueError(f"channels must be 1 to {MAX_LINES}, got {lines}")
            low, high = (value(float, key, content[key], "an elevation in degrees") for key in ("min_v", "max_v"))
            beams = np.linspace(low, high, lines).tolist()
        columns = "points_per_ring" if "points_per_ring" in content else "columns"
        return cls(
            tuple(sorted(value(_elevations, "beams", beams, "a list of elevations in degrees"))),
            value(int, columns, content.get(columns, 1024), "a whole number"),
            value(float, "min_r", content.get("min_r", 0.3), "a range in metres"),
            value(float, "max_r", content.get("max_r", 120.0), "a range in metres"),
            name,
        )

    @classmethod
    def _from_ouster(cls, content: Any, name: str) -> Sensor:
        """Read an Ouster's metadata, flat (old) or with `beam_intrinsics`, `lidar_data_format` and so on (new)."""
        if not isinstance(content, Mapping):
            raise ValueError(f"expected an Ouster's metadata, a mapping, got {type(content).__name__}")
        flat = dict(content)
        for part in ("beam_intrinsics", "lidar_data_format", "config_params", "sensor_info"):
            inner = flat.get(part)
            flat |= dict(inner) if isinstance(inner, Mapping) else {}
        angles = flat.get("beam_altitude_angles")
        if not angles:
            raise ValueError("no beam_altitude_angles: not an Ouster's metadata")
        angles = sorted(value(_elevations, "beam_altitude_angles", angles, "a list of degrees"), reverse=True)
        key = "columns_per_frame" if flat.get("columns_per_frame") else "lidar_mode"
        columns = str(flat.get(key, "1024x10")).partition("x")[0]
        count = value(int, key, columns, "a whole number of columns")
        return cls(tuple(angles), count, 0.3, 200.0, flat.get("prod_line", name))


def _elevations(beams: Any) -> list[float]:
    if not isinstance(beams, list):
        raise TypeError
    return np.array(beams, np.float64).ravel().tolist()


@cache
def _table() -> dict[str, dict[str, Any]]:
    path = Path(str(files("liif_fast"))) / "assets" / "sensors.json"
    table: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in table.items() if not key.startswith("_")}
