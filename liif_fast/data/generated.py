"""Sets of generated images, stored in a file so that only the first start draws them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator

from liif_fast.data.datasets import _positive, _Repeated
from liif_fast.files import atomic_file


class Generated(_Repeated):
    """A set of square images, drawn at construction and kept in memory.

    Args:
        count: number of images.
        size: side of an image in pixels.
        seed: seed of the set; image i depends on seed and i alone.
        repeat: length of the dataset as a multiple of count.
        cache_file: .npy file that stores the set; written if it is missing or holds another set.

    Raises:
        ValueError: an argument is out of its range, or the file is not an array.
    """

    draw: Callable[..., np.ndarray]  # draws an image, of a size, a seed, and the image's number (0 unless given)

    def __init__(
        self, count: int, size: int = 256, seed: int = 0, repeat: int = 1, cache_file: str | None = None
    ) -> None:
        _positive("count", count)
        super().__init__(count, repeat)
        first = self.draw(size, seed)
        cache = None if cache_file is None else Path(cache_file).expanduser()
        if cache is not None and cache.exists():
            try:
                self.images = np.load(cache, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise ValueError(f"cache_file: {cache} is not an array of images: {error}") from error
            if self.images.shape == (count, *first.shape) and np.array_equal(self.images[0], first):
                return
        self.images = self._draw_all(count, size, seed)
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(cache) as file:  # several processes may write it
                np.save(file, self.images, allow_pickle=False)

    def _draw_all(self, count: int, size: int, seed: int) -> np.ndarray:
        return np.stack([self.draw(size, seed, index) for index in range(count)])


def generator(size: int, seed: int, index: int) -> Generator:
    """Return the random numbers of an image after checking the arguments with which it is drawn."""
    if size < 16:
        raise ValueError(f"size must be at least 16, got {size}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got {seed} and {index}")
    return np.random.default_rng([seed, index])
