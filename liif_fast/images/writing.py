"""Write image files atomically, and strip by strip if the format allows it."""

import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from queue import Queue
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

from PIL import Image

from liif_fast.files import atomic_file
from liif_fast.images.colour import COLOUR, looks_like_srgb
from liif_fast.images.errors import ImageFileError, reason
from liif_fast.images.exif import resized
from liif_fast.images.formats import AVIF, GIF, JPEG, PNG, TIFF, WEBP, Format, check_content, check_output, mode_of
from liif_fast.images.tiff import PACKETS, extra_tags
from liif_fast.images.xmp import MAX_SEGMENT, jpeg_segments, resized_xmp

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("liif_fast.images")

_METADATA = {"icc_profile": "ICC profile", "exif": "EXIF data", "xmp": "XMP data", "iptc": "IPTC data"}
_SPACE = slice(16, 20)  # the colour space in an ICC profile (ICC.1, 7.2.6)
_SPACES = (b"GRAY", b"RGB ", b"CMYK")
TRANSPARENT = 255  # the entry of a GIF's palette that is not shown
_MAX_JPEG_EXIF = 65_000  # an APP1 segment has a 16-bit length
_MAX_DPI = 65_535  # likewise 16 bits in JPEG
_TIFF_STRIP = 1 << 18  # approximate bytes of a strip before compression
_CLASSIC_TIFF = 2**32 - 2**24  # a file with more bytes must be a BigTIFF


