"""Read and write animated GIF, PNG (APNG) and WebP; every frame is a whole picture.

A frame of a GIF or APNG is a piece that is laid over what the frames before it have left. Pillow decodes the pieces.
This module composes them, because Pillow fills a GIF's canvas with the background colour, while browsers leave it
transparent. Pillow also mixes an APNG's partly transparent pieces wrongly.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, PngImagePlugin

from liif_fast.files import atomic_file, reason
from liif_fast.images.colour import COLOUR
from liif_fast.images.errors import ImageFileError, too_large
from liif_fast.images.formats import ANIMATED, Format
from liif_fast.images.picture import Picture
from liif_fast.images.writing import TRANSPARENT, kept, palette_image
from liif_fast.window import TURNS, turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger("liif_fast.images")

_KEEP, _CLEAR, _RESTORE = range(3)  # the disposal of a piece before the next one
_GIF_DISPOSAL = (_KEEP, _KEEP, _CLEAR, _RESTORE)
_LONGEST = 655_350  # milliseconds that GIF can show a frame
_NO_CONTROL = b"\4\0\0\0\0\0"  # a GIF's control block without transparency, disposal or delay
_ORIENTATION = 274


class Animation:
    """Hold an animation, upright.

    Args:
        picture: its opened file, which gives the format, the metadata, the notices and the path for messages.
        file: path of the file; None means the picture's path.

    Attributes:
        frames: whole pictures [H, W, 3], or [H, W, 4] if any of them has transparency; uint8.
        durations: display time of each frame in milliseconds.
        plays: how often the animation is shown; 0 means without end.

    Raises:
        ImageFileError: it is damaged or truncated, or all frames together have more pixels than a picture may have.
    """

    def __init__(self, picture: Picture, file: str | os.PathLike[str] | None = None) -> None:
        self.path, self.format, self.info, self.lossy = picture.path, picture.format, picture.info, picture.lossy
        self.frames: list[NDArray[np.uint8]] = []
        self.durations: list[float] = []
        for notice in picture.notices[:-1]:  # the last one says that only the first frame is used
            logger.warning("%s: %s", self.path, notice)
        read = {"GIF": _read_gif, "PNG": _read_apng, "WEBP": _read_webp}[self.format]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about large pictures; the error at twice the limit stays
                self._read(read, file or self.path)
        except ImageFileError:
            raise
        except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
            why = "the file ends" if isinstance(error, IndexError | struct.error) else reason(error)
            where = f"frame {len(self.frames) + 1} of the animation"
            raise ImageFileError(f"{self.path}: {where} cannot be read: {why}") from error

    def _read(self, read: Callable[[str | os.PathLike[str]], Frames], file: str | os.PathLike[str]) -> None:
        with Image.open(file, formats=[self.format]) as image:
            how = TURNS.get(image.getexif().get(_ORIENTATION, 1), TURNS[1])
        self.plays, frames = read(file)
        for canvas, duration in frames:
            self.frames.append(turn(canvas, how))
            self.durations.append(duration)
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
            if len(self.frames) * canvas.shape[0] * canvas.shape[1] > limit:
                raise too_large(self.path)
        if all((frame[..., 3] == 255).all() for frame in self.frames):
            self.frames = [frame[..., :3] for frame in self.frames]
        self.shape, self.dtype, self.depth = self.frames[0].shape, self.frames[0].dtype, 8

    @property
    def size(self) -> tuple[int, int]:
        """Return (width, height)."""
        return self.shape[1], self.shape[0]


def animated(picture: Picture, kind: Format, file: str | os.PathLike[str] | None = None) -> Picture | Animation:
    """Read all frames of a picture if it has several and the output's format can hold them; else return the picture.

    Args:
        picture, file: as for `Animation`.
        kind: the output's format.

    Raises:
        ImageFileError: as for `Animation`.
    """
    several = picture.frames > 1 and picture.format in ANIMATED and kind.name in ANIMATED
    return Animation(picture, file) if several else picture


def write_animation(
    path: str | os.PathLike[str], frames: Iterable[NDArray[np.uint8]], like: Animation, kind: Format
) -> None:
    """Write an animation atomically; all frames are collected in memory first.

    Args:
        path, kind: as for `write_strips`.
        frames: a frame [h, w, 1 to 4] for each of `like`, all of one shape; exceptions of the iterator propagate.
        like: the source of metadata, durations and number of plays.

    Raises:
        ImageFileError: the disk is full or not writable, or the format cannot hold the durations.
    """
    if kind.name == "GIF" and max(like.durations) > _LONGEST:
        shown = f"{max(like.durations) / 1000:.0f} s; write a .png or .webp file"
        raise ImageFileError(f"{path}: GIF shows a frame for at most {_LONGEST / 1000:.0f} s, got {shown}")
    images, shape = [], (0, 0, 0)
    for frame in frames:
        shape = frame.shape
        image = Image.fromarray(frame[..., 0] if shape[2] == 1 else frame)
        images.append(palette_image(image) if kind.name == "GIF" else image)
    options: dict[str, Any] = kind.options | kept(path, kind, like.info, shape)
    plays = min(like.plays, 65_535)  # only APNG could hold a larger number
    step = 10 if kind.name == "GIF" else 1  # milliseconds
    options["duration"] = _rounded(like.durations, step)
    if kind.name == "GIF":
        clear = {"disposal": 2, "transparency": TRANSPARENT} if shape[2] in (2, 4) else {"disposal": 1}
        options |= clear | {"optimize": False} | ({} if like.plays == 1 else {"loop": max(0, plays - 1)})
    else:
        options["loop"] = plays
    if kind.name == "PNG":
        options |= {"disposal": 0, "blend": 0, "pnginfo": _extra_chunks(options)}
    try:
        with atomic_file(path) as file:
            images[0].save(file, format=kind.name, save_all=True, append_images=images[1:], **options)
    except BrokenPipeError:
        raise
    except (OSError, ValueError, OverflowError, MemoryError, struct.error) as error:
        raise ImageFileError(f"{path}: cannot be written: {reason(error)}") from error


def _rounded(durations: list[float], step: int) -> list[int]:
    """Round durations to multiples of a step, at least one step if above 0, without adding up the rounding errors."""
    ends = [round(end / step) * step for end in accumulate(durations)]
    return [
        max(end - begin, step if duration else 0)
        for begin, end, duration in zip([0, *ends], ends, durations, strict=False)
    ]


def _extra_chunks(options: dict[str, Any]) -> PngImagePlugin.PngInfo:
    """Move the options that Pillow expects as PNG chunks out of `options`, and return the chunks."""
    chunks = PngImagePlugin.PngInfo()
    for name, data in options.pop(COLOUR, {}).items():
        chunks.add(name, data)
    if xmp := options.pop("xmp", None):
        chunks.add(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    return chunks


Frames = tuple[int, "Iterator[tuple[NDArray[np.uint8], float]]"]  # plays; RGBA [H, W, 4] and milliseconds


class _Piece(NamedTuple):
    """Hold a frame as the file has it."""

    left: int
    top: int
    pixels: NDArray[np.uint8]  # RGBA [h, w, 4]
    disposal: int
    over: bool  # composed over the canvas; else it replaces the pixels there
    duration: float  # milliseconds


def _compose(pieces: Iterable[_Piece], size: tuple[int, int]) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Yield the canvas (width, height), transparent at first, after each piece, and the piece's duration."""
    import numpy as np

    canvas = np.zeros((size[1], size[0], 4), np.uint8)
    for piece in pieces:
        place = np.s_[piece.top : piece.top + len(piece.pixels), piece.left : piece.left + piece.pixels.shape[1]]
        before = canvas[place].copy()
        new = piece.pixels[: before.shape[0], : before.shape[1]]  # a GIF's piece may reach beyond the canvas
        canvas[place] = _blend(new, before) if piece.over else new
        yield canvas.copy(), piece.duration
        if piece.disposal != _KEEP:
            canvas[place] = 0 if piece.disposal == _CLEAR else before


