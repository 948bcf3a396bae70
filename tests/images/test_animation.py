"""Animated GIF, PNG and WebP: frames put together, timing, number of plays, transparency, and files that break off."""

import itertools
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from liif_fast.images import (
    FORMATS,
    Animation,
    ImageFileError,
    animated,
    open_picture,
    vips,
    write_animation,
)

SIZE = (8, 6)
PALETTE = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], np.uint8)


class Piece(NamedTuple):
    """Hold a frame as the format stores it; a GIF's `pixels` index the palette, where 3 may be transparent."""

    left: int
    top: int
    pixels: NDArray[np.uint8]
    disposal: int
    transparent: bool


def gif(pieces: Sequence[Piece], loop: int | None = 0, hundredths: Sequence[int] = (10, 0, 7)) -> bytes:
    """Return a GIF with codes of 3 bits each (a clear code before every second pixel)."""
    out = b"GIF89a" + struct.pack("<HHBBB", *SIZE, 0xF1, 0, 0) + PALETTE.tobytes()
    if loop is not None:
        out += b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", loop) + b"\0"
    for piece, delay in zip(pieces, itertools.cycle(hundredths)):
        out += b"\x21\xf9\x04" + struct.pack("<BHB", piece.disposal << 2 | piece.transparent, delay, 3) + b"\0"
        out += b"\x2c" + struct.pack("<HHHHB", piece.left, piece.top, *piece.pixels.shape[::-1], 0) + b"\x02"
        codes = [code for pair in piece.pixels.reshape(-1, 2) for code in (4, *pair)]
        packed = sum(int(code) << 3 * place for place, code in enumerate([*codes, 5]))
        data = packed.to_bytes(-(-3 * (len(codes) + 1) // 8), "little")
        out += b"".join(bytes([len(data[i : i + 40])]) + data[i : i + 40] for i in range(0, len(data), 40)) + b"\0"
    return out + b";"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def apng(
    pieces: Sequence[Piece],
    blends: Sequence[int],
    plays: int = 0,
    still: NDArray[np.uint8] | None = None,
    header: bytes = b"\x08\x06\0\0\0",
    claimed: int | None = None,
) -> bytes:
    """Return an animated PNG of RGBA pieces; `still` is a picture for old readers, not a frame."""

    def packed(pixels: NDArray[np.uint8]) -> bytes:
        return zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))

    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">II", *SIZE) + header)
    out += chunk(b"acTL", struct.pack(">II", claimed or len(pieces), plays))
    number = itertools.count()
    if still is not None:
        out += chunk(b"IDAT", packed(still))
    for k, (piece, blend) in enumerate(zip(pieces, blends, strict=False)):
        place = (*piece.pixels.shape[1::-1], piece.left, piece.top)
        out += chunk(b"fcTL", struct.pack(">IIIIIHHBB", next(number), *place, k + 1, 30, piece.disposal, blend))
        data = packed(piece.pixels)
        first = k == 0 and still is None
        out += chunk(b"IDAT", data) if first else chunk(b"fdAT", struct.pack(">I", next(number)) + data)
    return out + chunk(b"IEND", b"")


def composed(layers: Sequence[tuple[Piece, NDArray, bool]], clear: int, restore: int) -> list[NDArray]:
    """Compose pieces [h, w, 4] on a transparent canvas, by the rules written out plainly."""
    canvas, frames = np.zeros((*SIZE[::-1], 4)), []
    for piece, pixels, over in layers:
        before = canvas.copy()
        for y, x in np.ndindex(*pixels.shape[:2]):
            at = piece.top + y, piece.left + x
            new, old = pixels[y, x].astype(float), canvas[at]
            a, b = new[3] / 255, old[3] / 255
            alpha = a + b * (1 - a)
            mixed = (new[:3] * a + old[:3] * b * (1 - a)) / (alpha or 1)
            canvas[at] = [*mixed, 255 * alpha] if over else new
        frames.append(canvas.copy())
        if piece.disposal == clear:
            canvas[piece.top : piece.top + len(pixels), piece.left : piece.left + pixels.shape[1]] = 0
        elif piece.disposal == restore:
            canvas = before
    return frames


