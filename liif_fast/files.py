"""Files that are replaced as a whole or not at all, and names of files."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "__macosx")  # of Windows, Synology and macOS


def is_litter(name: str) -> bool:
    """Whether the name of a file or folder is a hidden one, or of what systems leave among pictures."""
    return name.startswith(".") or name.lower() in _LITTER


def distinct_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Name files shortly, each as no other, in small letters either.

    Args:
        paths: the files.

    Returns:
        Their names without the extension; where these are alike, more of their paths, or with the extension, or with
        their number before; the same form for all of them.
    """
    files = [Path(path) for path in paths]
    parts = range(1, 1 + max((len(file.parts) for file in files), default=0))
    for names in (
        ["-".join([*file.parts[-n:-1], file.name if ending else file.stem]).replace(os.sep, "") for file in files]
        for ending in (False, True)
        for n in parts
    ):
        if len({name.casefold() for name in names}) == len(names):
            return names
    return [f"{number:04d}-{file.name}" for number, file in enumerate(files)]


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[None]:
    """A folder, made with its parents if need be; on any failure those that were made vanish again, if empty."""
    folder = Path(path)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for each in made:  # the deepest first
                each.rmdir()
        raise


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file, also to be read, that takes the place of `path` at the end, or vanishes on any failure or Ctrl-C.

    Args:
        path: the file to write. A symbolic link is followed; an existing file's permissions are kept.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.part")  # up to 4 of 255 bytes a character
    try:
        # "x" and not tempfile: the file gets the permissions that the umask gives, not 0600.
        with part.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            part.chmod(target.stat().st_mode & 0o7777)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
