"""`liif-fast upscale`: enlarge image files."""

import argparse
import functools
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os.path import expanduser
from pathlib import Path
from typing import Any

from liif_fast.cli import EXIT_CODES, add_compute, add_plugin, complain, positive, say
from liif_fast.cli.jobs import EXISTING, Job, Jobs, check_standard, counted, find_jobs, holds
from liif_fast.cli.progress import Bar
from liif_fast.cli.video import check_video, upscale_video
from liif_fast.files import STANDARD
from liif_fast.images import (
    FORMATS,
    WHY_NOT_SMALLER,
    Animation,
    Colour,
    Format,
    Picture,
    animated,
    check_place,
    ending_of,
    open_picture,
    parse_colour,
    spooled,
    tuned,
    y4m,
)

_ABOUT = "Upscale image files, all images in a folder, an animation, or a video from a pipe, to any larger size."
_EPILOG = """\
The image keeps its alpha channel and its 8 or 16 bits, and is turned upright. PNG, JPEG, WebP and TIFF files
keep its ICC profile and EXIF data; with another format a notice says which of these are lost. PNG, TIFF, PPM and PGM
are written while they are made: the output may be larger than memory. An animated GIF, PNG or WebP stays animated in
these formats; with - as IN and OUT a y4m video is upscaled frame by frame. In a folder a file that fails is named and
the others go on; the exit code is then 1. Under torchrun the files are shared among the processes. Without --model,
JPEG, HEIC, AVIF and lossy WebP images go through a model trained with compression and noise, all others through one for
clean images, which would sharpen such damage.
"""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("upscale", help="upscale images", description=_ABOUT, epilog=_EPILOG + EXIT_CODES)
    parser.add_argument("inputs", nargs="+", metavar="IN", help="an image file, or a folder of them; - is stdin")
    parser.add_argument(
        "output",
        metavar="OUT",
        help="the file to write, whose extension sets the format; a folder for several IN; - is stdout",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--scale", type=_scale, metavar="S", help="output size over input size, at least 1, e.g. 3.7")
    target.add_argument("--size", type=_size, metavar="WxH", help="output size in pixels; Wx or xH keeps the aspect")
    parser.add_argument(
        "--region", type=_region, metavar="WxH+X+Y", help="only this window of the output: its size, left and top edge"
    )
    parser.add_argument(
        "--model",
        type=expanduser,
        metavar="MODEL",
        help="a .safetensors or .pth file, or a name; see models (default: one of the package's own, by how the "
        "image was stored)",
    )
    add_plugin(parser)
    folders = parser.add_argument_group("folders")
    folders.add_argument("--recursive", action="store_true", help="include nested folders; OUT gets the same ones")
    folders.add_argument("--suffix", type=_suffix, metavar="TEXT", help="text added to the outputs' names")
    folders.add_argument(
        "--format",
        choices=[key[1:] for key in FORMATS],
        help="format of the outputs, also of - (default: the input's, or png)",
    )
    written = parser.add_argument_group("how to write")
    loss = written.add_mutually_exclusive_group()
    loss.add_argument(
        "--quality", type=_quality, metavar="N", help="1 to 100 for JPEG, WebP and AVIF (default: 95, 95, 90)"
    )
    loss.add_argument("--lossless", action="store_true", help="keep every pixel, also in WebP; refused for JPEG, AVIF")
    written.add_argument(
        "--background", type=_colour, metavar="COLOUR", help="replace alpha by white, #fff, rgb(9,8,7), e.g. for JPEG"
    )
    written.add_argument(
        "--existing",
        choices=EXISTING,
        default=EXISTING[0],
        help="how to treat existing outputs (default: replace)",
    )
    compute = parser.add_argument_group("how to compute")
    add_compute(compute)
    compute.add_argument(
        "--tile", type=positive, default=512, metavar="N", help="largest side of the encoder's tiles (default: 512)"
    )
    compute.add_argument(
        "--self-ensemble", action="store_true", help="average over the eight turns of the image: 8 times the work"
    )
    compute.add_argument(
        "--max-input-pixels",
        type=positive,
        metavar="N",
        help="refuse larger inputs as decompression bombs (default: Pillow's limit, 178956970)",
    )
    parser.set_defaults(run=run, more=[])


def run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    if args.max_input_pixels:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = args.max_input_pixels // 2  # Pillow raises at twice its limit
    named: list[str] = [*args.inputs, args.output, *args.more]
    *inputs, output = named
    check_standard(inputs, output)
    jobs = find_jobs(
        inputs,
        output,
        recursive=args.recursive,
        suffix=args.suffix or "",
        extension=f".{args.format}" if args.format else None,
        existing=args.existing,
        background=args.background,
    )
    # Read before torch is loaded, because most errors show here.
    head = sys.stdin.buffer.read(len(y4m.MAGIC)) if jobs.todo and jobs.todo[0].source == STANDARD else b""
    video = y4m.read_header(sys.stdin.buffer) if head == y4m.MAGIC else None
    if video:
        check_video(args, output)
    first = _read(jobs.todo[0], args, head) if jobs.todo and not jobs.many and not video else None

    from liif_fast import distributed
    from liif_fast.config.plugins import import_plugins

    todo = distributed.share(jobs.todo)
    if not todo:
        return _summary(jobs, 0, 0)
    import_plugins(args.plugin, place="--plugin")
    models = _Models(args.model, _device(args.device))
    if args.model is None and distributed.is_main() and sys.stderr is not None and sys.stderr.isatty():
        _offer()
    if video:
        return upscale_video(video, models.of(video, ""), args)
    failed = 0
    for number, job in enumerate(todo, 1):
        label = f"[{number}/{len(todo)}] {job.source.name} " if jobs.many else ""
        try:
            picture, kind = first or _read(job, args)
            model = models.of(picture, "" if jobs.many else f"{job.source}: ")
            width, height = _upscale(job, picture, kind, model, args, label)
            if not jobs.many:
                say(f"{job.target}: {width}x{height}, {time.perf_counter() - start:.1f} s")
        except (OSError, ValueError, MemoryError, RuntimeError) as error:
            if args.traceback or not jobs.many:
                raise
            complain(job.source, error)
            failed += 1
    return _summary(jobs, len(todo) - failed, failed)


class _Models:
    """Hold the model that --model names, or those that `choose` takes, each loaded once.

    Raises:
        OSError, ValueError: the model cannot be loaded; without --model `of` raises them.
    """

    def __init__(self, asked: str | None, device: str) -> None:
        from liif_fast.models.catalogue import resolve_model

        self.load = functools.cache(lambda path: resolve_model(path, device))
        self.asked = None if asked is None else self.load(asked)
        self.said = set[Any]()

    def of(self, picture: Any, label: str) -> Any:
        """Return the model for a picture or a video; say which and why, once for each reason."""
        from liif_fast.upscaling import choose

        if self.asked is not None:
            return self.asked
        choice = choose(picture)
        if choice not in self.said:
            say(f"{label}{choice}")
            self.said.add(choice)
        return self.load(choice.path)


def _offer() -> None:
    """Mention the authors' weights if they are not in the models folder."""
    from liif_fast.models.catalogue import fetchable, find_model

    for name in fetchable():
        try:
            find_model(name)
        except FileNotFoundError:
            say(f"`liif-fast models get {name}` fetches the authors' model, sharper on clean images and slower")


def _read(job: Job, args: argparse.Namespace, head: bytes = b"") -> tuple[Picture | Animation, Format]:
    """Read a job's input, or only the header for a region, and choose the output's format."""
    if job.source != STANDARD:
        return _opened(job.source, job, args)
    with spooled(sys.stdin.buffer, head) as path:
        picture, kind = _opened(path, job, args)
        if isinstance(picture, Picture):
            picture.pixels  # noqa: B018 - read now, because the file will be removed
        return picture, kind


def _opened(path: Path, job: Job, args: argparse.Namespace) -> tuple[Picture | Animation, Format]:
    picture = open_picture(path)
    picture.path = job.source  # which messages name, not the copy of what came through a pipe
    kind = job.kind
    if kind is None:
        ending = ending_of(picture.format)
        ending = ending if holds(ending, picture, args.background) else ".png"
        kind = FORMATS[f".{args.format}" if args.format else ending]
    kind = tuned(job.target, kind, args.quality, args.lossless)
    opened = animated(picture, kind, path)
    if isinstance(opened, Picture) and not args.region:
        opened.pixels  # noqa: B018 - read now, before torch is loaded
    return opened, kind


def _upscale(
    job: Job, picture: Picture | Animation, kind: Format, model: Any, args: argparse.Namespace, label: str
) -> Any:
    """Upscale one picture and return the output's (width, height)."""
    from liif_fast import upscaling

    with Bar(label) as bar:
        target = upscaling.check_target(job.target, kind, picture, args.scale, args.size, args.region, args.background)
        height, width = target.frame.region[2:]
        options = upscaling.Options(args.backend, args.precision, args.tile, bar.update, args.self_ensemble)
        with _folder(job):
            upscaling.upscale_picture(picture, target, model, options)
    return width, height


@contextmanager
def _folder(job: Job) -> Iterator[None]:
    """Create the output's folder if it is missing; if the output fails, remove what was created."""
    from liif_fast import distributed

    created = [folder for folder in job.target.parents if not folder.exists()]
    try:
        if not job.ready:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            check_place(job.target)
        yield
    except BaseException:
        if distributed.world_size() == 1:  # else another process may be about to write there
            for folder in created:
                with suppress(OSError):  # not empty, or never created
                    folder.rmdir()
        raise


def _summary(jobs: Jobs, done: int, failed: int) -> int:
    from liif_fast import distributed

    if jobs.many:
        parts = [f"{done} written"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{jobs.skipped} left unchanged"] if jobs.skipped else []
        if jobs.passed_over and distributed.is_main():
            say(f"passed over: {counted(jobs.passed_over)}")
        say(", ".join(parts))
    elif jobs.skipped:
        say("the output exists and is unchanged")
    return 1 if failed else 0


def _device(name: str) -> str:
    """Return the device's name; under torchrun each process takes its own GPU."""
    from liif_fast import distributed
    from liif_fast.devices import pick_device

    if distributed.world_size() > 1 and name in ("auto", "cuda") and pick_device(name).type == "cuda":
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return name


def _scale(text: str) -> float:
    """Parse and check a scale before anything is loaded."""
    try:
        scale = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
    if not 0 < scale < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive, finite number, got {text!r}")
    if scale < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1: {WHY_NOT_SMALLER}")
    return scale


def _size(text: str) -> tuple[int | None, int | None]:
    """Parse WxH, Wx or xH."""
    match = re.fullmatch(r"(\d{0,9})x(\d{0,9})", text, re.ASCII | re.IGNORECASE)
    sides = [int(side) if side else None for side in match.groups()] if match else []
    if not any(sides) or 0 in sides:
        raise argparse.ArgumentTypeError(f"expected WxH, Wx or xH in pixels, e.g. 3840x2160, got {text!r}")
    return sides[0], sides[1]


def _region(text: str) -> tuple[int, int, int, int]:
    """Parse WxH+X+Y to (top, left, height, width)."""
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})\+(\d{1,9})\+(\d{1,9})", text, re.ASCII | re.IGNORECASE)
    if not match or 0 in map(int, match.groups()[:2]):
        raise argparse.ArgumentTypeError(f"expected WxH+X+Y in output pixels, e.g. 800x600+100+50, got {text!r}")
    width, height, left, top = map(int, match.groups())
    return top, left, height, width


def _suffix(text: str) -> str:
    if not text or os.sep in text or "/" in text or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a part of a file name, e.g. _x4, got {text!r}")
    return text


def _colour(text: str) -> Colour:
    try:
        return parse_colour(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _quality(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text, re.ASCII) or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 100, got {text!r}")
    return int(text)
