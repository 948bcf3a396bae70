"""Make batches on a device, with the same bits as the CPU's workers.

The host draws the recipes of the samples, which takes some dozen microseconds each. Every operation on pixels (crop,
colour, Pillow's bicubic, flips, the colours of the queries) runs on the device for the whole batch at once. Crops of
different sizes are padded to the largest, and zeros in the matrices of the reduction hide the padding. Once the images
are on the device, the host waits for it only where a wrapper has `degrade`, whose noise and JPEG are made on the host.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liif_fast.data.cut import Recipe
from liif_fast.data.damage import damaged, gaussian
from liif_fast.data.datasets import image_id
from liif_fast.data.resize import bicubic_resize, coefficients, matrix, resize_crops
from liif_fast.data.samples import Batches, Packed, Sample, unpack
from liif_fast.data.wrappers import _Wrapper
from liif_fast.window import Window

logger = logging.getLogger(__name__)

Item = tuple[Tensor | None, Tensor]  # low and high, uint8 [h, w, 3]


class DeviceLoader:
    """Yield float batches of a wrapper made on a device; used like a DataLoader with a batch sampler.

    The samples depend on the wrapper's seed, its epoch (call `wrapper.set_epoch` before iterating) and their indices
    alone. The batch sampler decides the order, the share of each rank and where a resumed epoch continues.

    Args:
        wrapper: one of `liif_fast.data.wrappers`, with an inp_size unless its images are equally large.
        target: device of the finished batches; None leaves them where they are made.
        keep: bytes of images that may stay on the device after their first use; of other images, crops are sent.
            None means half of a GPU's free memory, and 0 on a CPU.
    """

    def __init__(
        self,
        wrapper: Any,
        batches: Batches,
        device: str | torch.device,
        *,
        target: str | torch.device | None = None,
        keep: int | None = None,
        grouped: bool = False,
    ) -> None:
        self.grouped = grouped
        self.wrapper, self.batches, self.device = wrapper, batches, torch.device(device)
        self.target = self.device if target is None else torch.device(target)
        if not isinstance(wrapper, _Wrapper):
            raise ValueError(f"data_device: {type(wrapper).__name__} makes samples only on the CPU; leave it out")
        if self.device.type == "mps":
            raise ValueError("data_device: mps has no float64, which an exact reduction needs; use cpu or leave it out")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"data_device: PyTorch finds no {self.device}")
        if keep is None:
            keep = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else 0
        self.room, self.kept = keep, dict[Any, Item]()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for indices in self.batches:
            if self.grouped:
                yield [self._arrived(each) for each in self.groups(indices)]
            else:
                yield self._arrived(self.packed(indices))

    def packed(self, indices: Sequence[int]) -> Packed:
        """Make one packed batch on the device."""
        return cut_batch(*self._recipes(indices), self.device)

    def groups(self, indices: Sequence[int]) -> list[Packed]:
        """Make the packed groups of one batch on the device."""
        recipes, items = self._recipes(indices)
        members: dict[Any, list[int]] = {}
        for place, recipe in enumerate(recipes):
            grid = recipe.grid if np.array_equal(recipe.pixel, np.arange(recipe.grid[0] * recipe.grid[1])) else None
            members.setdefault((_input_size(recipe), len(recipe.pixel), grid), []).append(place)
        groups = []
        for (_, _, grid), places in members.items():
            packed = cut_batch([recipes[i] for i in places], [items[i] for i in places], self.device)
            if grid is not None:
                packed = {"inp": packed["inp"], "gt": packed["gt"].unflatten(1, grid)}
            groups.append({**packed, "place": _to(np.array(places), self.device)})
        return groups

    def _arrived(self, packed: Packed) -> Sample:
        return unpack({key: value.to(self.target) for key, value in packed.items()})

    def _recipes(self, indices: Sequence[int]) -> tuple[list[Recipe], list[Item]]:
        items = [self._item(index) for index in indices]
        recipes = []
        for index, item in zip(indices, items, strict=True):
            shapes = [(image.shape[0], image.shape[1]) for image in item if image is not None]
            recipes.append(self.wrapper.recipe(index, shapes, self.wrapper.rng(index)))
        return recipes, items

    def _item(self, index: int) -> Item:
        """Return the images of a sample, on the device if they are kept there, else on the host."""
        key = image_id(self.wrapper.dataset, index)
        if key in self.kept:
            return self.kept[key]
        low, high = (None if image is None else _tensor(image) for image in self.wrapper.images(index))
        assert high is not None
        size = high.numel() + (0 if low is None else low.numel())
        if size > self.room:
            if self.room > 0 and self.kept:
                logger.info("%d images stay on %s; of the others, crops are sent", len(self.kept), self.device)
            self.room = 0
            return low, high
        self.room -= size
        self.kept[key] = (None if low is None else low.to(self.device), high.to(self.device))
        return self.kept[key]


def cut_batch(recipes: Sequence[Recipe], items: Sequence[Item], device: torch.device) -> Packed:
    """Make the samples of several recipes on a device, as `cut` does, from images uint8 [h, w, 3] on any device."""
    for what, sizes in (
        ("input", {_input_size(recipe) for recipe in recipes}),
        ("number of queries", {len(recipe.pixel) for recipe in recipes}),
    ):
        if len(sizes) > 1:
            raise ValueError(f"{what}: samples of a batch differ ({sorted(sizes)}): set inp_size and sample_q")
    matrices = [recipe.colour for recipe in recipes if recipe.colour is not None]  # all recipes have one, or none has
    colours = _to(np.stack(matrices), device) if matrices else None
    high = _crops([recipe.high for recipe in recipes], [item[1] for item in items], colours, device)
    if recipes[0].low is not None:
        low = _crops([recipe.low for recipe in recipes], [item[0] for item in items], colours, device)
    else:
        low = resize_crops(
            _blurred(high, recipes), *(_matrices(recipes, axis, high.shape[2 + axis], device) for axis in (0, 1))
        )
    low = _damaged(low, recipes)
    if recipes[0].before is None:
        place = np.stack([recipe.source(high.shape[3]) for recipe in recipes])
        gt = high.flatten(2).gather(2, _to(place, device).long()[:, None].expand(-1, 3, -1)).mT
    else:  # whole images of different sizes, one by one
        gt = torch.stack(
            [
                _resized(image, recipe)[:, _to(recipe.pixel, device)].T
                for image, recipe in zip(high, recipes, strict=True)
            ]
        )
    return {
        "inp": _flip(low, recipes, device),
        "gt": gt.contiguous(),
        "pixel": _to(np.stack([recipe.pixel for recipe in recipes]), device),
        "size": _to(np.array([recipe.grid for recipe in recipes], np.int32), device),
    }


def _input_size(recipe: Recipe) -> tuple[int, int]:
    height, width = recipe.size
    return (width, height) if recipe.flips[2] else (height, width)


def _crops(
    windows: Sequence[Window | None], images: Sequence[Tensor | None], colours: Tensor | None, device: torch.device
) -> Tensor:
    """Return the crops, padded to the largest one, uint8 [B, 3, H, W]."""
    height, width = (max(window[side] for window in windows if window) for side in (2, 3))
    crops = torch.empty(len(windows), height, width, 3, dtype=torch.uint8, device=device)
    for crop, window, image in zip(crops, windows, images, strict=True):
        assert window is not None and image is not None
        top, left, h, w = window
        crop[:h, :w].copy_(image[top : top + h, left : left + w], non_blocking=True)
    if colours is not None:  # float64 keeps the product exact, because no reduced precision applies to it
        crops = (crops.double() @ colours.double()[:, None].mT).add_(0.5).clamp_(0, 255).to(torch.uint8)
    return crops.permute(0, 3, 1, 2)


def _matrices(recipes: Sequence[Recipe], axis: int, padded: int, device: torch.device) -> Tensor:
    """Return the matrices [B, 1, out, padded] of the reduction along an axis."""
    matrices = [coefficients(recipe.high[2 + axis], recipe.size[axis], padded) for recipe in recipes]
    return _to(np.stack(matrices), device)[:, None]


def _blurred(high: Tensor, recipes: Sequence[Recipe]) -> Tensor:
    """Blur padded crops [B, 3, H, W] as their recipes say, for the reduction."""
    sigmas = [0.0 if recipe.damage is None else recipe.damage.before for recipe in recipes]
    if not any(sigmas):
        return high
    matrices = []
    for axis in (0, 1):
        padded = high.shape[2 + axis]
        made = np.zeros((len(recipes), padded, padded), np.int32)
        for own, recipe, sigma in zip(made, recipes, sigmas, strict=True):
            size = recipe.high[2 + axis]
            own[:size] = matrix(*gaussian(size, sigma), padded)
        matrices.append(made)
    return resize_crops(high, *(_to(each, high.device)[:, None] for each in matrices))


def _damaged(low: Tensor, recipes: Sequence[Recipe]) -> Tensor:
    """Damage inputs [B, 3, h, w] after the reduction; on the CPU, because JPEG exists only there."""
    if all(recipe.damage is None for recipe in recipes):
        return low
    images = low.permute(0, 2, 3, 1).cpu().numpy()
    done = [x if r.damage is None else damaged(x, r.damage) for x, r in zip(images, recipes, strict=True)]
    return _to(np.stack(done), low.device).permute(0, 3, 1, 2)


def _resized(image: Tensor, recipe: Recipe) -> Tensor:
    """Resize and flip a target, given as a padded crop, by its recipe; uint8 [3, H * W]."""
    assert recipe.before is not None
    image = bicubic_resize(image[:, : recipe.high[2], : recipe.high[3]], recipe.before, height_first=False)
    vertical, horizontal, transposed = recipe.flips
    image = image.flip([axis for axis, flipped in ((1, vertical), (2, horizontal)) if flipped])
    image = image.mT if transposed else image
    return (image if recipe.after is None else bicubic_resize(image, recipe.after, height_first=False)).flatten(1)


def _flip(images: Tensor, recipes: Sequence[Recipe], device: torch.device) -> Tensor:
    """Flip and transpose each of the images [B, 3, H, W] by its recipe."""
    flips = _to(np.array([recipe.flips for recipe in recipes]), device)
    vertical, horizontal, transposed = flips.view(-1, 3, 1, 1, 1).unbind(1)
    images = torch.where(vertical, images.flip(2), images)
    images = torch.where(horizontal, images.flip(3), images)
    if images.shape[2] == images.shape[3]:
        return torch.where(transposed, images.mT, images)
    return (
        images.mT.contiguous() if recipes[0].flips[2] else images
    )  # all have the same size, so the same transposition


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image if image.flags.writeable else image.copy())


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    """Send an array without waiting for the device."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
