"""Compare what `degrade` does to inputs, and how often, with Pillow and SciPy."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from liif_fast.data import make
from liif_fast.data.damage import CHROMA, Damage, Degrade, blurred, damaged

NONE = Damage(before=0, after=0, noise=0, seed=0, quality=None, chroma=0, shift=(0, 0))


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return gaussian_filter1d(rng.uniform(-300, 600, (height, width, 3)), 1.5, axis=1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.4])
def test_blur_is_a_gaussian(sigma):
    image = picture(40, 50)
    reach = int(np.ceil(3 * sigma))
    expected = image.astype(float)
    for axis in (1, 0):
        expected = gaussian_filter1d(expected, sigma, axis, radius=reach)
    inside = (slice(reach, -reach),) * 2
    assert np.abs(blurred(image, sigma)[inside] - expected[inside]).max() <= 1.01  # rounded twice
    assert (blurred(np.full((9, 7, 3), 93, np.uint8), sigma) == 93).all()  # nothing leaks at a border
    assert blurred(image, 0) is image


@pytest.mark.parametrize("chroma", CHROMA)
def test_compression_is_pillows(chroma):
    image = picture(32, 48)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=40, subsampling=chroma)
    expected = np.asarray(Image.open(file))
    assert not np.array_equal(expected, image)
    assert np.array_equal(damaged(image, NONE._replace(quality=40, chroma=chroma)), expected)


def test_an_input_begins_anywhere_in_a_block():
    """The part of an input from the shift on equals that part of the whole compressed picture, away from its border."""
    whole = picture(64, 64)
    expected = damaged(whole, NONE._replace(quality=60, chroma=0))
    part = damaged(whole[5:64, 13:64], NONE._replace(quality=60, chroma=0, shift=(5, 13)))
    assert np.array_equal(part[11:, 3:], expected[16:, 16:])
    assert part.shape == (59, 51, 3)


def test_noise_has_its_deviation_and_its_seed():
    grey = np.full((64, 64, 3), 128, np.uint8)
    noisy = damaged(grey, NONE._replace(noise=5.0, seed=3))
    assert (noisy - 128.0).std() == pytest.approx(5, rel=0.05)
    assert (noisy - 128.0).mean() == pytest.approx(0, abs=0.2)
    assert np.array_equal(noisy, damaged(grey, NONE._replace(noise=5.0, seed=3)))
    assert not np.array_equal(noisy, damaged(grey, NONE._replace(noise=5.0, seed=4)))


def test_draws_cover_their_ranges():
    degrade = Degrade({"quality": [40, 60], "noise": 4, "blur": 0.5, "clean": 0.2})
    rng = np.random.default_rng(0)
    drawn = [degrade.draw(rng, 3.0) for _ in range(2000)]
    made = [each for each in drawn if each is not None]
    assert 1 - len(made) / len(drawn) == pytest.approx(0.2, abs=0.03)
    assert {each.quality for each in made if each.quality} == set(range(40, 61))
    assert 1.3 < max(each.before for each in made) <= 1.5  # at scale 3
    assert 0.4 < max(each.after for each in made) <= 0.5
    assert 3.5 < max(each.noise for each in made) <= 4
    assert not any(each.before and each.after for each in made)
    assert {each.chroma for each in made} == set(CHROMA)
    for share, which in ((0.5, "noise"), (0.25, "before"), (0.25, "after"), (0.9, "quality")):
        assert np.mean([bool(getattr(each, which)) for each in made]) == pytest.approx(share, abs=0.04)
    assert not any(each.before for each in (degrade.draw(rng, None) for _ in range(200)) if each)


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("sr-implicit-downsampled", [picture(40, 40)]),
        ("sr-implicit-paired", [(picture(20, 20), picture(40, 40))]),
        ("sr-implicit-uniform-varied", [(picture(20, 20), picture(40, 40))]),
    ],
)
def test_the_input_alone_is_degraded(name, images):
    args = {"size_min": 40} if "varied" in name else {}
    clean, degraded, again = (
        make({"name": name, "args": args | extra}, dataset=images * 20, seed=1)
        for extra in ({}, {"degrade": {"clean": 0}}, {"degrade": {"clean": 0}})
    )
    changed = 0
    for index in range(20):
        a, b, c = (each.packed(index) for each in (clean, degraded, again))
        assert all((a[key] == b[key]).all() for key in ("gt", "pixel", "size"))
        assert (b["inp"] == c["inp"]).all()
        changed += int((a["inp"] != b["inp"]).any())
    assert changed >= 15
    again.set_epoch(1)
    assert (again.packed(0)["inp"] != degraded.packed(0)["inp"]).any()


def test_none_and_false_are_no_damage():
    assert Degrade.read(None) is None
    assert Degrade.read(False) is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"quality": [95, 30]}, r"degrade.quality: expected \[least, most\] from 1 to 100"),
        ({"quality": 50}, "degrade.quality: expected"),
        ({"noise": -1}, "degrade.noise: must be at least 0, got -1"),
        ({"blur": "much"}, "degrade.blur: expected a number"),
        ({"clean": 1}, "degrade.clean: must be at least 0 and below 1"),
        ({"jpeg": True}, "degrade: unknown key 'jpeg'"),
        ([1], "degrade: expected a mapping"),
    ],
)
def test_wrong_ranges(spec, message):
    with pytest.raises(ValueError, match=message):
        Degrade(spec)