def write_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write an image atomically.

    Args:
        image: in one of `SUPPORTED_MODES`; warnings name the metadata that the format does not store.
        path: the file to write or replace; its extension sets the format.

    Raises:
        ImageFileError: as for `check_output` and `check_content`; or the disk is full or not writable.
    """
    import numpy as np

    kind = check_output(path)
    check_content(path, kind, image.mode, image.size)
    pixels = np.asarray(image)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    write_strips(path, [pixels], pixels.shape, 16 if image.mode == "I;16" else 8, image.info, kind)


def write_strips(
    path: str | os.PathLike[str],
    strips: "Iterable[NDArray]",
    shape: tuple[int, ...],
    depth: int,
    info: Mapping[Any, Any],
    kind: Format | None = None,
) -> None:
    """Write an image given as strips of rows atomically; for PNG, TIFF, PPM and PGM only a strip is in memory.

    Args:
        path: the file to write; its extension sets the format. A TIFF that might exceed 4 GiB becomes a BigTIFF.
        strips: arrays [rows, width, channels] of uint8 or uint16, from top to bottom, each with any number of rows. One
            is written while the next is made, so a strip must not change later. Exceptions of the iterator propagate,
            and `path` is unchanged.
        shape: (height, width, channels) of the image.
        depth: 8 or 16.
        info: like a PIL image's. If the format stores them, `icc_profile`, `exif` (with the new size, without its
            thumbnail), `xmp` (with the new size), `iptc` and `dpi` are kept; PNG also keeps the result of
            `read_colour`.
        kind: the format, if `check_output` and `check_content` have already accepted the path and the image.

    Raises:
        ImageFileError: as for `check_output` and `check_content`; or the disk is full or not writable.
        ValueError: the strips have a wrong shape or dtype, or too few or too many rows.
    """
    height, width, channels = shape
    if kind is None:
        kind = check_output(path)
        check_content(path, kind, mode_of(channels, depth), (width, height))
    metadata = kept(path, kind, info, shape)
    failures: list[BaseException] = []
    source = _checked(strips, (height, width, channels), depth, failures)
    try:
        with atomic_file(path) as file:
            if kind.streams:
                _in_thread(lambda made: _write(kind, file, made, (height, width, channels), depth, metadata), source)
            else:
                image = _collect(source, (height, width, channels))
                if kind.name == GIF.name and channels > 1:  # gray alone fits into a palette
                    logger.warning("%s: its colours are reduced to the 256 of a GIF, and alpha to 1 bit", path)
                    metadata |= {"transparency": TRANSPARENT} if channels in (2, 4) else {}
                    image = palette_image(image)
                elif kind.name == JPEG.name:
                    metadata["extra"] = jpeg_segments(metadata.pop("xmp", None), metadata.pop("iptc", None))
                image.save(file, format=kind.name, **kind.options, **metadata)
    except (OSError, ValueError, MemoryError) as error:
        if failures or isinstance(error, BrokenPipeError):  # making a strip failed, or the reader of stdout has gone
            raise
        raise ImageFileError(f"{path}: cannot be written: {reason(error)}") from error


def _in_thread(write: "Callable[[Iterator[NDArray]], None]", strips: "Iterable[NDArray]") -> None:
    """Run `write` in a thread, so that one strip is compressed while the next is made; propagate the errors of both."""
    waiting: Queue[NDArray | None] = Queue(maxsize=1)
    failure: list[BaseException] = []

    def handed_over() -> "Iterator[NDArray]":
        while (strip := waiting.get()) is not None:
            yield strip

    def work() -> None:
        arriving = handed_over()
        try:
            write(arriving)
        except BaseException as error:
            failure.append(error)
        for _ in arriving:  # drain the queue after a failure, so that `put` below does not block
            pass

    thread = Thread(target=work, name="liif_fast-write", daemon=True)  # a second Ctrl-C does not wait for a daemon
    thread.start()
    try:
        for strip in strips:
            waiting.put(strip)
            if failure:
                break
    finally:
        waiting.put(None)
        thread.join()
    if failure:
        raise failure[0]


def _write(
    kind: Format,
    file: IO[bytes],
    strips: "Iterable[NDArray]",
    shape: tuple[int, int, int],
    depth: int,
    metadata: dict[str, Any],
) -> None:
    if kind == PNG:
        from liif_fast.images.png import write_png

        write_png(file, strips, shape, depth, metadata)
    elif kind == TIFF:
        _write_tiff(file, strips, shape, depth, metadata)
    else:
        _write_ppm(file, strips, shape, depth)


def _checked(
    strips: "Iterable[NDArray]", shape: tuple[int, int, int], depth: int, failures: list[BaseException]
) -> "Iterator[NDArray]":
    """Yield the strips after checks; record the errors of making them, but not those of writing, in `failures`."""
    height, width, channels = shape
    rows = 0
    try:
        for strip in strips:
            if strip.shape[1:] != (width, channels) or strip.dtype.newbyteorder("=") != f"uint{depth}":
                expected = f"[rows, {width}, {channels}] of uint{depth}"
                raise ValueError(f"expected strips {expected}, got {list(strip.shape)} of {strip.dtype}")
            rows += len(strip)
            if rows > height:
                break
            if len(strip):
                yield strip
        if rows != height:
            raise ValueError(f"expected {height} rows in all, got {rows}{' or more' if rows > height else ''}")
    except GeneratorExit:  # raised when the writer fails
        raise
    except BaseException as error:
        failures.append(error)
        raise


def kept(path: str | os.PathLike[str], kind: Format, info: Mapping[Any, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Select the metadata that this format stores; warn about visible losses."""
    metadata = {key: info[key] for key in kind.metadata if key != "dpi" and info.get(key)}
    if "dpi" in kind.metadata and (dpi := _resolution(info.get("dpi"))):
        metadata["dpi"] = dpi
    if "icc_profile" in metadata and "icc_profile" not in colours(info, kind, shape[2]):
        spaces = metadata.pop("icc_profile")[_SPACE], _stored_space(kind, shape[2])
        space, stored = (each.decode().strip() for each in spaces)
        logger.warning("%s: the ICC profile describes %s, but the file holds %s; profile dropped", path, space, stored)
    for key, what in _METADATA.items():
        if info.get(key) and key not in kind.metadata:
            logger.warning("%s: the %s is lost in %s", path, what, kind.name)
    colour = info.get(COLOUR, {})
    if COLOUR not in kind.metadata and not looks_like_srgb(colour, info.get("icc_profile")):
        names = ", ".join(name.decode() for name in colour)
        logger.warning("%s: the description of the colours (%s) is lost in %s", path, names, kind.name)
    if "exif" in metadata:
        metadata["exif"] = resized(metadata["exif"], (shape[1], shape[0]))
        if metadata["exif"] is None:
            logger.warning("%s: the EXIF data is damaged and is dropped", path)
            del metadata["exif"]
        elif kind.name == JPEG.name and len(metadata["exif"]) > _MAX_JPEG_EXIF:
            logger.warning("%s: the EXIF data is too long for JPEG and is dropped", path)
            del metadata["exif"]
        elif kind == TIFF and extra_tags(metadata["exif"])[1]:
            logger.warning("%s: TIFF keeps the EXIF data's names, dates and rights; exposure and place are lost", path)
    if "xmp" in metadata:
        metadata["xmp"] = resized_xmp(metadata["xmp"], (shape[1], shape[0]))
        if metadata["xmp"] is None:
            logger.warning("%s: the XMP data describes other parts of the input, or is not UTF-8, and is dropped", path)
            del metadata["xmp"]
    for key in ("xmp", "iptc"):
        if kind.name == JPEG.name and len(metadata.get(key, b"")) > MAX_SEGMENT:
            logger.warning("%s: the %s is too long for JPEG and is dropped", path, _METADATA[key])
            del metadata[key]
    return metadata


def colours(info: Mapping[Any, Any], kind: Format, channels: int) -> dict[str, Any]:
    """Select the colour metadata that this format can store for this many channels."""
    found = {key: info[key] for key in ("icc_profile", COLOUR) if key in kind.metadata and info.get(key)}
    space = found.get("icc_profile", b"")[_SPACE]
    if space in _SPACES and space != _stored_space(kind, channels):
        del found["icc_profile"]
    return found


