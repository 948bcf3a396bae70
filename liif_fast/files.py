"""Replace files atomically, and name files."""

import errno
import functools
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

STANDARD = Path("-")  # standard input or output
_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "__macosx")  # left by Windows, Synology and macOS


def reason(error: BaseException) -> str:
    """Return an error's message in one line, without an OSError's errno and path; of libvips, the last line only."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if hasattr(error, "detail"):  # libvips's earlier lines may concern other files
        text = (error.detail.strip() or "the file is damaged").splitlines()[-1]
    return " ".join(text.split())[:500] or type(error).__name__


def is_litter(name: str) -> bool:
    """Return whether a file or folder is hidden or one that operating systems leave among pictures."""
    return name.startswith(".") or name.lower() in _LITTER


def distinct_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Name files by their stems; if those collide (ignoring case), by more of their paths, or by numbers."""
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
    """Return why a file cannot be written, without trying; "" if no reason is known."""
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
def atomic_file(path: str | os.PathLike[str], mode: int | None = None) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the context ends, or is removed on any failure or Ctrl-C.

    The file can also be read. A symbolic link is followed. The permissions are `mode`, by default an existing file's.
    Standard output receives the whole file at the end, or nothing.
    """
    if path == STANDARD:
        with tempfile.NamedTemporaryFile() as file:  # named, because tifffile needs a name
            yield file.file
            file.seek(0)
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        return
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.part")  # a name may have 255 bytes
    if mode is None and target.exists():
        mode = target.stat().st_mode & 0o7777
    try:
        # Not tempfile, because a new file would have the permissions 0600 instead of the umask's. The part never has
        # more than the file will have, or others could open it in the meantime.
        opener = functools.partial(os.open, mode=0o666 if mode is None else mode & 0o777)
        with open(str(part), "x+b", opener=opener) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            part.chmod(mode)
        os.replace(part, target)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        # Name the target, because the user never sees the temporary file and ENOSPC carries no name.
        if isinstance(error, OSError) and (error.filename == str(part) or _is_full(error)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _is_full(error: OSError) -> bool:
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
