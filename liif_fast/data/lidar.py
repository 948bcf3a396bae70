"""LiDAR training data: pairs of range images, and a wrapper that draws queries from them.

A pair holds a scan with few lines, and ranges in other directions. `rows` and `columns` give these directions as
indices into the scan, so this module needs neither a sensor nor a layout of beams.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.random import Generator

from liif_fast.data.registry import register
from liif_fast.data.samples import Sample
from liif_fast.files import atomic_file
from liif_fast.lidar.scan import is_scan, read_scan
from liif_fast.lidar.sensor import Sensor

logger = logging.getLogger("liif_fast")
UNIT = 0.002  # metres per step of the 16-bit integers that store ranges


class Pair(NamedTuple):
    """Ranges in metres; 0 means no return."""

    low: np.ndarray  # float32 [h, w]; one row per beam, the lowest first
    high: np.ndarray  # float32 [H, W]
    rows: np.ndarray  # float64 [H], as fractional row indices of low
    columns: np.ndarray  # float64 [W], as fractional column indices of low, from 0 to less than w


class Pairs(Protocol):
    """A dataset of pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pair: ...


@register("lidar-streets")
class Streets:
    """Ray-cast scans of random streets (`liif_fast.lidar.street`), made once and stored in a file.

    The scan with few lines has noise and dropouts; the target ranges are exact. In half of the scans the targets lie on
    the sensor's remaining beams, in the other half anywhere.

    Args:
        count: number of scans.
        seed: seed of the scenes.
        sensors: names of sensors; each scan takes the beams of one at random, and a name given twice counts twice.
            "fan" is an even fan of random spacing. If a sensor has more than `lines` beams, every k-th is taken.
        lines: lines of the scan.
        columns: columns of the scan and of the targets.
        rows: lines of the targets.
        max_range: metres; farther returns count as no return.
        noise: standard deviation of a measured range in metres.
        dropouts: largest share of returns lost at random.
        cache_file: file that stores the scans; None makes them at every start.

    Raises:
        ImportError: the scans must be made, and embreex is not installed.
        ValueError: an argument is out of its range, or the file holds other scans.
    """

    def __init__(
        self,
        count: int = 500,
        seed: int = 1,
        sensors: Sequence[str] = ("os1-128",),
        lines: int = 32,
        columns: int = 1024,
        rows: int = 96,
        max_range: float = 80.0,
        noise: float = 0.02,
        dropouts: float = 0.12,
        cache_file: str | None = None,
    ) -> None:
        if min(count, lines, columns, rows) < 1 or not sensors:
            raise ValueError("count, lines, columns and rows must be at least 1, and sensors name one")
        self.seed, self.lines, self.columns, self.rows = seed, lines, columns, rows
        self.max_range, self.noise, self.dropouts = max_range, noise, dropouts
        self.sensors = [None if name == "fan" else Sensor.named(name) for name in sensors]
        for sensor in self.sensors:
            if sensor is not None and sensor.lines < lines:
                raise ValueError(f"sensors: {sensor.name} has {sensor.lines} beams, lines asks for {lines}")
        self.kind = np.dtype(
            [
                ("low", "<u2", (lines, columns)),
                ("high", "<u2", (rows, columns)),
                ("rows", "<f4", (rows,)),
                ("shift", "<f4"),
            ]
        )
        path = None if cache_file is None else Path(cache_file).expanduser()
        if path is not None and path.exists():
            self.scans = np.load(path, mmap_mode="r")
            if self.scans.dtype != self.kind or len(self.scans) != count:
                raise ValueError(f"cache_file: {path} holds other scans; remove it or name another file")
            return
        scans = np.zeros(count, self.kind)
        for index in range(count):
            scans[index] = self._made(np.random.default_rng([seed, index]))
            if index % 100 == 99:
                logger.info("made %d of %d streets", index + 1, count)
        self.scans = scans
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                np.save(file, scans)

    def _made(self, rng: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        from liif_fast.lidar.street import Caster, street

        choice = self.sensors[rng.integers(len(self.sensors))]
        rows = np.sort(rng.uniform(-0.75, self.lines - 0.25, self.rows))
        if choice is None:
            spacing = rng.uniform(0.4, 2.4)
            top = rng.uniform(0, spacing * (self.lines - 1) * 0.7)
            beams = np.linspace(top - spacing * (self.lines - 1), top, self.lines)
            sensor = Sensor(tuple(beams), self.columns)
        else:
            step = choice.lines // self.lines
            beams = np.sort(choice.beams)
            first = int(rng.integers(step))
            sensor = Sensor(tuple(beams[first::step][: self.lines]), self.columns)
            if step > 1 and rng.random() < 0.5:
                between = np.delete(beams, np.arange(first, len(beams), step)[: self.lines])
                rows = sensor.row_of(np.radians(np.resize(between, self.rows)))
        shift = 0.0 if rng.random() < 0.6 else float(np.float32(rng.uniform(0, 0.999)))
        caster, azimuth = Caster(street(rng)), sensor.azimuths
        low = caster.cast(sensor.elevations, azimuth, rng)
        high = caster.cast(sensor.elevation_of(rows), azimuth + shift * 2 * np.pi / self.columns)
        found = (low > 0) & (rng.random(low.shape) >= rng.uniform(0, self.dropouts))
        low = np.where(found, low + rng.normal(0, self.noise, low.shape), 0)
        low, high = (np.where((each > 0) & (each <= self.max_range), each, 0) / UNIT for each in (low, high))
        return np.round(low).astype(np.uint16), np.round(high).astype(np.uint16), rows, shift

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        scan = self.scans[index]
        low, high = (np.asarray(scan[key], np.float32) * np.float32(UNIT) for key in ("low", "high"))
        columns = np.arange(self.columns, dtype=np.float64) + float(scan["shift"])
        return Pair(low, high, scan["rows"].astype(np.float64), columns)


@register("lidar-folders")
class RangeFolders:
    """Range images in folders, paired by name, in the layout of the CARLA set of ILN's authors.

    Files of the same name in `root_path/folder/low` and `root_path/folder/high` are scans of one place by two even fans
    with the same first and last beams. They may have any range image format of `liif_fast.lidar.scan`, with the lowest
    beam first (`.npz`: top beam first, as always).

    Args:
        root_path: the top folder.
        folders: folders in it, such as Town01; None takes all that contain a folder `low`.
        low: name of the folders of scans with few lines.
        high: name of the folders of scans with many lines.
        repeat: length of the dataset as a multiple of the number of pairs.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a folder is empty, or a scan has no partner.
    """

    def __init__(
        self,
        root_path: str,
        folders: Sequence[str] | None = None,
        low: str = "16_1024",
        high: str = "128_2048",
        repeat: int = 1,
    ) -> None:
        root = Path(root_path).expanduser()
        names = sorted(each.parent.name for each in root.glob(f"*/{low}")) if folders is None else list(folders)
        self.paths: list[tuple[Path, Path]] = []
        for name in names:
            pair = root / name / low, root / name / high
            for folder in pair:
                if not folder.is_dir():
                    raise FileNotFoundError(f"root_path: no folder {folder}")
            found = [{each.name: each for each in folder.iterdir() if is_scan(each.name)} for folder in pair]
            if alone := sorted(set(found[0]) ^ set(found[1])):
                raise ValueError(f"root_path: {alone[0]} is in only one of {pair[0]} and {pair[1]}")
            self.paths += [(found[0][key], found[1][key]) for key in sorted(found[0])]
        if not self.paths or repeat < 1:
            raise ValueError(f"root_path: no scans in {root}/*/{low}, or repeat is below 1")
        self.repeat = repeat

    def __len__(self) -> int:
        return len(self.paths) * self.repeat

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        low, high = (self._read(path) for path in self.paths[index % len(self.paths)])
        rows = np.linspace(0, low.shape[0] - 1, high.shape[0])
        return Pair(low, high, rows, np.arange(high.shape[1]) * (low.shape[1] / high.shape[1]))

    @staticmethod
    def _read(path: Path) -> np.ndarray:
        scan = read_scan(path)
        if scan.ranges is None:
            raise ValueError(f"{path}: holds points, expected a range image")
        return scan.ranges if scan.beams is None or scan.beams[0] <= scan.beams[-1] else scan.ranges[::-1]


@register("lidar-implicit")
class LidarImplicit(torch.utils.data.Dataset[Sample]):
    """Draw queries from range images to train a network for LiDAR.

    Args:
        dataset: pairs of range images.
        sample_q: queries per sample, drawn without replacement.
        columns: width of a random crop of the input; None takes all columns.
        margin: columns on either side of a crop from which no query is drawn. It must be at least the encoder's
            receptive radius, because the encoder pads the crop circularly.
        returns: share of the queries drawn from directions with a return.
        norm_range: metres that map to 1; a direction without a return has this range.
        min_range: metres; nearer returns become 0, as in ILN.
        max_range: metres; farther returns count as no return.
        augment: mirror the scans and scale their ranges.
        seed: seed of all draws.
    """

    def __init__(
        self,
        dataset: Pairs,
        sample_q: int = 1024,
        columns: int | None = None,
        margin: int = 0,
        returns: float = 0.0,
        norm_range: float = 100.0,
        min_range: float = 0.0,
        max_range: float = 80.0,
        augment: bool = False,
        seed: int | None = None,
    ) -> None:
        if sample_q < 1 or margin < 0 or (columns is not None and columns < 1) or not 0 <= returns <= 1:
            raise ValueError("sample_q and columns must be at least 1, margin at least 0 and returns in [0, 1]")
        if not 0 <= min_range < max_range <= norm_range:
            raise ValueError("ranges must have 0 <= min_range < max_range <= norm_range")
        self.dataset, self.queries, self.columns, self.margin = dataset, sample_q, columns, margin
        self.returns, self.norm_range, self.augment, self.seed = returns, norm_range, augment, seed
        self.limits = (min_range, max_range)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next samples."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        low, high, rows, columns = self.dataset[index]
        height, width = low.shape
        seed = int(torch.randint(2**62, ())) if self.seed is None else [self.seed, self.epoch, index]
        rng = np.random.default_rng(seed)
        scale = 1.0
        if self.augment:
            scale = float(np.exp(rng.uniform(np.log(0.7), np.log(1.4))))
            if rng.random() < 0.5:  # the mirror image of column j is column -j
                low, columns = np.roll(low[:, ::-1], 1, 1), (-columns) % width
        begin, across, margin = 0, width, 0
        if self.columns is not None and self.columns + 2 * self.margin < width:
            begin, across, margin = int(rng.integers(width)), self.columns, self.margin
        taken = (begin - margin + np.arange(across + 2 * margin)) % width
        place = (columns - begin) % width
        inside = np.flatnonzero(place < across)
        picked = self._pick(high[:, inside], rng)
        row, column = rows[picked // len(inside)], place[inside[picked % len(inside)]] + margin
        sides = np.array([height, len(taken)])
        coord = (2 * np.stack((row, column), -1) + 1) / sides - 1
        truth = high[:, inside].ravel()[picked][:, None]
        inp = torch.from_numpy(self._unit(low[:, taken] * np.float32(scale)))[None]
        return {
            "inp": inp,
            "coord": torch.from_numpy(coord.astype(np.float32)),
            "cell": torch.from_numpy(np.broadcast_to((2 / sides).astype(np.float32), coord.shape).copy()),
            "gt": torch.from_numpy(self._unit(truth * np.float32(scale))),
        }

    def _pick(self, high: np.ndarray, rng: Generator) -> np.ndarray:
        found = np.flatnonzero(high.ravel() > 0)
        count = min(round(self.returns * self.queries), len(found))
        picked = rng.choice(found, count, replace=False) if count else np.zeros(0, np.int64)
        return np.concatenate((picked, rng.choice(high.size, self.queries - count, replace=False)))

    def _unit(self, ranges: np.ndarray) -> np.ndarray:
        return crop(ranges, *self.limits, self.norm_range) / np.float32(self.norm_range)


def crop(ranges: np.ndarray, min_range: float, max_range: float, norm_range: float) -> np.ndarray:
    """Map ranges in metres as ILN does: no return and too far become `norm_range`, too near becomes 0."""
    ranges = np.where(ranges < 1e-9, np.float32(norm_range), ranges)
    ranges = np.where(ranges < min_range, np.float32(0), ranges)
    return np.where(ranges > max_range, np.float32(norm_range), ranges).astype(np.float32)
