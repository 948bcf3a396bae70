"""Parse the paths of IIIF Image API 3.0, with identifiers that name an enlarged image. No file is read here.

`NAME@WxH` and `NAME@xK` identify the photograph enlarged to W x H pixels and by the factor K. To IIIF they are images
of their own, so that regions of whole pixels can name any tile of them.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from liif_fast.window import Extent, Window

MAX_SCALE = 64  # of an output over the photograph
QUALITIES = ("default", "color", "gray", "bicubic", "nearest")
LONGEST_SIDE = {"jpg": 65_500, "webp": 16_383}  # pixels; what libjpeg and WebP can hold
FORMATS = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
LONGEST = 512  # characters of one part of a path; numbers below are cut shorter still
CONTEXT = "http://iiif.io/api/image/3/context.json"
PROFILE = "http://iiif.io/api/image/3/level2.json"

_INTEGER = r"[0-9]{1,9}"  # not \d, which also means digits of other scripts
_NUMBER = r"(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})"


class RequestError(ValueError):
    """The server refuses a request.

    Args:
        status: the HTTP status.
        reason: one line for the client.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Identifier(NamedTuple):
    """A photograph's name, and the size to which it is enlarged."""

    name: str
    size: tuple[int, int] | None = None  # (width, height)
    scale: float | None = None

    def enlarged(self, width: int, height: int) -> tuple[int, int]:
        """Return the enlarged (width, height) of a photograph of the given size.

        Raises:
            RequestError: it would be smaller than the photograph, or more than `MAX_SCALE` times as large.
        """
        if self.size is not None:
            wide, high = self.size
        else:
            scale = 1 if self.scale is None else self.scale
            wide, high = round(width * scale), round(height * scale)
        if not (width <= wide <= MAX_SCALE * width and height <= high <= MAX_SCALE * height):
            limit = f"from {width}x{height} to {MAX_SCALE} times that"
            raise RequestError(400, f"identifier must name a size {limit}, got {wide}x{high}")
        return wide, high


class ImageRequest(NamedTuple):
    """What to make of the photograph."""

    extent: Extent  # (top, left, height, width) of the photograph, in its pixels
    window: Window | None  # that part as a window of the enlarged image, if it is made at the scale of that
    full: tuple[int, int]  # (width, height) of the enlarged image
    size: tuple[int, int]  # (width, height) before the rotation
    rotation: int  # 0, 90, 180 or 270 degrees, clockwise, after the mirroring
    mirrored: bool
    quality: str
    format: str


def parse_identifier(text: str) -> Identifier:
    """Split the (decoded) identifier into the photograph's name and its enlargement."""
    if len(text) > LONGEST:
        raise RequestError(400, "identifier is too long")
    if match := re.fullmatch(rf"(.+)@({_INTEGER})x({_INTEGER})", text, re.DOTALL):
        return Identifier(match[1], size=(int(match[2]), int(match[3])))
    if match := re.fullmatch(rf"(.+)@x({_NUMBER})", text, re.DOTALL):
        return Identifier(match[1], scale=float(match[2]))
    return Identifier(text)


def parse_request(
    photograph: tuple[int, int],
    enlarged: tuple[int, int],
    parts: Sequence[str],
    max_area: int,
) -> ImageRequest:
    """Parse `region/size/rotation/quality.format` of IIIF Image API 3.0, section 4.

    Args:
        photograph: (width, height) of the photograph.
        enlarged: (width, height) of the image that is served of it.
        parts: the four decoded parts of the path.
        max_area: most pixels of an answer.

    Raises:
        RequestError: a part is malformed, empty, larger than is served, or not offered.
    """
    region, size, rotation, last = parts
    if max(map(len, parts)) > LONGEST:
        raise RequestError(400, "a part of the path is too long")
    left, top, width, height = _region(region, *enlarged)
    across, down = photograph[0] / enlarged[0], photograph[1] / enlarged[1]
    extent = (top * down, left * across, height * down, width * across)
    degrees, mirrored = _rotation(rotation)
    quality, _, kind = last.rpartition(".")
    if quality not in QUALITIES:
        raise RequestError(400, f"quality must be one of {', '.join(QUALITIES)}, got {quality!r}")
    if kind not in FORMATS:
        raise RequestError(400, f"format must be one of {', '.join(FORMATS)}, got {kind!r}")
    longest = LONGEST_SIDE.get(kind, math.inf)
    wide, high = _size(size, width, height, extent, max_area, longest)
    if max(wide, high) > longest:
        raise RequestError(400, f"{kind} holds at most {longest} pixels a side, got {wide}x{high}")
    window = None
    if (wide, high) == (width, height) and all(float(each).is_integer() for each in (left, top)):
        window = (int(top), int(left), high, wide)
    return ImageRequest(extent, window, enlarged, (wide, high), degrees, mirrored, quality, kind)


