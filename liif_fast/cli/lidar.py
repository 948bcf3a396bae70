"""`liif-fast lidar`: densify LiDAR scans."""

import argparse
import re
import time
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liif_fast.cli import EXIT_CODES, complain, positive, say
from liif_fast.files import is_litter

if TYPE_CHECKING:
    from liif_fast.lidar.sensor import Sensor

_ABOUT = "Densify one LiDAR scan or all scans in a folder."
_EPILOG = """\
Reads and writes KITTI's .bin, .pcd, .ply, range images as .npy, .npz (range_m, altitude_deg) and .rimg, and ROS bags
(.bag, .mcap or the folder of a bag; extra [lidar]), whose other topics are copied. Measured points stay unchanged; new
ones are added between the lines. New points at an edge between near and far are dropped and counted, unless one
measured point dominates. In a folder, a file that fails is reported and the others continue; the exit code is then 1.
"""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("lidar", help="densify LiDAR scans", description=_ABOUT, epilog=_EPILOG + EXIT_CODES)
    parser.add_argument("input", type=expanduser, metavar="IN", help="a scan, or a folder of them")
    parser.add_argument(
        "output", type=expanduser, metavar="OUT", help="the file to write, whose extension sets the format; or a folder"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--lines",
        type=_lines,
        metavar="N|xK",
        help="N lines evenly from the first to the last beam; or xK (x4): K - 1 new lines between neighbours",
    )
    target.add_argument("--beams", type=expanduser, metavar="SENSOR", help="the beams of this sensor; as for --sensor")
    parser.add_argument("--columns", type=positive, metavar="M", help="columns per turn (default: the input's)")
    parser.add_argument(
        "--sensor",
        type=expanduser,
        default="auto",
        metavar="SENSOR",
        help="the input's sensor: a name such as vlp-16 or os1-64, a .yaml, an Ouster's .json, an .npz scan; or auto"
        " (default), which uses the file's beams, rings, order or elevations",
    )
    parser.add_argument(
        "--input-columns",
        type=positive,
        metavar="M",
        help="the input's columns per turn (default: the sensor's, or detected)",
    )
    parser.add_argument(
        "--model",
        type=expanduser,
        metavar="MODEL",
        help="an ILN's file, or a name; see models (default: the package's own)",
    )
    parser.add_argument(
        "--edge",
        type=_share,
        default=0.6,
        metavar="W",
        help="if the four points around differ by more than 1 m + 5 %%,"
        " one must have this weight (default: 0.6); 0 keeps all new points",
    )
    parser.add_argument("--replace", action="store_true", help="write only the model's points, no measured ones")
    parser.add_argument("--point-floats", type=positive, metavar="N", help="floats per point of a .bin (default: 4)")
    parser.add_argument(
        "--format", choices=("bin", "pcd", "ply", "npy", "npz", "rimg"), help="format of outputs in a folder"
    )
    parser.add_argument("--topic", metavar="NAME", help="topic of a ROS bag's clouds (default: the only one)")
    parser.add_argument("--png", action="store_true", help="write a picture of both range images beside each output")
    parser.add_argument("--bench", action="store_true", help="print the time of each stage")
    parser.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda or cuda:N")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Densify the scans and return the exit code."""
    jobs = plan(args.input, args.output, args.format)
    from liif_fast.lidar.bags import is_bag
    from liif_fast.lidar.sensor import Sensor

    sensor = None if args.sensor.lower() == "auto" else Sensor.load(args.sensor)
    if sensor is not None and args.input_columns:
        sensor = sensor.with_columns(args.input_columns)
    beams = None if args.beams is None else Sensor.load(args.beams)
    if len(jobs) == 1 and not is_bag(jobs[0][0]):  # report a bad file before loading torch
        from liif_fast.lidar.scan import read_scan

        read_scan(jobs[0][0], args.point_floats)
    from liif_fast.lidar.densify import Densifier

    work = Densifier(
        load(args.model, args.device),
        lambda own: asked(own, args.lines, beams, args.columns),
        sensor,
        edge=args.edge,
        replace=args.replace,
    )
    failed, table = 0, _Table()
    for source, target in jobs:
        try:
            if is_bag(source):
                _densify_bag(source, target, work, args, table)
            else:
                _densify(source, target, work, args, table)
        except (OSError, ValueError, MemoryError, RuntimeError) as error:
            if args.traceback or (len(jobs) == 1 and not isinstance(error, RuntimeError)):
                raise
            complain(source, error)
            failed += 1
    if len(jobs) > 1 or failed:
        say(f"{len(jobs) - failed} written" + (f", {failed} failed" if failed else ""))
    return 1 if failed else 0