def rgba(frame: NDArray) -> NDArray:
    return frame if frame.shape[2] == 4 else np.concatenate([frame, np.full((*frame.shape[:2], 1), 255)], -1)


def same(one: NDArray, other: NDArray, levels: float = 0) -> bool:
    """Compare alpha, and colours where both frames show them."""
    one, other = rgba(one).astype(float), rgba(other).astype(float)
    seen = np.minimum(one[..., 3:], other[..., 3:]) > 0
    return bool(np.abs(one[..., 3] - other[..., 3]).max() <= levels and (np.abs(one - other) * seen).max() <= levels)


def read(path: Path, data: bytes | None = None) -> Animation:
    if data is not None:
        path.write_bytes(data)
    picture = animated(open_picture(path), FORMATS[".png"])
    assert isinstance(picture, Animation)
    return picture


def random_pieces(rng: np.random.Generator, disposals: Sequence[int], transparent: Sequence[bool]) -> list[Piece]:
    pieces = []
    for disposal, clear in zip(disposals, transparent, strict=False):
        left, top, width, height = rng.integers(0, 4), rng.integers(0, 3), 2 * rng.integers(1, 3), rng.integers(2, 4)
        pieces.append(Piece(int(left), int(top), rng.integers(0, 4, (height, width)).astype(np.uint8), disposal, clear))
    return pieces


@pytest.mark.parametrize("transparent", [(False,) * 3, (True,) * 3, (False, True, False), (True, False, True)])
def test_pieces_of_a_gif(tmp_path: Path, transparent: Sequence[bool]) -> None:
    """Test every sequence of disposals."""
    rng = np.random.default_rng(0)
    for disposals in itertools.product(range(4), repeat=3):
        pieces = random_pieces(rng, disposals, transparent)
        layers = []
        for piece in pieces:
            alpha = np.where((piece.pixels == 3) & piece.transparent, 0, 255)
            layers.append((piece, np.concatenate([PALETTE[piece.pixels], alpha[..., None]], -1), True))
        frames = read(tmp_path / "in.gif", gif(pieces)).frames
        assert len(frames) == 3
        assert all(map(same, frames, composed(layers, 2, 3)))


@pytest.mark.parametrize("blends", [*itertools.product((0, 1), repeat=2)])
def test_pieces_of_an_apng(tmp_path: Path, blends: tuple[int, int]) -> None:
    """Test every sequence of disposals; partly transparent pieces are mixed."""
    rng = np.random.default_rng(0)
    for disposals in itertools.product(range(3), repeat=3):
        pieces = [
            piece._replace(pixels=rng.choice([0, 99, 255], (*piece.pixels.shape, 4)).astype(np.uint8))
            for piece in random_pieces(rng, disposals, (True,) * 3)
        ]
        pieces[0] = Piece(0, 0, rng.choice([0, 99, 255], (*SIZE[::-1], 4)).astype(np.uint8), disposals[0], True)
        layers = [(piece, piece.pixels, bool(blend)) for piece, blend in zip(pieces, (0, *blends), strict=False)]
        layers[0] = (pieces[0]._replace(disposal=1 if disposals[0] == 2 else disposals[0]), *layers[0][1:])
        frames = read(tmp_path / "in.png", apng(pieces, (0, *blends))).frames
        assert all(same(*pair, levels=2) for pair in zip(frames, composed(layers, 1, 2), strict=True))


def test_the_picture_for_old_readers_is_no_frame(tmp_path: Path) -> None:
    pieces = [Piece(0, 0, np.full((*SIZE[::-1], 4), value, np.uint8), 0, True) for value in (50, 100)]
    made = read(tmp_path / "in.png", apng(pieces, (0, 0), plays=3, still=np.zeros((*SIZE[::-1], 4), np.uint8)))
    assert [frame[0, 0, 0] for frame in made.frames] == [50, 100]
    assert made.plays == 3
    assert made.durations == pytest.approx([1000 / 30, 2000 / 30])


@pytest.mark.parametrize(("loop", "plays"), [(None, 1), (0, 0), (1, 2), (9, 10)])
def test_a_gif_says_how_often_it_is_repeated(tmp_path: Path, loop: int | None, plays: int) -> None:
    pieces = random_pieces(np.random.default_rng(0), (0, 0, 0), (True,) * 3)
    made = read(tmp_path / "in.gif", gif(pieces, loop))
    assert (made.plays, made.durations) == (plays, [100, 0, 70])


