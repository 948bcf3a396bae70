"""Read and write video as YUV4MPEG2 (y4m): uncompressed frames, which ffmpeg can pipe in and out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, NamedTuple

from PIL import Image

from liif_fast.files import STANDARD
from liif_fast.images.errors import ImageFileError, too_large

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"YUV4MPEG2 "
_LONGEST = 1024  # bytes of a header
_RED, _GREEN, _BLUE = 0.2126, 0.7152, 0.0722  # shares in luma (BT.709-6, 3.2)


class Y4m(NamedTuple):
    """Describe the format of a stream.

    Args:
        channels: 1 is gray, 3 is Y'CbCr. The file does not name its matrix, so BT.709 is assumed.
        depth: bits per sample, 8 to 16; above 8, a sample is stored in two bytes, the lower one first.
        full: whether samples use the full range; if not, 8-bit black is 16 and white 235.
        other: parameters that the output keeps: frame rate, pixel aspect, ...
    """

    width: int
    height: int
    channels: int
    depth: int
    full: bool
    other: tuple[str, ...]

    def header(self, size: tuple[int, int]) -> bytes:
        """Return the header of the same video for another size (width, height)."""
        return b"%sW%d H%d %s\n" % (MAGIC, *size, " ".join(self.other).encode("latin-1"))


def read_header(stream: IO[bytes]) -> Y4m:
    """Read the header of a stream behind its `MAGIC`.

    Raises:
        ImageFileError: it is damaged, or the video has subsampled chroma, alpha, or interlaced or too large frames.
    """
    line = stream.readline(_LONGEST).decode("latin-1")
    given = {part[0]: part[1:] for part in line.split() if part[0] != "X"}
    if not line.endswith("\n") or not all(re.fullmatch(r"[1-9]\d{0,6}", given.get(key, "")) for key in "WH"):
        raise ImageFileError(f"{STANDARD}: the header of the y4m video is damaged")
    width, height = int(given["W"]), int(given["H"])
    if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise too_large(STANDARD)
    kind = re.fullmatch(r"(444|mono)p?(9|1[0-6])?", given.get("C", "420jpeg"))
    if not kind:
        what = f"chroma {given.get('C', '420jpeg')}, expected 444 or mono; give ffmpeg -pix_fmt yuv444p"
        raise ImageFileError(f"{STANDARD}: is a y4m video with {what}")
    if given.get("I", "p") not in ("p", "?"):
        raise ImageFileError(f"{STANDARD}: is an interlaced y4m video; give ffmpeg -vf yadif")
    other = tuple(part for part in line.split() if part[0] not in "WH")
    channels, depth = 3 if kind[1] == "444" else 1, int(kind[2] or 8)
    return Y4m(width, height, channels, depth, "XCOLORRANGE=FULL" in other, other)


def read_frames(stream: IO[bytes], video: Y4m) -> Iterator[NDArray[np.uint16]]:
    """Yield the frames of a stream as gray or RGB [height, width, 1 or 3], 16 bits; values out of range are clipped.

    Raises:
        ImageFileError: the stream breaks off.
    """
    import numpy as np

    shape = (video.channels, video.height, video.width)
    dtype = np.dtype("u1" if video.depth == 8 else "<u2")
    size, number = int(np.prod(shape)) * dtype.itemsize, 0
    while line := stream.readline(_LONGEST):
        number += 1
        data = stream.read(size)
        if not re.match(rb"FRAME[ \n]", line) or len(data) != size:
            raise ImageFileError(f"{STANDARD}: the y4m video breaks off in frame {number}")
        yield _to_rgb(np.frombuffer(data, dtype).reshape(shape).astype(np.float32), video)


def to_frame(pixels: NDArray[np.uint16], video: Y4m) -> bytes:
    """Return a frame of 16-bit gray or RGB in the stream's encoding."""
    import numpy as np

    planes = pixels.astype(np.float32).transpose(2, 0, 1) / 65535
    if video.channels == 3:
        red, green, blue = planes
        luma = _RED * red + _GREEN * green + _BLUE * blue
        planes = np.stack([luma, (blue - luma) / (2 - 2 * _BLUE), (red - luma) / (2 - 2 * _RED)])
    scale, offset = _levels(video)
    samples = (planes * scale + offset).round().clip(0, 2**video.depth - 1)
    return b"FRAME\n" + samples.astype("u1" if video.depth == 8 else "<u2").tobytes()


def _to_rgb(samples: NDArray[np.float32], video: Y4m) -> NDArray[np.uint16]:
    import numpy as np

    scale, offset = _levels(video)
    planes = (samples - offset) / scale
    if video.channels == 3:
        luma, to_blue, to_red = planes
        red, blue = luma + (2 - 2 * _RED) * to_red, luma + (2 - 2 * _BLUE) * to_blue
        planes = np.stack([red, (luma - _RED * red - _BLUE * blue) / _GREEN, blue])
    return (planes.clip(0, 1) * 65535).round().astype(np.uint16).transpose(1, 2, 0)


def _levels(video: Y4m) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the range and the zero of each plane's samples, [channels, 1, 1] (BT.709-6, 3.4; full range: JFIF)."""
    import numpy as np

    step, top = 2 ** (video.depth - 8), 2**video.depth - 1
    luma, chroma, black = (top, top, 0) if video.full else (219 * step, 224 * step, 16 * step)
    middle = 128 * step
    scale, offset = (luma, chroma, chroma), (black, middle, middle)
    both = np.array((scale, offset), np.float32)[:, : video.channels, None, None]
    return both[0], both[1]
