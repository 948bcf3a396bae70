"""A region of a file equals that of the whole, and no more of the file is read than needed."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from liif_fast import upscaling
from liif_fast.images import Picture, open_picture, read_image, vips
from liif_fast.upscaling import api

from .test_upscale import SCALE, photo

pytestmark = pytest.mark.usefixtures("small_pieces")


@pytest.mark.parametrize(
    ("extension", "channels"), [("jpg", 1), ("jpg", 3), *itertools.product(("png", "tif"), (1, 3, 4))]
)
def test_a_region_of_a_file_reads_only_what_it_needs(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str, channels: int
) -> None:
    """A region has the same values, computed from a window of the input."""
    pixels, path = photo(90, 120, channels), tmp_path / f"a.{extension}"
    Image.fromarray(pixels.squeeze()).save(path)
    read = []
    decode = Picture._read

    def watched(self: Picture, window: Any) -> NDArray:
        read.append(window)
        return decode(self, window)

    whole = upscaling.upscale(read_image(path).pixels, model, scale=SCALE)
    monkeypatch.setattr(Picture, "_read", watched)
    for region in ((0, 0, 9, 11), (50, 81, 30, 22), (205, 260, 2, 16)):
        read.clear()
        top, left, height, width = region
        upscaling.upscale_file(path, tmp_path / "part.png", model, scale=SCALE, region=region)
        assert len(read) == 1
        assert read[0][2:] != (90, 120)
        part = read_image(tmp_path / "part.png").pixels
        expected = whole[top : top + height, left : left + width].reshape(part.shape)
        assert np.abs(part.astype(int) - expected).max() <= 1  # of values that lie between two levels
        assert (part == expected).mean() > 0.99


@pytest.mark.parametrize("channels", [2, 4])
def test_a_visible_region_of_a_file_with_alpha_reads_only_what_it_needs(
    model: nn.Module,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    channels: int,
) -> None:
    """A hidden pixel elsewhere does not matter; one inside takes its colour from afar."""
    regions = (0, 0, 9, 11), (40, 45, 60, 70), (205, 260, 2, 16)
    pixels, path = photo(90, 120, channels), tmp_path / "a.png"
    pixels[..., -1] = np.maximum(pixels[..., -1], 1)
    pixels[88, 3, -1] = 0
    inside = pixels.copy()
    for top, left, height, width in regions:
        inside[int((top + height / 2) / SCALE), int((left + width / 2) / SCALE), -1] = 0
    for hidden, shown in enumerate((pixels, inside)):
        Image.fromarray(shown).save(path)
        whole = upscaling.upscale(shown, model, scale=SCALE)
        for top, left, height, width in regions:
            picture = open_picture(path)
            monkeypatch.setattr(api, "open_picture", lambda _, picture=picture: picture)
            caplog.clear()
            region = (top, left, height, width)
            upscaling.upscale_file(path, tmp_path / "part.png", model, scale=SCALE, region=region)
            part = read_image(tmp_path / "part.png").pixels
            assert np.abs(part.astype(int) - whole[top : top + height, left : left + width]).max() <= 1
            assert ("pixels" in picture.__dict__) == bool(hidden)
            assert ("decoded as a whole, because the region has transparent pixels" in caplog.text) == bool(hidden)


@pytest.mark.parametrize("coloured", [False, True])
def test_a_gray_region_of_a_file_is_that_of_the_whole(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coloured: bool
) -> None:
    """The whole RGB picture decides whether it is gray, read in one pass besides the window."""
    pixels, path = np.repeat(photo(90, 120, 1), 3, 2), tmp_path / "a.png"
    if coloured:
        pixels[-1, -1] = 1, 0, 0
    Image.fromarray(pixels).save(path)
    opened, load = [], vips._load
    monkeypatch.setattr(vips, "_FETCHED", 1 << 12)
    monkeypatch.setattr(vips, "_load", lambda *args: opened.append(load(*args)) or opened[-1])
    whole = upscaling.upscale(pixels, model, scale=SCALE)
    upscaling.upscale_file(path, tmp_path / "part.png", model, scale=SCALE, region=(0, 0, 20, 20))
    assert len(opened) == 3  # for the header, the window and all of it
    part = read_image(tmp_path / "part.png").pixels
    assert (part[..., :1] != part).any() == coloured
    assert np.abs(part.astype(int) - whole[:20, :20]).max() <= 1
