"""Copy an image from a pipe into a file, because readers must seek."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from liif_fast.files import STANDARD
from liif_fast.images.errors import ImageFileError, reason
from liif_fast.images.sniffing import HEAD, readable


@contextmanager
def spooled(stream: IO[bytes], head: bytes = b"") -> Iterator[Path]:
    """Copy an image from a pipe into a temporary file; yield its path.

    Args:
        stream: the pipe; read to its end if it begins like an image.
        head: bytes that have been read from the pipe already.

    Raises:
        ImageFileError: it is not an image. Messages, also those raised within the context, name `-`, not the file.
    """
    with TemporaryDirectory(prefix="liif-fast-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "input")
        try:
            path.write_bytes(head + stream.read(HEAD - len(head)))
            readable(path)
            with path.open("ab") as file:
                shutil.copyfileobj(stream, file)
            yield path
        except ImageFileError as error:
            raise ImageFileError(str(error).replace(str(path), str(STANDARD))) from None
        except OSError as error:
            raise ImageFileError(f"{STANDARD}: cannot be copied into {folder}: {reason(error)}") from None