def plan(source: str, target: str, form: str | None) -> list[tuple[Path, Path]]:
    """Pair every input with its output.

    Args:
        source: a scan, or a folder: every scan in it, by extension; hidden files are skipped.
        target: a file or a folder for a file, a folder for a folder.
        form: extension of outputs in a folder, without the dot; None keeps the input's.

    Returns:
        The pairs, sorted by name.

    Raises:
        ValueError: there is nothing to do, an output is an input, two inputs have one output, or a name has no format.
    """
    from liif_fast.lidar.bags import is_bag
    from liif_fast.lidar.scan import FORMATS, ScanFileError, is_scan

    if not source or not target:
        raise ScanFileError(f"{'OUT' if source else 'IN'} is empty; give a file or a folder")
    origin, goal = Path(source), Path(target)

    def named(path: Path) -> Path:
        stem = path.name[: -len(".pcd.bin")] if path.name.lower().endswith(".pcd.bin") else path.stem
        return goal / f"{stem}.{form}" if form else goal / f"{stem}{path.suffix}"

    if is_bag(origin):
        if not origin.exists():
            raise ScanFileError(f"{origin}: no such file")
        if is_scan(target) or (goal.exists() and not is_bag(goal)) or goal.resolve() == origin.resolve():
            raise ScanFileError(f"{goal}: {origin.name} is a ROS bag; give the name of another bag as OUT")
        return [(origin, goal)]
    if origin.is_dir():
        if goal.is_file() or (not goal.exists() and is_scan(target)):
            raise ScanFileError(f"{goal}: names a file, but {origin} is a folder; give a folder as OUT")
        files = sorted(each for each in origin.iterdir() if is_scan(each.name) and not is_litter(each.name))
        jobs = [(each, named(each)) for each in files if each.is_file()]
        if not jobs:
            raise ScanFileError(f"{origin}: no scans in it; known are {', '.join(FORMATS)}")
    else:
        into_folder = goal.is_dir() or target.endswith("/")
        if form and not into_folder:
            raise ScanFileError(f"{goal}: --format names the files in a folder; give a folder as OUT")
        jobs = [(origin, named(origin) if into_folder else goal)]
    taken: dict[Path, Path] = {}
    inputs = {each.resolve() for each, _ in jobs}
    for each, out in jobs:
        if not is_scan(out.name):
            raise ScanFileError(f"{out}: its extension is not a format; known are {', '.join(FORMATS)}")
        if out.resolve() in inputs:
            raise ScanFileError(f"{out}: is an input; choose another name or folder")
        if out in taken:
            raise ScanFileError(f"{out}: is the output of both {taken[out]} and {each}; rename one of them")
        taken[out] = each
    return jobs


def asked(own: "Sensor", lines: tuple[str, int] | None, beams: "Sensor | None", columns: int | None) -> "Sensor":
    """Return the output's sensor from the options and the input's sensor."""
    if beams is not None:
        from dataclasses import replace

        wanted = replace(own, beams=beams.beams, name=beams.name)
    else:
        assert lines is not None
        wanted = own.between(lines[1]) if lines[0] == "x" else own.with_lines(lines[1])
    return wanted.with_columns(columns or own.columns)


