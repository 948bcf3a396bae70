"""The decoded images of a folder in one file, which is mapped into memory.

The file holds the pixels of every image, uint8 [H, W, 3] one after the other; then an index as JSON (for each image
its name, the size and time of the file it was made from, its shape and its offset); then the length of the index and
a mark. Whoever opens it compares the index with the folder, and the file's length with the index, so that a changed
folder or a damaged file leads to a new pack and never to wrong pixels.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from liif_fast.files import atomic_file

try:
    import fcntl
except ImportError:  # Windows: two builds at once do double work, no harm
    fcntl = None  # type: ignore[assignment]

MARK = b"liif_fast pack 1"
_END = struct.Struct(f"<Q{len(MARK)}s")

Index = list[dict[str, Any]]


class Pack:
    """Images in a mapped file; a copy in another process maps the file anew.

    Args:
        path: the pack.
        file: the same, open. It stays what is mapped, even if another file takes its place.
        index: its index, as it was read from there.
    """

    def __init__(self, path: Path, file: IO[bytes], index: Index) -> None:
        self.path, self.index = path, index
        # Copy-on-write: PyTorch wants arrays that may be written to, and nothing may reach the file.
        self.pixels = np.memmap(file, np.uint8, "c")

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.path, self.index)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> np.ndarray:
        entry = self.index[index]
        start = entry["offset"]
        return self.pixels[start : start + int(np.prod(entry["shape"]))].reshape(entry["shape"])


def open_pack(path: Path, images: Sequence[Path], read: Callable[[Path], np.ndarray]) -> Pack:
    """Open the pack of some images, and build it first if there is none, or one of other or changed files.

    Several processes may ask at once: one builds, the others wait. A build that is killed leaves no pack.

    Args:
        path: the pack; its folder exists.
        images: the image files, in order.
        read: makes uint8 [H, W, 3] of an image file.

    Returns:
        The pack.

    Raises:
        OSError: if it cannot be written.
        ValueError: if an image cannot be read.
    """
    wanted = _fingerprint(images)
    pack = _open(path, wanted)
    if pack is None:
        with _lock(path):
            pack = _open(path, wanted)  # another process may have built it meanwhile
            if pack is None:
                for left in path.parent.glob(f".{path.name}.*.part"):  # of a build that was killed
                    left.unlink(missing_ok=True)
                _build(path, images, wanted, read)
                pack = _open(path, wanted)
    if pack is None:
        raise OSError(f"{path}: what has just been written cannot be read")
    return pack


def _open(path: Path, wanted: Index) -> Pack | None:
    """The pack, if it is whole and of the files wanted."""
    try:
        with path.open("rb") as file:
            index = _read_index(file, wanted)
            return None if index is None else Pack(path, file, index)
    except OSError:
        return None


def _open_again(path: Path, index: Index) -> Pack:
    pack = _open(path, index)
    if pack is None:
        raise OSError(f"{path}: another pack has taken its place")
    return pack


def _fingerprint(images: Sequence[Path]) -> Index:
    stats = [image.stat() for image in images]
    return [{"name": i.name, "bytes": s.st_size, "mtime": s.st_mtime_ns} for i, s in zip(images, stats, strict=True)]


def _read_index(file: IO[bytes], wanted: Index) -> Index | None:
    try:
        end = file.seek(0, os.SEEK_END) - _END.size
        file.seek(max(end, 0))
        length, mark = _END.unpack(file.read(_END.size))
        if mark != MARK or length > end:
            return None
        file.seek(end - length)
        index = json.loads(file.read(length))
        offset = 0
        for entry, want in zip(index, wanted, strict=True):
            if any(entry[key] != want[key] for key in want) or entry["offset"] != offset:
                return None
            offset += int(np.prod(entry["shape"]))
    except (ValueError, KeyError, TypeError, struct.error):
        return None
    return index if offset == end - length else None


def _build(path: Path, images: Sequence[Path], wanted: Index, read: Callable[[Path], np.ndarray]) -> None:
    index, offset, workers = [], 0, min(8, os.cpu_count() or 1)
    bar = tqdm(total=len(images), desc=f"decoding {images[0].parent.name}", unit=" images", leave=False, disable=None)
    with atomic_file(path) as file, ThreadPoolExecutor(workers) as pool, bar:
        for start in range(0, len(images), workers):  # few at a time: they are held in memory
            for image, entry in zip(pool.map(read, images[start : start + workers]), wanted[start:], strict=False):
                file.write(np.ascontiguousarray(image).data)
                index.append({**entry, "shape": image.shape, "offset": offset})
                offset += image.size
                bar.update()
        text = json.dumps(index).encode()
        file.write(text + _END.pack(len(text), MARK))


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that dies is free."""
    if fcntl is None:
        yield
        return
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