@pytest.mark.parametrize("target", ["gif", "webp", "png"])
@pytest.mark.parametrize("source", ["gif", "webp", "png"])
@pytest.mark.parametrize("plays", [0, 1, 5])
def test_from_each_to_each(tmp_path: Path, source: str, target: str, plays: int) -> None:
    """Pillow, libvips (where it can) and we read the same frames, durations and number of plays from what we write."""
    frames = [np.zeros((12, 16, 4), np.uint8) for _ in range(4)]
    for number, frame in enumerate(frames):
        frame[2:8, number : number + 7] = (200, 40 * number, 10, 255)
    times = [30, 70, 40, 250]
    images = [Image.fromarray(frame) for frame in frames]
    options: dict = {
        "loop": {"gif": plays - 1 if plays > 1 else plays}.get(source, plays),
        "disposal": 2,
        "lossless": True,
    }
    if (source, plays) == ("gif", 1):
        del options["loop"]
    if source == "png":
        options["disposal"] = 1
    images[0].save(tmp_path / f"in.{source}", save_all=True, append_images=images[1:], duration=times, **options)
    animation = read(tmp_path / f"in.{source}")
    assert (animation.plays, animation.durations) == (plays, times)
    assert all(map(same, animation.frames, frames))
    path = tmp_path / f"out.{target}"
    kind = FORMATS[f".{target}"]
    write_animation(path, iter(animation.frames), animation, kind._replace(options=kind.lossless or {}))
    again = read(path)
    assert (again.plays, again.durations) == (plays, times)
    assert all(map(same, again.frames, frames))
    if target != "png" and (library := vips.library()):
        load = library.Image.gifload if target == "gif" else library.Image.webpload
        image = load(str(path), n=-1)
        assert (image.get("delay"), image.get("loop")) == (times, plays)
        assert all(map(same, image.numpy().reshape(-1, 12, 16, 4), frames))


def test_times_that_a_format_cannot_say_do_not_add_up(tmp_path: Path) -> None:
    """In a GIF's hundredths of a second, frames of 1/30 s or 3 ms begin when they should, and none has duration 0."""
    pieces = [Piece(0, 0, np.full((*SIZE[::-1], 4), 20 * value, np.uint8), 0, True) for value in range(1, 7)]
    animation = read(tmp_path / "in.png", apng(pieces, (0,) * 6))
    for durations, expected in (([100 / 3] * 6, [30, 40, 30, 30, 40, 30]), ([3.0, 3, 3, 3, 3, 3], [10] * 6)):
        animation.durations = list(durations)
        opaque = [np.full((4, 4, 3), 40 * value, np.uint8) for value in range(6)]
        write_animation(tmp_path / "out.gif", opaque, animation, FORMATS[".gif"])
        assert read(tmp_path / "out.gif").durations == expected


def test_numbers_that_a_format_has_not(tmp_path: Path) -> None:
    moving(tmp_path / "in.webp", 2)
    animation = read(tmp_path / "in.webp")
    animation.durations, animation.plays = [700_000, 0], 100_000
    with pytest.raises(ImageFileError, match=r"GIF shows a frame for at most 655 s, got 700 s"):
        write_animation(tmp_path / "out.gif", animation.frames, animation, FORMATS[".gif"])
    write_animation(tmp_path / "out.png", animation.frames, animation, FORMATS[".png"])
    assert read(tmp_path / "out.png").durations == [700_000, 0]
    animation.durations = [650_000, 0]
    for format in ("gif", "webp", "png"):
        write_animation(tmp_path / f"out.{format}", animation.frames, animation, FORMATS[f".{format}"])
        made = read(tmp_path / f"out.{format}")
        assert (made.durations, made.plays) == ([650_000, 0], 65_535)


