"""Write image files: every format bit for bit, checked before any work, atomically."""

import errno
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from liif_fast import images
from liif_fast.files import atomic_file
from liif_fast.images import (
    ImageFileError,
    check_content,
    check_output,
    mode_of,
    read_image,
    write_image,
    write_strips,
    writing,
)
from liif_fast.images import png as png_writer

from .support import as_pil, gradient, picture


def test_output_is_checked_before_any_work(tmp_path: Path) -> None:
    check_content("a.PNG", check_output(tmp_path / "a.PNG"), "RGBA", (100_000, 1))
    for name, message in (
        ("a.xyz", "unknown output format '.xyz'"),
        ("a", "a: has no extension to name the output's format; add one of .png"),
        ("no/a.png", "does not exist"),
    ):
        with pytest.raises(ImageFileError, match=message):
            check_output(tmp_path / name)
    cases = [
        ("a.jpg", "RGBA", (1, 1), "JPEG cannot hold an alpha channel"),
        ("a.jpg", "I;16", (1, 1), "JPEG cannot hold 16 bits"),
        ("a.webp", "I;16", (1, 1), "WEBP cannot hold 16 bits"),
        ("a.jpg", "RGB", (65536, 10), "at most 65535 pixels per side"),
        ("a.webp", "RGB", (10, 16384), "at most 16383 pixels per side"),
    ]
    for name, mode, size, message in cases:
        with pytest.raises(ImageFileError, match=message):
            check_content(name, check_output(tmp_path / name), mode, size)
    with pytest.raises(ImageFileError, match="is a folder"):
        check_output(tmp_path)
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ImageFileError, match="does not exist"):
        check_output(tmp_path / "loop/a.png")
    with pytest.raises(ImageFileError, match="Too many levels of symbolic links"):
        as_pil(tmp_path / "loop.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ImageFileError, match="not a regular file"):
            check_output(tmp_path / "pipe.png")
        with pytest.raises(ImageFileError, match="not a regular file"):
            as_pil(tmp_path / "pipe.png")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root has every permission
    with pytest.raises(ImageFileError, match="no permission to write into"):
        check_output(tmp_path / "a.png")
    (tmp_path / "a.png").touch()
    with pytest.raises(ImageFileError, match="no permission to overwrite"):
        check_output(tmp_path / "a.png")


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    """Names of 255 bytes, also of three-byte characters, work; the temporary name must not be longer."""
    for name in ("x" * 251, "\u597d" * 83):
        write_image(picture(), tmp_path / f"{name}.png")
        assert as_pil(tmp_path / f"{name}.png").size == (9, 5)


@pytest.mark.parametrize("rows", [1, 5, 37])
@pytest.mark.parametrize("extension", [key[1:] for key in images.FORMATS])
def test_every_format_is_written(tmp_path: Path, extension: str, rows: int) -> None:
    """Strips of any height give the same file, bit for bit if the format is lossless."""
    path = tmp_path / f"a.{extension}"
    for mode in check_output(path).modes:
        pixels = gradient(mode)
        depth = 16 if mode.endswith(";16") else 8
        assert mode_of(pixels.shape[2], depth) == mode
        strips = (pixels[top : top + rows] for top in range(0, len(pixels), rows))
        write_strips(path, strips, pixels.shape, depth, {})
        if (extension, mode) in (("ppm", "RGB;16"), ("pgm", "RGB;16")):
            with Image.open(path) as result:  # Pillow keeps 8 bits of these
                assert np.abs(np.asarray(result) - pixels / 257).max() <= 1
            continue
        result = read_image(path)
        if extension in ("jpg", "jpeg", "webp", "avif") or extension == "gif":
            assert result.size == (53, 37)
        else:
            assert result.depth == depth
            assert np.array_equal(result.pixels, pixels)


@pytest.mark.parametrize("mode", ["RGB", "LA;16"])
def test_png_rows_are_filtered(tmp_path: Path, mode: str) -> None:
    """Pillow filters rows too; our file must not be much larger than its file."""
    pixels = gradient(mode, 200, 200)
    write_strips(tmp_path / "a.png", [pixels[:77], pixels[77:]], pixels.shape, 16 if ";16" in mode else 8, {})
    size = (tmp_path / "a.png").stat().st_size
    raw = zlib.compress(pixels.tobytes(), 9)
    assert size < 0.95 * len(raw)
    if mode == "RGB":
        Image.fromarray(pixels).save(tmp_path / "b.png")
        assert size < 1.1 * (tmp_path / "b.png").stat().st_size


def test_a_large_tiff_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = gradient("RGB;16")
    path = tmp_path / "a.tif"
    write_strips(path, [pixels], pixels.shape, 16, {})
    assert path.read_bytes()[:4] == b"II*\0"
    monkeypatch.setattr(writing, "_CLASSIC_TIFF", 1000)
    write_strips(path, [pixels], pixels.shape, 16, {})
    assert path.read_bytes()[:4] == b"II+\0"
    assert np.array_equal(read_image(path).pixels, pixels)


def test_an_iterator_that_fails_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    def strips() -> Iterator[NDArray]:
        yield np.zeros((2, 4, 3), np.uint8)
        raise ValueError("the model has a cold")

    for name in ("a.png", "a.tif", "a.jpg", "a.ppm"):
        with pytest.raises(ValueError, match=r"^the model has a cold$"):
            write_strips(tmp_path / name, strips(), (4, 4, 3), 8, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", [key[1:] for key in images.FORMATS])
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "expected 4 rows in all, got 0"),
        ([(3, 5, 3)], "expected 4 rows in all, got 3"),
        ([(3, 5, 3), (2, 5, 3), (9, 5, 3)], "expected 4 rows in all, got 5 or more"),
        ([(4, 6, 3)], r"expected strips \[rows, 5, 3\] of uint8, got \[4, 6, 3\] of uint8"),
        ([(4, 5)], r"expected strips \[rows, 5, 3\] of uint8, got \[4, 5\] of uint8"),
    ],
)
def test_strips_that_are_not_the_image(
    tmp_path: Path, extension: str, shapes: list[tuple[int, ...]], message: str
) -> None:
    path = tmp_path / f"a.{extension}"
    strips = (np.zeros(shape, np.uint8) for shape in shapes)
    with pytest.raises(ValueError, match=f"^{message}"):
        write_strips(path, strips, (4, 5, 3), 8, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", ["png", "tif", "ppm", "bmp"])
def test_strips_of_another_depth_and_without_rows(tmp_path: Path, extension: str) -> None:
    path, pixels = tmp_path / f"a.{extension}", np.full((4, 5, 3), 7, np.uint8)
    with pytest.raises(ValueError, match=r"of uint8, got .* of uint16"):
        write_strips(path, [pixels.astype(np.uint16)], (4, 5, 3), 8, {})
    write_strips(path, [pixels[:0], pixels[:1], pixels[1:1], pixels[1:], pixels[4:]], (4, 5, 3), 8, {})
    assert np.array_equal(read_image(path).pixels, pixels)


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_strips_in_the_other_byte_order(tmp_path: Path, extension: str) -> None:
    pixels = (np.arange(60).reshape(4, 5, 3) * 1000).astype(">u2")
    write_strips(tmp_path / f"a.{extension}", [pixels], (4, 5, 3), 16, {})
    assert np.array_equal(read_image(tmp_path / f"a.{extension}").pixels, pixels)


@pytest.mark.parametrize("extension", ["png", "tif", "ppm"])
def test_a_strip_is_written_while_the_next_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    """The writer holds the first strip until the second exists, which needs a thread."""
    second = threading.Event()

    def strips() -> Iterator[NDArray]:
        yield np.zeros((2, 4, 3), np.uint8)
        second.set()
        yield np.ones((2, 4, 3), np.uint8)

    write = writing._write

    def slow(kind: object, file: object, made: Iterator[NDArray], *args: object) -> None:
        def held() -> Iterator[NDArray]:
            for strip in made:
                assert second.wait(30)
                yield strip

        write(kind, file, held(), *args)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "_write", slow)
    write_strips(tmp_path / f"a.{extension}", strips(), (4, 4, 3), 8, {})
    assert read_image(tmp_path / f"a.{extension}").pixels[:, 0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_full_disk_ends_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Only a strip or two are made, however many there would be."""
    made = 0

    def strips() -> Iterator[NDArray]:
        nonlocal made
        for made in range(10_000):  # noqa: B007 - counted
            yield np.zeros((1, 4, 3), np.uint8)

    def full(kind: object, file: object, strips: Iterator[NDArray], *args: object) -> None:
        for _ in range(after):
            next(strips)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "_write", full)
    with pytest.raises(ImageFileError, match=r"a\.png: cannot be written: No space left on device"):
        write_strips(tmp_path / "a.png", strips(), (10_000, 4, 3), 8, {})
    assert made < after + 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, OSError, MemoryError])
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    def compress(data: bytes) -> bytes:
        raise failure("No space left on device")

    monkeypatch.setattr(png_writer.zlib, "compressobj", lambda level: SimpleNamespace(compress=compress))
    old = tmp_path / "old.png"
    old.write_bytes(b"old")
    for path in (old, tmp_path / "new.png"):
        with pytest.raises((failure, ImageFileError)):
            write_image(picture(), path)
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert old.read_bytes() == b"old"


def test_atomic_file_keeps_permissions_and_follows_links(tmp_path: Path) -> None:
    target, link, fresh = tmp_path / "target.png", tmp_path / "link.png", tmp_path / "fresh.png"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    with atomic_file(link) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    with atomic_file(fresh):
        pass
    (tmp_path / "plain").touch()
    assert fresh.stat().st_mode == (tmp_path / "plain").stat().st_mode
