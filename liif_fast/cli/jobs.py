"""Pair and check the files that an upscaling reads and writes before any work. Imports no torch."""

import logging
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from liif_fast.files import STANDARD, is_litter, reason
from liif_fast.images import (
    ANIMATED,
    FORMATS,
    Colour,
    Format,
    ImageFileError,
    Picture,
    check_format,
    check_input,
    check_place,
    describe,
    endings,
    fits,
    flat_channels,
    mode_of,
    open_picture,
)

logger = logging.getLogger("liif_fast.cli")

EXISTING = ("replace", "skip", "error")


class Job(NamedTuple):
    """One image to read and one to write."""

    source: Path
    target: Path
    kind: Format | None  # of the target; None for standard output, whose format follows the input's
    ready: bool  # whether the target's folder exists and the target has been checked


class Jobs(NamedTuple):
    """The jobs, and the numbers of files left out because their output exists or they are not images."""

    todo: list[Job]
    skipped: int
    many: bool  # whether a folder or several inputs were given
    passed_over: Counter[str]  # number of files in folders that are not read, by kind


def find_jobs(
    sources: Sequence[str],
    target: str,
    *,
    recursive: bool,
    suffix: str,
    extension: str | None,
    existing: str,
    background: Colour | None = None,
) -> Jobs:
    """Pair every input with its output.

    Args:
        sources: image files or folders (every image in them, by extension; hidden files are skipped). `-` is standard
            input. A single file is checked at once, several files one by one later.
        target: for one file, a file, a folder, or `-` for standard output; otherwise a folder, which is created.
        recursive: include nested folders, and create the same ones in the output. Links to folders are not followed.
        extension: extension of outputs in a folder, such as `.png`; None keeps the input's, or `.png` if that format
            cannot be written.
        existing: "replace" existing outputs, "skip" them (with a suffix, they are not inputs either), or fail
            ("error").
        background: the colour that replaces alpha.
    """
    if not all(sources) or not target:  # e.g. an unset shell variable, which would mean the current folder
        raise ImageFileError(f"{'OUT' if all(sources) else 'IN'} is empty; give a file or a folder")
    origins, goal = [_path(source) for source in sources], _path(target)
    passed_over: Counter[str] = Counter()
    many = len(origins) > 1 or origins[0].is_dir()
    folder = many or (goal != STANDARD and (goal.is_dir() or target.endswith(("/", os.sep))))
    if (suffix and not folder) or (extension and not folder and goal != STANDARD):
        raise ImageFileError(f"{goal}: --suffix and --format name the files in a folder; give a folder as OUT")
    if many:
        _check_many(origins, goal)
    elif origins[0] != STANDARD:
        check_input(origins[0])
    elif folder:
        raise ImageFileError(f"{goal}: is a folder, and - has no name; give a file as OUT")
    jobs: list[Job] = []
    empty = []
    for origin in origins:
        before = len(jobs)
        for file, within in _images(origin, goal, recursive, passed_over):
            output = goal / within / _name(file, suffix, extension, background) if folder else goal
            kind = None if output == STANDARD else check_format(output)
            ready = not many and (not folder or goal.exists())
            if ready and output != STANDARD:
                check_place(output)
            jobs.append(Job(file, output, kind, ready))
        if len(jobs) == before:
            empty.append(origin)
    deeper = "" if recursive else " (--recursive looks deeper)"
    if not jobs:
        found = f"; passed over: {counted(passed_over)}" if passed_over else ""
        raise ImageFileError(f"{', '.join(map(str, origins))}: no image files in it{deeper}{found}")
    for origin in empty:
        logger.warning("%s: no image files in it%s", origin, deeper)
    if existing == "skip" and suffix:  # outputs of an earlier run beside its inputs are not inputs of this one
        made = {identity(job.target) for job in jobs if not _same(job.source, job.target)}
        jobs = [job for job in jobs if identity(job.source) not in made]
    if STANDARD not in (origins[0], goal):
        _check_pairs(jobs)
    there = [job for job in jobs if job.target != STANDARD and job.target.exists()]
    if there and existing == "error":
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise ImageFileError(f"{there[0].target}: exists{more}; give --existing replace or skip")
    if existing == "skip":
        done = {job.target for job in there}
        jobs = [job for job in jobs if job.target not in done]
    return Jobs(jobs, len(there) if existing == "skip" else 0, many, passed_over)


def check_standard(inputs: Sequence[str], output: str) -> None:
    """Raise ImageFileError if standard input or output is requested but cannot be used."""
    for what, wanted, stream in (
        ("IN", str(STANDARD) in inputs, sys.stdin),
        ("OUT", output == str(STANDARD), sys.stdout),
    ):
        if wanted and stream is None:
            raise ImageFileError(f"{what} is -, but standard {what.lower()}put is closed")
        if wanted and stream.isatty():
            how = "pipe an image into it, or give a file" if what == "IN" else "redirect it, or give a file"
            raise ImageFileError(f"{what} is -, but standard {what.lower()}put is a terminal; {how}")
        if wanted and os.environ.get("WORLD_SIZE", "1") != "1":
            raise ImageFileError(f"{what} is -, which the processes of torchrun cannot share; give a file")


