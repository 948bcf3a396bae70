"""Which files an upscaling reads and writes, decided and checked before any work. Imports no torch."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from liif_fast.files import is_litter, reason
from liif_fast.images import (
    FORMATS,
    Format,
    ImageFileError,
    check_format,
    check_input,
    check_output,
    describe,
    endings,
    fits,
    mode_of,
    open_picture,
)

EXISTING = ("replace", "skip", "error")


class Job(NamedTuple):
    """One image to read and one to write."""

    source: Path
    target: Path
    kind: Format | None = None  # of the target, if that has been checked


class Jobs(NamedTuple):
    """What to do: the jobs, and how many files were left out: their output exists, or they are not read."""

    todo: list[Job]
    skipped: int
    folder: bool  # whether a folder was given
    passed_over: Counter[str]  # of a folder, files that are not read, by kind


def find_jobs(source: str, target: str, *, recursive: bool, suffix: str, extension: str | None, existing: str) -> Jobs:
    """Pair every input with its output.

    Args:
        source: an image file, or a folder: of it, all files whose names end as images do, hidden ones excepted.
        target: for a file, a file or a folder; for a folder, a folder, made with its parents if it does not exist.
        recursive: with the folders inside as well; the output has the same ones. Links to folders are not followed.
        extension: ending of the outputs in a folder, as `.png`; None keeps the input's, or `.png` where that is none
            that can be written.
        existing: what to do about outputs that exist: "replace" them, "skip" them (with a suffix also as inputs, where
            they lie beside these), or fail ("error").
    """
    if not source or not target:  # an unset variable of a shell; as a path it would be the current folder
        raise ImageFileError(f"{'OUT' if source else 'IN'} is empty; give a file or a folder")
    origin, goal = Path(source), Path(target)
    passed_over: Counter[str] = Counter()
    if not origin.is_dir():
        check_input(origin)
        into_folder = goal.is_dir() or target.endswith(("/", os.sep))
        if not into_folder and (suffix or extension):
            raise ImageFileError(f"{goal}: --suffix and --format name the files in a folder; give a folder as OUT")
        output = goal / _name(origin, suffix, extension) if into_folder else goal
        if into_folder and not goal.exists():
            check_format(output)
            jobs = [Job(origin, output)]
        else:
            jobs = [Job(origin, output, check_output(output))]
    else:
        if (goal.exists() and not goal.is_dir()) or (not goal.exists() and goal.suffix.lower() in FORMATS):
            raise ImageFileError(f"{goal}: names a file, and {origin} is a folder; give a folder as OUT")
        jobs = [
            Job(path, goal / path.parent.relative_to(origin) / _name(path, suffix, extension))
            for path in _images(origin, goal, recursive, passed_over)
        ]
        if not jobs:
            found = f"; passed over: {counted(passed_over)}" if passed_over else ""
            deeper = "" if recursive else " (--recursive looks deeper)"
            raise ImageFileError(f"{origin}: no image files in it{deeper}{found}")
    if existing == "skip" and suffix:  # what an earlier run has put beside its inputs is not an input of this one
        made = {identity(job.target) for job in jobs if not _same(job.source, job.target)}
        jobs = [job for job in jobs if identity(job.source) not in made]
    _check_pairs(jobs)
    there = [job for job in jobs if job.target.exists()]
    if there and existing == "error":
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise ImageFileError(f"{there[0].target}: exists{more}; --existing replace or skip says what to do")
    if existing == "skip":
        jobs = [job for job in jobs if not job.target.exists()]
    return Jobs(jobs, len(there) if existing == "skip" else 0, origin.is_dir(), passed_over)


def counted(kinds: Counter[str]) -> str:
    """Name each kind of file and how many there are of it."""
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))


def _name(path: Path, suffix: str, extension: str | None) -> str:
    ending = extension or (path.suffix if _keeps(path) else ".png")
    return f"{path.stem}{suffix}{ending}"


def _keeps(path: Path) -> bool:
    """Whether an output under the ending of its input can hold what that has: a BMP may have alpha, and be no BMP."""
    kind = FORMATS.get(path.suffix.lower())
    if kind is None or len(kind.modes) == len(FORMATS[".png"].modes):
        return kind is not None
    try:
        picture = open_picture(path)
    except ImageFileError:  # said when its turn comes
        return True
    return fits(path.suffix, mode_of(picture.shape[2], picture.depth))


def _images(folder: Path, goal: Path, recursive: bool, passed_over: Counter[str]) -> Iterator[Path]:
    """Yield image files by name, a folder's before those below, none of the output's; count other visible files."""
    known = endings()
    inside = not _same(goal, folder)
    for at, folders, names in os.walk(folder, onerror=_unreadable):
        here = Path(at)
        folders[:] = sorted(
            name for name in folders if recursive and not is_litter(name) and not (inside and _same(here / name, goal))
        )
        for name in sorted(names):
            if is_litter(name):
                continue
            if Path(name).suffix.lower() in known:
                yield here / name
            elif (here / name).is_file():
                passed_over[describe(here / name)] += 1


def _unreadable(error: OSError) -> NoReturn:
    raise ImageFileError(f"{error.filename}: {reason(error)}") from None


def identity(path: Path) -> tuple[object, ...]:
    """What two paths of one file share, also where the file system takes capitals for small letters.

    Not hard links: the replacement of one of them leaves the other as it is.
    """
    real = Path(os.path.realpath(path))  # of a link to itself, too, at which Path.resolve raises
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
    for source, target, _ in jobs:
        key = identity(target)
        if key in sources:
            one = "the input itself" if key == identity(source) else "an input, too"
            raise ImageFileError(f"{target}: is {one}; choose another name, a --suffix or another folder")
        if key in seen:
            clashes.append(f"{target}: would be made of both {seen[key]} and {source}; rename one of them")
        seen[key] = source
    if clashes:
        more = f" (and {len(clashes) - 1} more like these)" if len(clashes) > 1 else ""
        raise ImageFileError(clashes[0] + more)
