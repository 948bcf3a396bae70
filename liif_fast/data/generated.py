"""Store sets of generated images in a file, so that only the first start draws them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from liif_fast.files import atomic_file


def kept(cache_file: str | None, count: int, first: np.ndarray, draw: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the set from a file, or draw it and write the file.

    Args:
        cache_file: .npy file; written if it is missing or holds another set; None stores nothing.
        count: number of images.
        first: the first image, which shows whether the file holds this set.
        draw: draws the set, uint8 [count, ...].

    Raises:
        ValueError: the file is not an array.
    """
    cache = None if cache_file is None else Path(cache_file).expanduser()
    if cache is not None and cache.exists():
        try:
            images = np.load(cache, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"cache_file: {cache} is not an array of images: {error}") from error
        if images.shape == (count, *first.shape) and np.array_equal(images[0], first):
            return np.asarray(images)
    images = draw()
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(cache) as file:  # several processes may write it
            np.save(file, images, allow_pickle=False)
    return images