def test_metadata(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", '<x tiff:ImageWidth="4"/>')
    chunks.add(b"gAMA", struct.pack(">I", 100_000))
    images = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (9, 99)]
    exif = Image.Exif()
    exif[0x013B], exif[0x0112] = "name", 6
    images[0] = Image.new("RGB", (4, 4), "blue")
    images[0].paste("red", (0, 0, 4, 1))
    images[0].save(tmp_path / "in.png", save_all=True, append_images=images[1:], pnginfo=chunks, exif=exif)
    animation = read(tmp_path / "in.png")
    assert (animation.frames[0][:, 3, 0] == 255).all()  # upright, what was the first row is the last column
    write_animation(tmp_path / "out.png", animation.frames, animation, FORMATS[".png"])
    with Image.open(tmp_path / "out.png") as image:
        assert (image.n_frames, image.info["gamma"]) == (2, 1.0)
        assert image.info["xmp"] == b'<x tiff:ImageWidth="4"/>'
        assert (image.getexif()[0x013B], image.getexif().get(0x0112, 1)) == ("name", 1)
    assert not caplog.records
    write_animation(tmp_path / "out.gif", animation.frames, animation, FORMATS[".gif"])
    assert [text.split(": ")[1] for text in caplog.messages] == [
        "the EXIF data is lost in GIF",
        "the XMP data is lost in GIF",
        "the description of the colours (gAMA) is lost in GIF",
    ]


def moving(path: Path, count: int = 4) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)) for _ in range(count)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=50, loop=0)


@pytest.mark.parametrize("format", ["gif", "png", "webp"])
def test_an_animation_that_breaks_off(tmp_path: Path, format: str, caplog: pytest.LogCaptureFixture) -> None:
    """A file cut anywhere gives an error of one line that names the frame, and never a shorter animation."""
    moving(tmp_path / f"in.{format}")
    data = (tmp_path / f"in.{format}").read_bytes()
    whole = read(tmp_path / f"in.{format}").frames
    path = tmp_path / f"cut.{format}"
    for cut in range(30, len(data) - 1, 29):
        caplog.clear()
        path.write_bytes(data[:cut])
        try:
            picture = animated(open_picture(path), FORMATS[".png"])
            frames = picture.frames if isinstance(picture, Animation) else [picture.pixels]
        except ImageFileError:
            continue
        assert format == "gif"
        assert "ends without its end mark" in caplog.text
        assert len(frames) < 4
        assert all(map(np.array_equal, frames, whole))


def test_a_gif_without_its_end_mark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moving(tmp_path / "in.gif")
    data = (tmp_path / "in.gif").read_bytes()
    assert len(read(tmp_path / "cut.gif", data[:-1]).frames) == 4
    assert caplog.messages == [f"{tmp_path / 'cut.gif'}: it ends without its end mark, so further frames may be lost"]
    with pytest.raises(ImageFileError, match=r"cut.gif: frame 4 of the animation cannot be read: the file ends"):
        read(tmp_path / "cut.gif", data[:-2])


def test_damaged_apng(tmp_path: Path) -> None:
    pieces = [Piece(0, 0, np.full((*SIZE[::-1], 4), value, np.uint8), 0, True) for value in (50, 100)]
    good = apng(pieces, (0, 0))
    for data, message in (
        (apng(pieces, (0, 0), claimed=3), "it has 2 frames, but its header says 3"),
        (good[:-30] + bytes([good[-30] ^ 1]) + good[-29:], "the file is damaged"),
    ):
        with pytest.raises(ImageFileError, match=message):
            read(tmp_path / "in.png", data)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moving(tmp_path / "in.webp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9 * 12 * 3 // 2)
    with pytest.raises(ImageFileError, match="possible decompression bomb"):
        read(tmp_path / "in.webp")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moving(tmp_path / "in.gif")
    animation = read(tmp_path / "in.gif")

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ImageFileError, match=r"out.gif: cannot be written: No space left on device"):
        write_animation(tmp_path / "out.gif", animation.frames, animation, FORMATS[".gif"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gif"]


def test_equal_frames_that_last_too_long_for_a_gif(tmp_path: Path) -> None:
    """Pillow merges them and adds up their durations."""
    moving(tmp_path / "in.gif")
    animation = animated(open_picture(tmp_path / "in.gif"), FORMATS[".gif"])
    assert isinstance(animation, Animation)
    animation.durations = [400_000.0, 400_000.0]
    with pytest.raises(ImageFileError, match=r"out.gif: cannot be written"):
        write_animation(tmp_path / "out.gif", animation.frames[:1] * 2, animation, FORMATS[".gif"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gif"]