def _region(text: str, width: int, height: int) -> tuple[float, float, float, float]:
    """Return a region as (left, top, width, height), clipped to the image."""
    if text == "full":
        return 0, 0, width, height
    if text == "square":
        side = min(width, height)
        return (width - side) // 2, (height - side) // 2, side, side
    match = re.fullmatch(rf"(pct:)?({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER})", text)
    if not match or (not match[1] and "." in text):
        raise RequestError(400, f"region must be full, square, x,y,w,h or pct:x,y,w,h, got {text!r}")
    left, top, w, h = map(float, match.groups()[1:])
    if match[1]:
        left, top, w, h = left * width / 100, top * height / 100, w * width / 100, h * height / 100
    w, h = min(w, width - left), min(h, height - top)
    if w <= 0 or h <= 0:
        raise RequestError(400, f"region must meet the image of {width}x{height}, got {text!r}")
    return left, top, w, h


def _size(text: str, width: float, height: float, extent: Extent, max_area: int, longest: float) -> tuple[int, int]:
    """Return the (width, height) of the answer, given those of the region and of its part of the photograph.

    What names no exact size, `max` and `!w,h`, is the largest within the limits: an area, a side, and `MAX_SCALE`.
    """
    enlarging, form = text.startswith("^"), text.removeprefix("^")
    widest, highest = (MAX_SCALE * extent[3], MAX_SCALE * extent[2]) if enlarging else (width, height)
    widest, highest = min(widest, longest), min(highest, longest)
    if form == "max":
        wide, high = _confined(width, height, widest, highest, max_area)
    elif match := re.fullmatch(rf"pct:({_NUMBER})", form):
        wide, high = (round(side * float(match[1]) / 100) for side in (width, height))
    elif match := re.fullmatch(rf"(!?)({_INTEGER})?,({_INTEGER})?", form):
        given = [None if each is None else int(each) for each in match.groups()[1:]]
        if given == [None, None] or 0 in given or (match[1] and None in given):
            raise RequestError(400, f"size must name at least one side, got {text!r}")
        w, h = given
        if match[1]:
            sides = min(w, widest), min(h, highest)  # type: ignore[type-var]
            w, h = _confined(width, height, *sides, max_area)  # type: ignore[arg-type]
        wide = w if w is not None else max(1, round(width * h / height))  # type: ignore[operator]
        high = h if h is not None else max(1, round(height * wide / width))
    else:
        raise RequestError(
            400, f"size must be max, w,h with one side or both, !w,h or pct:n, each with ^, got {text!r}"
        )
    if wide < 1 or high < 1:
        raise RequestError(400, f"size must be at least 1x1, got {wide}x{high}")
    if not enlarging and (wide > max(1, math.ceil(width)) or high > max(1, math.ceil(height))):
        raise RequestError(400, f"size {text!r} enlarges the region of {width:g}x{height:g}, which needs ^ before it")
    if wide * high > max_area:
        raise RequestError(400, f"size must be at most {max_area} pixels, got {wide}x{high}")
    if wide > max(1, math.ceil(MAX_SCALE * extent[3])) or high > max(1, math.ceil(MAX_SCALE * extent[2])):
        raise RequestError(400, f"size must be at most {MAX_SCALE} times the photograph's, got {wide}x{high}")
    return wide, high


def _confined(width: float, height: float, widest: float, highest: float, max_area: int) -> tuple[int, int]:
    """Return the largest (width, height) of a region's shape in a box and an area."""
    factor = min(widest / width, highest / height, math.sqrt(max_area / (width * height)))
    wide, high = max(1, round(width * factor)), max(1, round(height * factor))
    if wide * high > max_area:  # rounded up, or one side is less than a pixel
        wide, high = max(1, math.floor(width * factor)), max(1, math.floor(height * factor))
        wide, high = min(wide, max_area // high or 1), min(high, max_area // wide or 1)
    return wide, high


def _rotation(text: str) -> tuple[int, bool]:
    match = re.fullmatch(rf"(!?)({_NUMBER})", text)
    if not match or float(match[2]) > 360:
        raise RequestError(400, f"rotation must be 0 to 360 degrees, after ! mirrored, got {text!r}")
    if float(match[2]) % 90:
        raise RequestError(501, f"rotation must be a multiple of 90 degrees, got {text!r}")
    return int(float(match[2])) % 360, bool(match[1])


def describe(address: str, width: int, height: int, max_area: int, tile: int = 256) -> dict[str, Any]:
    """Return the contents of an image's info.json (section 5).

    Args:
        address: its URI without `/info.json`.
        width, height: of the image.
        max_area: most pixels of an answer.
        tile: side of the tiles that a viewer should ask for.
    """
    levels = max(1, math.ceil(math.log2(max(width, height) / tile)) + 1) if max(width, height) > tile else 1
    return {
        "@context": CONTEXT,
        "id": address,
        "type": "ImageService3",
        "protocol": "http://iiif.io/api/image",
        "profile": "level2",
        "width": width,
        "height": height,
        "maxArea": max_area,
        "tiles": [{"width": tile, "height": tile, "scaleFactors": [2**level for level in range(levels)]}],
        "extraFormats": ["webp"],
        "extraQualities": [quality for quality in QUALITIES if quality != "default"],
        "extraFeatures": [
            "mirroring",
            "sizeUpscaling",
            "regionSquare",
            "regionByPct",
            "sizeByPct",
            "profileLinkHeader",
        ],
    }
