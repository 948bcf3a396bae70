"""Files that are replaced as a whole or not at all, and names of files."""

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

STANDARD = Path("-")  # standard input or output
_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "__macosx")  # of Windows, Synology and macOS


def is_litter(name: str) -> bool:
    """Whether the name of a file or folder is a hidden one, or of what systems leave among pictures."""
    return name.startswith(".") or name.lower() in _LITTER


def distinct_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Name files by their stems; where these are alike (in small letters), by more of their paths, or by numbers."""
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


def why_not_writable(path: str | os.PathLike[str]) -> str:
    """Say why a file cannot be written before it is tried; "" where nothing speaks against it."""
    path = Path(path)
    if path.exists() and not path.is_file():
        return "is a folder, expected the name of a file" if path.is_dir() else "is not a regular file"
    if path.exists() and not os.access(path, os.W_OK):
        return "no permission to overwrite it"
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"no permission to write into {folder}"


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file, also to be read, that takes the place of `path` at the end, or vanishes on any failure or Ctrl-C.

    A symbolic link is followed; an existing file's permissions are kept. Standard output gets the whole file at the
    end, or nothing.
    """
    if path == STANDARD:
        with tempfile.NamedTemporaryFile() as file:  # named, as tifffile wants it
            yield file.file
            file.seek(0)
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        return
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
