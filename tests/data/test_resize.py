"""Compare with Pillow's resize; no value may differ."""

import numpy as np
import pytest
import torch
from PIL import Image

from liif_fast.backends import cpu
from liif_fast.data.resize import (
    bicubic_resize,
    coefficients,
    pillow_takes_height_first,
    resize,
    resize_crops,
    shorter_side,
)
from liif_fast.ops import resize as ops


def pil(array, size):
    """Resize uint8 [C, H, W] to (height, width) by Pillow's bicubic filter."""
    image = Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def width_first(array, size):
    """Run Pillow's two passes one by one, whose order no version changes."""
    return pil(pil(array, (array.shape[1], size[1])), size)


def noise(rng, height, width):
    """Make values of the whole range, or only black and white, which overshoot most."""
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
    """Zeros in the matrices hide the content of a crop's padding."""
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


@pytest.fixture(params=["kernel", "Pillow"])
def way(request, monkeypatch):
    """Select the code by which `resize` works."""
    if request.param == "Pillow":
        monkeypatch.setattr(cpu, "ISA", "")
    elif not cpu.ISA:
        pytest.skip("the C++ kernels are not built")


@pytest.mark.usefixtures("way")
def test_on_the_cpu():
    rng = np.random.default_rng(0)
    sizes = [(rng.integers(1, 70, 2), rng.integers(1, 70, 2)) for _ in range(150)]
    sizes += [((side, side), (48, 48)) for side in range(48, 193, 9)]
    sizes += [((2040, 30), (170, 5)), ((30, 2040), (5, 170)), ((50, 700), (75, 2000)), ((1000, 400), (333, 210))]
    sizes += [((1, 1), (3, 2)), ((3, 9000), (2, 4)), ((9000, 3), (4, 2)), ((400, 1), (7, 1))]
    for old, new in sizes:
        image = noise(rng, *old).transpose(1, 2, 0)  # channels apart
        got = resize(image, tuple(map(int, new)))
        assert got.dtype == np.uint8
        assert np.array_equal(got.transpose(2, 0, 1), width_first(image.transpose(2, 0, 1), new)), f"{old} to {new}"


@pytest.mark.usefixtures("way")
def test_parts_and_images_that_must_not_be_written():
    image = noise(np.random.default_rng(0), 40, 50).transpose(1, 2, 0).copy()
    expected = width_first(image[3:33, 40:9:-1].transpose(2, 0, 1), (12, 11)).transpose(1, 2, 0)
    image.setflags(write=False)
    assert np.array_equal(resize(image[3:33, 40:9:-1], (12, 11)), expected)


@pytest.mark.usefixtures("way")
def test_the_same_size_is_a_copy(monkeypatch):
    image = noise(np.random.default_rng(0), 48, 40).transpose(1, 2, 0)[:, ::-1]
    monkeypatch.setattr(ops, "bicubic_resize", None)  # no pass
    got = resize(image, (48, 40))
    assert np.array_equal(got, image)
    assert not np.shares_memory(got, image)
    assert got.flags["C_CONTIGUOUS"]


@pytest.mark.usefixtures("way")
def test_wrong_arguments_on_the_cpu():
    for dtype in (np.uint16, np.float32, np.int8):
        with pytest.raises(TypeError, match=f"must be uint8, got {np.dtype(dtype)}"):
            resize(np.zeros((8, 8, 3), dtype), (4, 4))
    for shape, size in (
        ((8, 8, 4), (4, 4)),
        ((8, 8), (4, 4)),
        ((0, 8, 3), (4, 4)),
        ((8, 8, 3), (0, 4)),
        ((8, 8, 3), (4, -1)),
        ((8, 8, 3), (4,)),
    ):
        with pytest.raises(ValueError, match=r"must be \[H, W, 3\], sides at least 1"):
            resize(np.zeros(shape, np.uint8), size)


@pytest.mark.skipif(not cpu.ISA, reason="the C++ kernels are not built")
def test_the_kernel_reads_any_layout_and_nothing_outside():
    image = torch.from_numpy(noise(np.random.default_rng(0), 33, 21)).permute(1, 2, 0)
    rows = (torch.tensor([0, 30, 32]), torch.full((3, 4), 1e6, dtype=torch.float64))
    axes = (*rows, torch.tensor([20, 3]), torch.full((2, 9), 1e5, dtype=torch.float64))
    expected = ops.bicubic_resize(image.contiguous(), *axes)
    assert torch.equal(ops.bicubic_resize(image, *axes), expected)
    around = torch.full((40, 30, 5), 255, dtype=torch.uint8)
    around[2:35, 4:25, 1:4] = image
    assert torch.equal(ops.bicubic_resize(around[2:35, 4:25, 1:4], *axes), expected)
    for place, wrong in (
        (0, torch.tensor([0, 33, 0])),
        (0, torch.tensor([0, -1, 0])),
        (0, torch.tensor([0, 1])),
        (0, torch.tensor([0.0, 1.0, 2.0])),
        (1, rows[1] * float("nan")),
        (1, rows[1] * 1e3),
        (3, rows[1][:2, :0]),
        (3, axes[3].float()),
    ):
        with pytest.raises(RuntimeError, match="liif_fast: first must"):
            ops.bicubic_resize(image, *axes[:place], wrong, *axes[place + 1 :])
    for wrong in (image.float(), image[0]):
        with pytest.raises(RuntimeError, match="image must be uint8"):
            ops.bicubic_resize(wrong, *axes)


def test_the_shorter_side():
    assert shorter_side((10, 15), 4) == (4, 6)
    assert shorter_side((15, 10), 4) == (6, 4)
    assert shorter_side((9, 14), 6) == (6, 9)  # int(6 * 14 / 9) = int(9.33)


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"must be uint8, got torch\.float32"):
        bicubic_resize(torch.zeros(3, 8, 8), (4, 4))
    for shape, size in (((3, 8, 8), (0, 4)), ((3, 0, 8), (4, 4)), ((8,), (4, 4)), ((3, 8, 8), (4,))):
        with pytest.raises(ValueError, match="sides of at least 1"):
            bicubic_resize(torch.zeros(shape, dtype=torch.uint8), size)