def _path(text: str) -> Path:
    """Return the path of an argument; a file named `-`, written as `./-`, differs from standard input."""
    path = Path(os.path.expanduser(text))
    return path.absolute() if path == STANDARD and text != str(STANDARD) else path


def _check_many(origins: list[Path], goal: Path) -> None:
    if STANDARD in origins:
        raise ImageFileError("- is one image from standard input; give it as the only IN")
    if goal == STANDARD:
        raise ImageFileError("- is standard output, which takes one image; give a folder as OUT")
    if (goal.exists() and not goal.is_dir()) or (not goal.exists() and goal.suffix.lower() in FORMATS):
        what = f"{origins[0]} is a folder" if len(origins) == 1 else f"there are {len(origins)} inputs"
        raise ImageFileError(f"{goal}: names a file, but {what}; give a folder as OUT")


def counted(kinds: Counter[str]) -> str:
    """Format the kinds of files with their numbers."""
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))


def _name(path: Path, suffix: str, extension: str | None, background: Colour | None) -> str:
    return f"{path.stem}{suffix}{extension or _ending(path, background)}"


def _ending(path: Path, background: Colour | None) -> str:
    """Return the ending of a file's output where --format is not given: its own if that can hold it, else `.png`."""
    kind = FORMATS.get(path.suffix.lower())
    if kind is None or kind in (FORMATS[".png"], FORMATS[".tif"]):
        return path.suffix if kind else ".png"
    try:
        return path.suffix if holds(path.suffix, open_picture(path), background) else ".png"
    except ImageFileError:  # reported when the file is upscaled
        return path.suffix


def holds(ending: str, picture: Picture, background: Colour | None) -> bool:
    """Return whether an output with this ending can hold the picture's channels and depth.

    This is not certain even for the input's own ending: a BMP may have alpha, and the file may be of another format. A
    GIF holds too few colours and is for animations only, which have no better choice.
    """
    if ending.lower() == ".gif":
        return picture.format in ANIMATED and picture.frames > 1
    return fits(ending, mode_of(flat_channels(picture.shape[2], background), picture.depth))


def _images(origin: Path, goal: Path, recursive: bool, passed_over: Counter[str]) -> Iterator[tuple[Path, Path | str]]:
    """Yield image files by name, each with its folder relative to the origin; count other visible files in the folders.

    A folder's files come before those of nested folders. The output folder is skipped.
    """
    if not origin.is_dir():
        yield origin, ""
        return
    known, inside = endings(), not _same(goal, origin)
    for at, folders, names in os.walk(origin, onerror=_unreadable):
        here = Path(at)
        folders[:] = sorted(
            name for name in folders if recursive and not is_litter(name) and not (inside and _same(here / name, goal))
        )
        for name in sorted(names):
            if is_litter(name):
                continue
            if Path(name).suffix.lower() in known:
                yield here / name, here.relative_to(origin)
            elif (here / name).is_file():
                passed_over[describe(here / name)] += 1


def _unreadable(error: OSError) -> NoReturn:
    raise ImageFileError(f"{error.filename}: {reason(error)}") from None


def identity(path: Path) -> tuple[object, ...]:
    """Return a key that is equal for two paths of one file, also on case-insensitive file systems.

    Hard links have different keys, because replacing one of them leaves the other unchanged.
    """
    real = Path(os.path.realpath(path))  # unlike Path.resolve, it accepts a link to itself
    try:
        file, folder = real.stat(), real.parent.stat()
    except OSError:
        return (real,)
    name = unicodedata.normalize("NFC", real.name).casefold()
    return folder.st_dev, folder.st_ino, file.st_dev, file.st_ino, name


def _same(one: Path, other: Path) -> bool:
    return identity(one) == identity(other)


def _check_pairs(jobs: list[Job]) -> None:
    sources = {identity(job.source) for job in jobs}
    seen: dict[tuple[object, ...], Path] = {}
    clashes = []
    for source, target, *_ in jobs:
        key = identity(target)
        if key in sources:
            one = "the input itself" if key == identity(source) else "also an input"
            raise ImageFileError(f"{target}: is {one}; choose another name, a --suffix or another folder")
        if key in seen and _same(seen[key], source):
            raise ImageFileError(f"{source}: is given twice")
        if key in seen:
            clashes.append(f"{target}: is the output of both {seen[key]} and {source}; rename one of them")
        seen[key] = source
    if clashes:
        more = f" (and {len(clashes) - 1} more like these)" if len(clashes) > 1 else ""
        raise ImageFileError(clashes[0] + more)
