"""Test which of the package's models enlarges a file if the user names none."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from liif_fast import upscale
from liif_fast.images import open_picture
from liif_fast.models.catalogue import SHIPPED, SHIPPED_PHOTO, find_model
from liif_fast.upscaling import Upscaler, choose
from liif_fast.view.rendering import Renderer

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
ALPHA = np.dstack((PIXELS, PIXELS[..., :1]))
PROFILE = bytes(5000)  # longer than the head of a file that tells its kind


def write(path: Path, pixels: np.ndarray = PIXELS, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options", "model"),
    [
        ("a.jpg", {}, SHIPPED_PHOTO),
        ("a.png", {"format": "JPEG"}, SHIPPED_PHOTO),  # the content counts
        ("a.jpg", {"format": "PNG"}, SHIPPED),
        ("a.webp", {"quality": 90}, SHIPPED_PHOTO),
        ("a.webp", {"lossless": True}, SHIPPED),
        ("a.webp", {"quality": 90, "icc_profile": PROFILE}, SHIPPED_PHOTO),
        ("a.webp", {"lossless": True, "icc_profile": PROFILE}, SHIPPED),
        ("a.webp", {"quality": 90, "pixels": ALPHA}, SHIPPED_PHOTO),
        ("a.webp", {"save_all": True, "append_images": [Image.new("RGB", (16, 12))]}, SHIPPED_PHOTO),
        ("a.webp", {"save_all": True, "append_images": [Image.new("RGB", (16, 12))], "lossless": True}, SHIPPED),
        ("a.tif", {}, SHIPPED),
        ("a.bmp", {}, SHIPPED),
        ("a.gif", {}, SHIPPED),
        ("a.ppm", {}, SHIPPED),
    ],
)
def test_a_files_content_decides(tmp_path: Path, name: str, options: dict[str, Any], model: str) -> None:
    assert choose(open_picture(write(tmp_path / name, **options))).model == model


def test_avif(tmp_path: Path) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    assert choose(open_picture(write(tmp_path / "a.avif"))).model == SHIPPED_PHOTO


def test_heic(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif", reason="it reads HEIC").register_heif_opener()
    assert choose(open_picture(write(tmp_path / "a.heic", format="HEIF"))).model == SHIPPED_PHOTO


def test_a_pil_image_is_judged_by_its_format(tmp_path: Path) -> None:
    with Image.open(write(tmp_path / "a.jpg")) as image:
        assert choose(image).model == SHIPPED_PHOTO
        assert choose(image.convert("L")).model == SHIPPED  # changed, so without a format
    for name, model in (("a.png", SHIPPED), ("a.webp", SHIPPED_PHOTO)):
        with Image.open(write(tmp_path / name)) as image:
            assert choose(image).model == model
    assert choose(Image.fromarray(PIXELS)).model == SHIPPED
    assert choose(PIXELS).model == SHIPPED


def test_upscale_takes_the_choice_and_logs_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Image.open(write(tmp_path / "a.jpg")) as image, caplog.at_level(logging.INFO, "liif_fast"):
        made = np.asarray(upscale(image, scale=2))
        assert np.array_equal(made, np.asarray(upscale(image, SHIPPED_PHOTO, scale=2)))
        assert not np.array_equal(made, np.asarray(upscale(image, SHIPPED, scale=2)))
    assert [each for each in caplog.messages if each.startswith("by ")] == [
        f"by {SHIPPED_PHOTO}: JPEG compresses with loss"
    ]
    assert find_model(SHIPPED_PHOTO).name == "edsr-small-liif-photo.safetensors"


def test_an_open_image_and_the_viewer_choose_as_well(tmp_path: Path) -> None:
    """`Upscaler`, and the renderer of `view` and `serve`, choose in the same way."""
    path = write(tmp_path / "a.jpg")
    picture = open_picture(path)
    photo, clean = (np.asarray(upscale(picture.pixels, model, scale=2)) for model in (SHIPPED_PHOTO, SHIPPED))
    assert np.array_equal(Upscaler(path).render(scale=2), photo)
    assert np.array_equal(Upscaler(picture.pixels).render(scale=2), clean)
    renderer = Renderer()
    renderer.warm()  # both models
    assert np.array_equal(renderer._upscaler(picture).render(scale=2), photo)
    assert renderer._model.cache_info().misses == 2