def changes_colours(info: Mapping[Any, Any], kind: Format, channels: int) -> bool:
    """Return whether an image looks different in a format because it cannot hold the description of the colours."""
    found, profile = colours(info, kind, channels), info.get("icc_profile")
    if profile and "icc_profile" not in found:
        return True
    return COLOUR not in found and not looks_like_srgb(info.get(COLOUR, {}), profile)


def _stored_space(kind: Format, channels: int) -> bytes:
    return b"RGB " if channels > 2 or kind.name in (WEBP.name, AVIF.name) else b"GRAY"  # both store gray as RGB


def _resolution(dpi: Any) -> tuple[float, float] | None:
    """Return a resolution as two numbers if every format can hold it, else None."""
    if isinstance(dpi, str | bytes):  # two characters would pass as two numbers
        return None
    try:
        across, down = map(float, dpi)
    except (TypeError, ValueError, ArithmeticError):
        return None
    # The comparison also rejects NaN, and 1, which Pillow uses for an unknown resolution.
    return (across, down) if all(1 < each <= _MAX_DPI for each in (across, down)) else None


def _write_tiff(
    file: IO[bytes], strips: "Iterable[NDArray]", shape: tuple[int, int, int], depth: int, metadata: dict[str, Any]
) -> None:
    """Write deflated horizontal differences, which every reader of TIFF 6 with Adobe's supplements supports."""
    import numpy as np
    import tifffile

    height, width, channels = shape
    row = width * channels * depth // 8
    rows_per_strip = max(1, min(height, _TIFF_STRIP // row))

    def packed() -> Iterator[bytes]:
        for rows in _regroup(strips, rows_per_strip):
            differences = rows.astype(f"<u{depth // 8}")
            differences[:, 1:] -= rows[:, :-1]
            yield zlib.compress(differences.tobytes())

    profile, tags = metadata.get("icc_profile"), extra_tags(metadata.get("exif", b""))[0]
    tags += [(PACKETS[key], 1, len(metadata[key]), metadata[key], True) for key in PACKETS if key in metadata]
    big = row * height + len(profile or b"") + sum(len(tag[3]) for tag in tags) > _CLASSIC_TIFF
    with tifffile.TiffWriter(file, bigtiff=big, byteorder="<") as tiff:
        tiff.write(
            packed(),
            shape=shape if channels > 1 else shape[:2],
            dtype=np.dtype(f"uint{depth}"),
            photometric="rgb" if channels > 2 else "minisblack",
            planarconfig="contig" if channels > 1 else None,
            extrasamples=["unassalpha"] if channels in (2, 4) else None,
            rowsperstrip=rows_per_strip,
            compression="zlib",
            predictor=2,
            iccprofile=profile,
            resolution=metadata.get("dpi"),
            resolutionunit="inch" if "dpi" in metadata else None,
            metadata=None,
            software=False,
            extratags=tags,
        )


def _regroup(strips: "Iterable[NDArray]", count: int) -> "Iterator[NDArray]":
    """Yield the same rows in arrays of `count` rows; the last may be shorter."""
    import numpy as np

    held: list[NDArray] = []
    rows = 0
    for strip in strips:
        while len(strip):
            part, strip = strip[: count - rows], strip[count - rows :]
            held.append(part)
            rows += len(part)
            if rows == count:
                yield np.concatenate(held)
                held, rows = [], 0
    if rows:
        yield np.concatenate(held)


def _write_ppm(file: IO[bytes], strips: "Iterable[NDArray]", shape: tuple[int, int, int], depth: int) -> None:
    height, width, channels = shape
    file.write(b"P%d\n%d %d\n%d\n" % (5 if channels == 1 else 6, width, height, 2**depth - 1))
    for strip in strips:
        file.write(strip.astype(f">u{depth // 8}").tobytes())


def _collect(strips: "Iterable[NDArray]", shape: tuple[int, int, int]) -> Image.Image:
    """Collect an image of 8 bits per channel directly in Pillow's memory."""
    height, width, channels = shape
    image = Image.new(mode_of(channels, 8), (width, height))
    top = 0
    for strip in strips:
        image.paste(Image.fromarray(strip[..., 0] if channels == 1 else strip), (0, top))
        top += len(strip)
    return image


def palette_image(image: Image.Image) -> Image.Image:
    """Reduce an image to a GIF's 256 colours; pixels with alpha below half get the entry `TRANSPARENT`."""
    import numpy as np

    clear = np.asarray(image.getchannel("A")) < 128 if image.mode in ("LA", "RGBA") else None
    image = image.convert("RGB")
    palette = image.quantize(256 if clear is None else 255, Image.Quantize.MEDIANCUT)
    image = image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    if clear is not None:
        image.paste(TRANSPARENT, mask=Image.fromarray(clear))
    return image
