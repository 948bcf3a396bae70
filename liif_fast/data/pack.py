"""Store the decoded images of a folder as .npy files and map them into memory on access.

A file's name contains the size and time of its image, so a changed image gets a new file.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from liif_fast.files import atomic_file

try:
    import fcntl
except ImportError:  # on Windows two processes may build at once, which only wastes work
    fcntl = None  # type: ignore[assignment]


class Pack:
    """Images, uint8 [H, W, 3], each mapped from its file.

    Args:
        folder: folder of the .npy files; created if missing.
        root: folder of the images.
        names: names of the images. Those without an intact file are decoded, while other processes wait.
        read: decodes an image file to uint8 [H, W, 3].
    """

    def __init__(self, folder: Path, root: Path, names: Sequence[str], read: Callable[[Path], np.ndarray]) -> None:
        self.files = [_file(folder, root, name) for name in names]
        folder.mkdir(exist_ok=True)
        with _lock(folder):
            missing = [number for number in range(len(names)) if not self._is_whole(number)]
            if not missing:
                return
            made = {(root / names[number], self.files[number]) for number in missing}
            outdated = {file.name.rsplit(".", 3)[0] for _, file in made}
            for file in folder.iterdir():  # remove files of changed images and of a killed build
                if file.suffix == ".part" or file.name.rsplit(".", 3)[0] in outdated:
                    file.unlink()

            def build(pair: tuple[Path, Path]) -> None:
                with atomic_file(pair[1]) as file:
                    np.save(file, read(pair[0]), allow_pickle=False)

            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                steps = pool.map(build, made)
                for _ in tqdm(steps, f"decoding {root.name}", len(made), unit=" images", leave=False, disable=None):
                    pass

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        # Copy-on-write, because PyTorch wants writable arrays and the file must not change.
        return np.load(self.files[index], mmap_mode="c", allow_pickle=False)

    def _is_whole(self, number: int) -> bool:
        try:
            return self[number].ndim == 3
        except (OSError, ValueError, EOFError):
            return False


def _file(folder: Path, root: Path, name: str) -> Path:
    """Return the path of an image's file; its name encodes the image's name without folders, size and time."""
    state = (root / name).stat()
    return folder / f"{name.replace(os.sep, '%')}.{state.st_size:x}.{state.st_mtime_ns:x}.npy"


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Admit one process at a time; the system releases the lock of a process that dies."""
    if fcntl is None:
        yield
        return
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
