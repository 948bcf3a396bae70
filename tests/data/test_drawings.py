import numpy as np
import pytest

from liif_fast.data import make
from liif_fast.data.drawings import drawing

pytest.importorskip("matplotlib", reason="it ships the fonts")


def test_same_seed_same_image():
    image = drawing(64, seed=5, index=2)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, drawing(64, seed=5, index=2))
    assert not np.array_equal(image, drawing(64, seed=5, index=3))
    assert not np.array_equal(image, drawing(64, seed=6, index=2))


def test_strokes_are_antialiased_on_paper():
    """Most of a page is paper, and between paper and ink there are steps."""
    images = [drawing(96, seed=1, index=index).astype(int).mean(2) for index in range(12)]
    assert all(image.std() > 8 for image in images)
    darkest, lightest = (np.array([f(image) for image in images]) for f in (np.min, np.max))
    assert (lightest - darkest > 60).mean() > 0.8
    between = [
        ((image > a + 20) & (image < b - 20)).mean() for image, a, b in zip(images, darkest, lightest, strict=True)
    ]
    assert np.median(between) > 0.05


def test_dataset_and_its_cache(tmp_path):
    args = {"count": 2, "size": 32, "seed": 4, "repeat": 3, "cache_file": str(tmp_path / "drawings.npy")}
    for _ in range(2):  # drawn, read
        images = make({"name": "drawings", "args": args})
        assert len(images) == 6
        assert np.array_equal(images[3], drawing(32, seed=4, index=1))
    np.save(args["cache_file"], np.zeros((2, 32, 32, 3), np.uint8))
    assert np.array_equal(make({"name": "drawings", "args": args})[0], drawing(32, seed=4))


@pytest.mark.parametrize(("size", "seed", "index"), [(8, 0, 0), (32, -1, 0), (32, 0, -1)])
def test_arguments_out_of_range(size, seed, index):
    with pytest.raises(ValueError, match="must"):
        drawing(size, seed, index)