def _blend(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite RGBA pixels over RGBA pixels."""
    import numpy as np

    above = upper[..., 3:] / 255
    below = lower[..., 3:] / 255 * (1 - above)
    alpha = above + below
    mixed = (upper * above + lower * below) / np.maximum(alpha, 1e-9)
    mixed[..., 3:] = alpha * 255
    return mixed.round().astype(np.uint8)


def _rgba(data: bytes, format: str) -> NDArray[np.uint8]:
    import numpy as np

    with Image.open(io.BytesIO(data), formats=[format]) as image:
        return np.asarray(image.convert("RGBA"))


def _read_gif(path: str | os.PathLike[str]) -> Frames:
    """Read a GIF (GIF89a); the canvas and cleared pieces are transparent, as in browsers."""
    data = Path(path).read_bytes()
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    table = data[13 : 13 + _table(flags)]
    loop = data.find(b"NETSCAPE2.0\x03\x01")  # the block with the number of repeats
    repeats = struct.unpack_from("<H", data, loop + 13)[0] if loop >= 0 else None
    plays = 1 if repeats is None else 0 if repeats == 0 else repeats + 1

    def pieces() -> Iterator[_Piece]:
        at, control = 13 + len(table), _NO_CONTROL
        while data[at : at + 1] != b";":
            if at == len(data):  # truncated; `open_picture` has added a notice
                return
            start, kind = at, data[at]
            at += 2 if kind == 0x21 else 11 + _table(data[at + 9])
            while data[at]:
                at += 1 + data[at]
            at += 1
            if kind == 0x21 and data[start + 1] == 0xF9:
                control = data[start + 2 : at]
            elif kind == 0x2C:
                left, top, w, h = struct.unpack_from("<HHHH", data, start + 1)
                head = b"GIF89a" + struct.pack("<HHBBB", w, h, flags, 0, 0) + table + b"\x21\xf9" + control
                alone = head + b"\x2c" + struct.pack("<HHHH", 0, 0, w, h) + data[start + 9 : at] + b";"
                disposal = _GIF_DISPOSAL[min(control[1] >> 2 & 7, 3)]
                (hundredths,) = struct.unpack_from("<H", control, 2)
                yield _Piece(left, top, _rgba(alone, "GIF"), disposal, True, 10 * hundredths)
                control = _NO_CONTROL
            elif kind != 0x21:
                raise ValueError("the file is damaged")

    return plays, _compose(pieces(), (width, height))


def _table(flags: int) -> int:
    """Return the size of a GIF's colour table, bytes."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _read_apng(path: str | os.PathLike[str]) -> Frames:
    """Read an animated PNG (ISO/IEC 15948, 11.3.6)."""
    chunks = [*_chunks(Path(path).read_bytes())]
    header = dict(chunks)[b"IHDR"]
    if header[8] == 16 or (header[8] < 8 and header[9] == 0 and b"tRNS" in dict(chunks)):  # Pillow misreads both
        raise ValueError("it has 16 bits per channel, or a transparent gray of fewer than 8; save it with 8")
    frames, plays = struct.unpack(">II", dict(chunks)[b"acTL"])
    colours = b"".join(_chunk(name, data) for name, data in chunks if name in (b"PLTE", b"tRNS"))
    found: list[tuple[bytes, list[bytes]]] = []
    for name, data in chunks:
        if name == b"fcTL":
            found.append((data, []))
        elif name in (b"IDAT", b"fdAT") and found:  # a still image for old readers may come before
            found[-1][1].append(data[4 if name == b"fdAT" else 0 :])
    if len(found) != frames:
        raise ValueError(f"it has {len(found)} frames, but its header says {frames}")

    def pieces() -> Iterator[_Piece]:
        for number, (control, data) in enumerate(found):
            _, w, h, left, top, over, under, disposal, blend = struct.unpack(">IIIIIHHBB", control)
            alone = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">II", w, h) + header[8:]) + colours
            pixels = _rgba(alone + _chunk(b"IDAT", b"".join(data)) + _chunk(b"IEND", b""), "PNG")
            disposal = _CLEAR if number == 0 and disposal == _RESTORE else disposal
            yield _Piece(left, top, pixels, disposal, blend == 1, 1000 * over / (under or 100))

    return plays, _compose(pieces(), struct.unpack_from(">II", header))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, name = 8, b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        (check,) = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(data[at + 4 : at + 8 + length]) != check:
            raise ValueError("the file is damaged")
        yield name, data[at + 8 : at + 8 + length]
        at += 12 + length


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _read_webp(path: str | os.PathLike[str]) -> Frames:
    """Read an animated WebP; libwebp composes the frames."""
    import numpy as np

    def frames() -> Iterator[tuple[NDArray[np.uint8], float]]:
        with Image.open(path, formats=["WEBP"]) as image:
            for number in range(image.n_frames):
                image.seek(number)
                yield np.asarray(image.convert("RGBA")), image.info["duration"]

    with Image.open(path, formats=["WEBP"]) as image:
        return image.info["loop"], frames()
