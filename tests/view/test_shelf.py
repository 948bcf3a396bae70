"""Only images inside the folder are served: nothing outside, nothing hidden, nothing else."""

import contextlib
import io
import os
import struct

import numpy as np
import pytest
from PIL import Image

from liif_fast.images import read_image
from liif_fast.images.colour import COLOUR, read_colour
from liif_fast.view.iiif import Identifier, RequestError, parse_identifier
from liif_fast.view.shelf import Shelf, encode

from .support import picture


@pytest.fixture
def folder(tmp_path):
    """Return a folder beside a secret, with images in it, below it, hidden, and linked."""
    root = tmp_path / "photos"
    (root / "below").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in ("a.png", "below/b c.JPG", ".secret.png", ".hidden/c.png", "notes.txt", "Thumbs.db"):
        (root / name).write_bytes(b"x")
    (tmp_path / "outside.png").write_bytes(b"x")
    (root / "inside.png").symlink_to(root / "a.png")
    (root / "to-hidden.png").symlink_to(root / ".secret.png")
    (root / "out.png").symlink_to(tmp_path / "outside.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "up").symlink_to(tmp_path)
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    return root


def test_what_is_there(folder):
    shelf = Shelf(folder)
    assert shelf.find("below/b c.JPG").path == folder / "below" / "b c.JPG"
    assert shelf.find("inside.png").path == folder / "a.png"
    assert shelf.names() == ["a.png", "inside.png", "below/b c.JPG"]
    assert shelf.names(2) == ["a.png", "inside.png"]


def test_a_name_that_is_not_utf8_hides_no_other(folder):
    with contextlib.suppress(OSError):  # macOS has no such names
        (folder / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    assert Shelf(folder).names() == ["a.png", "inside.png", "below/b c.JPG"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "missing.png",
        "../outside.png",
        "below/../../outside.png",
        "below/../a.png",
        "/etc/passwd",
        "//a.png",
        "a.png/",
        "./a.png",
        ".secret.png",
        ".hidden/c.png",
        "to-hidden.png",
        "out.png",
        "up/outside.png",
        "loop.png",
        "folder.png",
        "pipe.png",
        "notes.txt",
        "Thumbs.db",
        "a.png\0.jpg",
        "..\\outside.png",
        "a" * 5000 + ".png",
        "\udcff.png",
    ],
)
def test_what_is_not(folder, name):
    with pytest.raises(RequestError, match="no photograph is called") as caught:
        Shelf(folder).find(name)
    assert caught.value.status == 404


def test_one_file_alone(folder):
    shelf = Shelf(folder / "a.png")
    assert shelf.find("a.png").path == folder / "a.png"
    assert shelf.names() == ["a.png"]
    for name in ("inside.png", "below/b c.JPG", "../photos/a.png"):
        with pytest.raises(RequestError):
            shelf.find(name)


@pytest.mark.parametrize(
    "name", [".secret.png", "to-hidden.png", "notes.txt", "out.png", "a\\b", "without", "scan@x2", "\udcff"]
)
def test_one_file_may_be_called_anything(folder, name):
    """A file named on the command line is served even if it is hidden, a link, or has no extension."""
    if not (folder / name).exists():
        (folder / name).write_bytes(b"x")
    shelf = Shelf(folder / name)
    (served,) = shelf.names()
    assert shelf.find(served).path == (folder / name).resolve()
    assert parse_identifier(served) == Identifier(served)  # not an enlarged image
    served.encode()


def test_the_tag_changes_with_the_file_and_what_is_made_of_it(folder):
    shelf = Shelf(folder)
    tag = shelf.find("a.png").tag("model", 1)
    assert tag == shelf.find("a.png").tag("model", 1)
    assert tag != shelf.find("a.png").tag("model", 2)
    (folder / "a.png").write_bytes(b"xy")
    assert tag != shelf.find("a.png").tag("model", 1)


def test_the_tag_changes_with_a_file_of_the_same_size_and_time(folder):
    """`cp -p` and `mv` can put such a file in the place of another."""
    shelf, file = Shelf(folder), folder / "a.png"
    tag, size, time = shelf.find("a.png").tag(), file.stat().st_size, file.stat().st_mtime_ns
    (folder / "new.png").write_bytes(b"\1" * size)
    os.utime(folder / "new.png", ns=(time, time))
    (folder / "new.png").rename(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (size, time)
    assert tag != shelf.find("a.png").tag()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [8, 16])
def test_encoded_without_loss(tmp_path, channels, depth):
    pixels = picture(channels, depth, 20, 30)
    path = tmp_path / "a.png"
    path.write_bytes(encode(pixels, "png", {}))
    assert np.array_equal(read_image(path).pixels, pixels)
    low = pixels if depth == 8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    webp = np.asarray(Image.open(io.BytesIO(encode(pixels, "webp", {}))))
    wanted = low[..., [0, 0, 0, *range(1, channels)]] if channels < 3 else low
    assert np.array_equal(webp, wanted)  # WebP has no gray; hidden colours are kept, too
    jpeg = np.asarray(Image.open(io.BytesIO(encode(pixels, "jpg", {}))))
    assert jpeg.shape == ((20, 30) if channels < 3 else (20, 30, 3))


def test_alpha_is_laid_on_white_in_jpeg():
    pixels = np.zeros((8, 8, 4), np.uint8)
    assert np.asarray(Image.open(io.BytesIO(encode(pixels, "jpg", {})))).min() == 255


COLOURS = {b"cICP": bytes((12, 13, 0, 1)), b"cLLI": bytes(8), b"gAMA": struct.pack(">I", 45455)}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("space", [b"RGB ", b"GRAY"])
def test_what_describes_the_colours_is_kept_where_it_fits(tmp_path, channels, depth, space):
    profile, pixels = b"x" * 16 + space + b"x" * 200, picture(channels, depth, 20, 30)
    for kind in ("png", "webp", "jpg"):
        path = tmp_path / f"a.{kind}"
        path.write_bytes(encode(pixels, kind, {"icc_profile": profile, COLOUR: COLOURS, "exif": b"where it was taken"}))
        with Image.open(path) as image:
            fits = space == (b"RGB " if channels > 2 or kind == "webp" else b"GRAY")
            assert image.info.get("icc_profile") == (profile if fits else None)
            assert not image.getexif()
            image.load()  # all checksums are right
    assert read_colour(tmp_path / "a.png") == COLOURS
    assert np.array_equal(read_image(tmp_path / "a.png").pixels, pixels)
