"""Pillow's own resize is the oracle: not one value may differ."""

import numpy as np
import pytest
import torch
from PIL import Image

from liif_fast.data.resize import bicubic_resize, coefficients, pillow_takes_height_first, resize_crops


def pil(array, size):
    """Pillow's bicubic of uint8 [C, H, W] to size (height, width)."""
    image = Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def width_first(array, size):
    """Pillow's two passes one by one, which no version turns round."""
    return pil(pil(array, (array.shape[1], size[1])), size)


def noise(rng, height, width):
    """Values of the whole range, or black and white only, which overshoots most."""
    if rng.random() < 0.5:
        return rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    return (rng.integers(0, 2, (3, height, width)) * 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(200))
def test_random_sizes(seed):
    rng = np.random.default_rng(seed)
    limit = 400 if seed % 10 == 0 else 70
    old, new = rng.integers(1, limit, 2), rng.integers(1, limit, 2)
    image = noise(rng, *old)
    got = bicubic_resize(torch.from_numpy(image), new.tolist())
    assert got.dtype == torch.uint8
    assert np.array_equal(got.numpy(), pil(image, new)), f"{old} to {new}, seed {seed}"
    got = bicubic_resize(torch.from_numpy(image), new.tolist(), height_first=False)
    assert np.array_equal(got.numpy(), width_first(image, new)), f"{old} to {new}, seed {seed}"


@pytest.mark.parametrize("side", [48, 49, 71, 96, 107, 144, 181, 192])
def test_the_crops_of_training(side):
    image = noise(np.random.default_rng(side), side, side)
    assert np.array_equal(bicubic_resize(torch.from_numpy(image), (48, 48)).numpy(), pil(image, (48, 48)))


@pytest.mark.parametrize(("old", "new"), [((2040, 30), (170, 5)), ((30, 2040), (5, 170)), ((50, 700), (75, 2000))])
def test_long_sides(old, new):
    image = noise(np.random.default_rng(1), *old)
    assert np.array_equal(bicubic_resize(torch.from_numpy(image), new).numpy(), pil(image, new))


def test_what_the_order_of_passes_depends_on():
    """Equal reductions of both sides put the width first, unless the image is more than twice as high as wide."""
    for old, new in (((192, 192), (48, 48)), ((200, 100), (100, 50)), ((100, 400), (25, 100)), ((20, 20), (40, 9))):
        assert not pillow_takes_height_first(old, new)
    for old, new in (((202, 100), (101, 50)), ((100, 100), (50, 100)), ((100, 100), (99, 101))):
        assert pillow_takes_height_first(old, new)


def test_crops_of_different_sizes_in_one_product():
    """Zeros in the matrices hide what the padding of a crop holds."""
    rng = np.random.default_rng(0)
    sizes = [(9, 31), (31, 9), (24, 24), (8, 8)]
    crops = rng.integers(0, 256, (len(sizes), 3, 31, 31), dtype=np.uint8)
    rows, columns = (
        torch.from_numpy(np.stack([coefficients(size[axis], 8, 31) for size in sizes]))[:, None] for axis in (0, 1)
    )
    got = resize_crops(torch.from_numpy(crops), rows, columns)
    for i, (height, width) in enumerate(sizes):
        assert np.array_equal(got[i].numpy(), width_first(crops[i, :, :height, :width], (8, 8)))


def test_layouts():
    image = torch.from_numpy(noise(np.random.default_rng(0), 20, 30))
    expected = bicubic_resize(image, (7, 11))
    assert torch.equal(bicubic_resize(image.permute(1, 2, 0).contiguous().permute(2, 0, 1), (7, 11)), expected)
    assert torch.equal(bicubic_resize(image.expand(2, 1, 3, 20, 30), (7, 11)), expected.expand(2, 1, 3, 7, 11))
    assert torch.equal(bicubic_resize(image[0], (7, 11)), expected[0])


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"must be uint8, got torch\.float32"):
        bicubic_resize(torch.zeros(3, 8, 8), (4, 4))
    for shape, size in (((3, 8, 8), (0, 4)), ((3, 0, 8), (4, 4)), ((8,), (4, 4)), ((3, 8, 8), (4,))):
        with pytest.raises(ValueError, match="sides of at least 1"):
            bicubic_resize(torch.zeros(shape, dtype=torch.uint8), size)