def load(name: str | None, device: str) -> Any:
    """Load the model; raise ModelFileError if it is not for LiDAR."""
    from liif_fast.devices import pick_device
    from liif_fast.models.catalogue import SHIPPED_LIDAR, find_model
    from liif_fast.models.checkpoint import ModelFileError, load_model
    from liif_fast.models.iln import ILN, LidarLIIF

    path = find_model(SHIPPED_LIDAR if name is None else name)
    model = load_model(path, pick_device(device))
    if not isinstance(model, ILN | LidarLIIF):
        raise ModelFileError(f"{path}: expected a model for LiDAR (iln, liif_lidar), got {type(model).__name__}")
    return model


class _Table:
    """Print a line for each scan to stdout, with a header before the first."""

    head = f"{'scan':<24}{'points in':>11}{'new':>9}{'out':>10}{'at edges':>10}{'beyond':>9}{'s':>8}{'Hz':>7}"

    def row(self, name: str, dense: Any, seconds: float) -> None:
        if self.head:
            print(self.head)
            self.head = ""
        name = name if len(name) <= 23 else f"{name[:10]}~{name[-12:]}"
        counts = f"{dense.source.points:>11}{dense.new:>9}{len(dense.points):>10}{dense.edge:>10}{dense.beyond:>9}"
        print(f"{name:<24}{counts}{seconds:>8.3f}{1 / seconds:>7.1f}", flush=True)


def _densify(source: Path, target: Path, work: Any, args: argparse.Namespace, table: _Table) -> None:
    """Densify a scan and print its line of the table."""
    from liif_fast.lidar.densify import picture
    from liif_fast.lidar.scan import IMAGE_FORMATS, read_scan, write_image, write_points

    begun, first = time.perf_counter(), work.upsampler is None
    scan = read_scan(source, args.point_floats)
    read = time.perf_counter() - begun
    try:
        dense = work(scan)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if first:
        say(f"sensor: {work.found}; to {dense.sensor.lines} lines, {dense.sensor.columns} columns")
        for remark in work.upsampler.remarks:
            say(remark)
    part = dense.source
    if lost := part.invalid + part.outside + part.hidden:
        counts = f"{part.invalid} not finite, {part.outside} outside the beams, {part.hidden} behind another"
        say(f"{source.name}: {part.filled:.0%} of the pixels filled; {lost} points not in the image: {counts}")
    before = time.perf_counter()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix.lower() in IMAGE_FORMATS:
        write_image(target, dense.ranges, dense.sensor)
    else:
        write_points(target, dense.points, dense.channels)
    if args.png:
        picture(dense, target.with_name(f"{target.name}.png"))
    after = time.perf_counter()
    stages = {"read": read, **dense.seconds, "write": after - before}
    if args.bench:
        say(f"{source.name}: " + ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in stages.items()))
    table.row(source.name, dense, sum(value for name, value in stages.items() if name != "plan"))  # planned once


def _densify_bag(source: Path, target: Path, work: Any, args: argparse.Namespace, table: _Table) -> None:
    """Densify a bag's clouds and print a line of the table for each."""
    from liif_fast.lidar.bags import densify_bag

    def one(scan: Any) -> tuple[Any, Any]:
        begun = time.perf_counter()
        dense = work(scan)
        table.row("cloud", dense, time.perf_counter() - begun)
        return dense.points, dense.channels

    target.parent.mkdir(parents=True, exist_ok=True)
    count = densify_bag(source, target, args.topic, one)
    say(f"sensor: {work.found}; {count} clouds written to {target}")


def _lines(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(x?)(\d{1,5})", text, re.ASCII)
    if not match or not 1 <= int(match[2]) <= 4096:
        raise argparse.ArgumentTypeError(f"expected lines up to 4096, or a factor such as x4, got {text!r}")
    return match[1], int(match[2])


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value
