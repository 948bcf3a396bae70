"""Compare every kind of PNG and TIFF with a known picture; test libvips's traps and decoding in forked children."""

import itertools
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from liif_fast.images import ImageFileError, open_picture, read_image, read_rgb, vips

HEIGHT, WIDTH = 21, 30


def samples(bits: int, channels: int) -> NDArray:
    """Return random values of a number of bits, [H, W, C]."""
    return np.random.default_rng(bits * 8 + channels).integers(0, 2**bits, (HEIGHT, WIDTH, channels))


def spread(values: NDArray, bits: int) -> NDArray:
    """Return the reader's values; those below 8 bits are scaled so that white stays white."""
    if bits > 8:
        return values.astype(np.uint16)
    return (values * 255 // (2**bits - 1)).astype(np.uint8)


def packed(values: NDArray, bits: int) -> bytes:
    """Return rows in PNG's layout: big-endian, each row from a new byte, with filter 0 in front."""
    rows = values.reshape(len(values), -1)
    if bits == 16:
        data = rows.astype(">u2").view(np.uint8).reshape(len(rows), -1)
    else:
        data = np.packbits((rows[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(len(rows), -1), 1)
    return b"".join(b"\0" + row.tobytes() for row in data)


PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def make_png(values: NDArray, bits: int, colour: int, interlaced: bool, *extra: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of any colour type (ISO/IEC 15948)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    parts = [values[y::dy, x::dx] for y, x, dy, dx in PASSES] if interlaced else [values]
    raw = b"".join(packed(part, bits) for part in parts if part.size)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, interlaced)
    body = b"".join(chunk(*each) for each in extra)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PNGS = [
    (colour, bits)
    for colour, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16)))
    for bits in depths
]


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "bits"), PNGS)
def test_every_png(tmp_path: Path, colour: int, bits: int, interlaced: bool, transparent: bool) -> None:
    values = samples(bits, CHANNELS[colour])
    extra, expected = [], spread(values, bits)
    if colour == 3:
        palette = np.random.default_rng(1).integers(0, 256, (2**bits, 4), np.uint8)
        extra, expected = [(b"PLTE", palette[:, :3].tobytes())], palette[values[..., 0], :3]
        if transparent:
            extra.append((b"tRNS", palette[:, 3].tobytes()))
            expected = palette[values[..., 0]]
    elif transparent and colour in (0, 2):
        key = values[2, 3]
        extra = [(b"tRNS", struct.pack(f">{len(key)}H", *key))]
        top = 65535 if bits == 16 else 255
        alpha = np.where((values == key).all(-1, keepdims=True), 0, top).astype(expected.dtype)
        expected = np.concatenate([expected, alpha], -1)
    path = tmp_path / "a.png"
    path.write_bytes(make_png(values, bits, colour, interlaced, *extra))
    read = read_image(path)
    assert read.pixels.dtype == expected.dtype
    assert np.array_equal(read.pixels, expected)


# White-is-zero has no alpha here, because TIFF 6 does not define whether alpha is inverted with it.
TIFFS = [
    (photometric, bits, extra, planes, layout)
    for photometric, bits, extra, planes, layout in itertools.product(
        ("minisblack", "miniswhite", "rgb"),
        (8, 16),
        (None, "unspecified", "unassalpha"),
        ("contig", "separate"),
        (("<", None, None), (">", "zlib", None), ("<", "zlib", (16, 16))),
    )
    if (photometric == "rgb" or extra or planes == "contig") and not (photometric == "miniswhite" and extra)
]


@pytest.mark.parametrize(("photometric", "bits", "extra", "planes", "layout"), TIFFS)
def test_every_tiff(
    tmp_path: Path,
    photometric: str,
    bits: int,
    extra: str | None,
    planes: str,
    layout: tuple[str, str | None, tuple[int, int] | None],
) -> None:
    order, compression, tile = layout
    colours = 3 if photometric == "rgb" else 1
    values = samples(bits, colours + (extra is not None)).astype(f"uint{bits}")
    stored = np.moveaxis(values, -1, 0) if planes == "separate" else values
    tifffile.imwrite(
        tmp_path / "a.tif", stored[..., 0] if values.shape[2] == 1 else stored, photometric=photometric,
        planarconfig=planes if values.shape[2] > 1 else None, byteorder=order, compression=compression, tile=tile,
        extrasamples=[extra] if extra else None, metadata=None,
    )  # fmt: skip
    expected = values if extra == "unassalpha" else values[..., :colours]
    if photometric == "miniswhite":
        expected = np.iinfo(values.dtype).max - expected
    pixels = read_image(tmp_path / "a.tif").pixels
    assert pixels.dtype == values.dtype
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_bigtiff_of_either_byte_order(tmp_path: Path, order: str) -> None:
    values = samples(16, 3).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", bigtiff=True, byteorder=order, metadata=None)
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels, values)


def test_the_pages_of_a_tiff_in_planes_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = samples(8, 3).astype(np.uint8)
    planes = np.ascontiguousarray(np.moveaxis(values, -1, 0))
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for _ in range(3):
            tiff.write(planes, photometric="rgb", planarconfig="separate", tile=(16, 16), metadata=None)
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels, values)
    assert "only the first of 3 frames is used" in caplog.text


@pytest.mark.parametrize("photometric", [2, 3])
def test_a_tiff_without_all_of_its_colours_is_refused(tmp_path: Path, photometric: int) -> None:
    """RGB with one sample, and a palette without colours, are refused."""
    path, entry = tmp_path / "a.tif", struct.pack("<HHI", 262, 3, 1)
    tifffile.imwrite(path, samples(8, 1)[..., 0].astype(np.uint8), photometric="minisblack", metadata=None)
    old = entry + struct.pack("<H", 1)
    path.write_bytes(path.read_bytes().replace(old, entry + struct.pack("<H", photometric)))
    with pytest.raises(ImageFileError, match=r"a\.tif: cannot be read"):
        read_image(path)


def test_what_is_lost_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A notice is logged once, however many windows are read."""
    image = Image.fromarray(samples(8, 3).astype(np.uint8))
    image.save(tmp_path / "a.tif", save_all=True, append_images=[image])
    picture = open_picture(tmp_path / "a.tif")
    for top in range(3):
        picture.window((top, 0, 2, 2))
    assert caplog.text.count("only the first of 2 frames is used") == 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colours", [1, 3])
def test_associated_alpha_becomes_alpha(tmp_path: Path, bits: int, colours: int) -> None:
    top = 2**bits - 1
    values = samples(bits, colours + 1).astype(f"uint{bits}")
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric="rgb" if colours == 3 else "minisblack", planarconfig="contig",
        extrasamples=["assocalpha"], metadata=None,
    )  # fmt: skip
    pixels = read_image(tmp_path / "a.tif").pixels
    alpha = values[..., -1:].astype(float)
    straight = np.minimum(values[..., :-1].astype(float) * top / np.maximum(alpha, 1), top)
    assert np.array_equal(pixels[..., -1:], values[..., -1:])
    seen = np.broadcast_to(alpha > 0, straight.shape)
    assert np.abs(pixels[..., :-1] - straight)[seen].max() <= 1


def test_of_two_alphas_the_associated_one_counts(tmp_path: Path) -> None:
    values = samples(8, 5).astype(np.uint8)
    kinds = ["unassalpha", "assocalpha"]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=kinds, metadata=None)
    tifffile.imwrite(
        tmp_path / "b.tif", values[..., [0, 1, 2, 4]], photometric="rgb", extrasamples=kinds[1:], metadata=None
    )
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels, read_image(tmp_path / "b.tif").pixels)


def test_tiffs_that_are_refused(tmp_path: Path) -> None:
    path, values = tmp_path / "a.tif", samples(8, 1)[..., 0]
    kinds = {
        "8-bit signed": values.astype(np.int8),
        "16-bit signed": values.astype(np.int16),
        "32 bits": values.astype(np.uint32),
        "32-bit signed": values.astype(np.int32),
        "32-bit floating": values.astype(np.float32),
        "64-bit complex": values.astype(np.complex64),
    }
    for message, array in kinds.items():
        tifffile.imwrite(path, array, photometric="minisblack", metadata=None)
        with pytest.raises(ImageFileError, match=message):
            read_image(path)
    for photometric, message in ((32803, "raw camera file"), (8, "CIELAB"), (4, "a mask")):
        tifffile.imwrite(path, samples(8, 3 if photometric == 8 else 1).astype(np.uint8).squeeze(), metadata=None)
        data = path.read_bytes()
        old = struct.pack("<HHI", 262, 3, 1)
        at = data.index(old) + len(old)
        path.write_bytes(data[:at] + struct.pack("<H", photometric) + data[at + 2 :])
        with pytest.raises(ImageFileError, match=message):
            read_image(path)
    tifffile.imwrite(path, values.astype(np.uint8), metadata=None)
    data, old = path.read_bytes(), struct.pack("<HHIH", 258, 3, 1, 8)
    for bits in (10, 12, 14):
        path.write_bytes(data.replace(old, struct.pack("<HHIH", 258, 3, 1, bits)))
        with pytest.raises(ImageFileError, match=f"{bits} bits per sample"):
            read_image(path)


JPEGS = [{"quality": q, "subsampling": s, "progressive": p} for q, s, p in itertools.product((60, 95), (0, 2), (0, 1))]


@pytest.mark.parametrize(
    ("extension", "options"),
    [
        *(("jpg", options) for options in JPEGS),
        *(("webp", {"lossless": lossless}) for lossless in (False, True)),
        *(("tif", {"compression": name}) for name in (None, "tiff_lzw", "packbits", "jpeg", "tiff_adobe_deflate")),
        *(("avif", {"subsampling": name}) for name in ("4:4:4", "4:2:0")),
        ("png", {}),
        ("bmp", {}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_8_bits_are_pillows(tmp_path: Path, extension: str, options: dict[str, object], channels: int) -> None:
    """Photographs are read bit for bit as Pillow reads them, so that training does not change."""
    path = tmp_path / f"a.{extension}"
    Image.fromarray(samples(8, channels).astype(np.uint8).squeeze()).save(path, **options)
    with Image.open(path) as image:
        assert np.array_equal(read_rgb(path), np.asarray(image.convert("RGB")))
        expected = np.asarray(image)
    assert np.array_equal(read_image(path).pixels, expected.reshape(*expected.shape[:2], -1))


def test_16_bits_are_rounded_for_training(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 385, 386, 65406, 65407, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_rgb(tmp_path / "a.png")[0].tolist() == [[v] * 3 for v in (0, 0, 1, 1, 2, 254, 255, 255)]


@pytest.mark.parametrize("bits", [10, 12])
def test_white_of_a_deep_avif_is_white(tmp_path: Path, bits: int) -> None:
    pyvips = pytest.importorskip("pyvips")
    if not pyvips.type_find("VipsOperation", "heifsave"):
        pytest.skip("this libvips writes no AVIF")
    values = np.zeros((32, 32, 3), np.uint16)
    values[:16] = 65535
    image = pyvips.Image.new_from_array(values).copy(interpretation="rgb16")
    image.heifsave(str(tmp_path / "a.avif"), compression="av1", bitdepth=bits, lossless=True)
    pixels = read_image(tmp_path / "a.avif").pixels
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels, values)


def test_cmyk_goes_through_its_profile(tmp_path: Path) -> None:
    """CMYK without a profile is converted as Pillow does."""
    cmyk = Image.fromarray(samples(8, 4).astype(np.uint8), "CMYK")
    cmyk.save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels, np.asarray(cmyk.convert("RGB")))
    pyvips = pytest.importorskip("pyvips")
    profile = pyvips.Operation.call("profile_load", "cmyk")
    cmyk.save(tmp_path / "b.tif", icc_profile=bytes(profile))
    read = read_image(tmp_path / "b.tif")
    assert not np.array_equal(read.pixels, np.asarray(cmyk.convert("RGB")))
    assert "icc_profile" not in read.info


@pytest.mark.parametrize("profile", ["damaged", "of RGB"])
@pytest.mark.parametrize("extension", ["jpg", "tif"])
def test_cmyk_with_a_profile_that_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, extension: str, profile: str
) -> None:
    """A damaged profile counts as none, although libvips would use its own."""
    cmyk, data = Image.fromarray(samples(8, 4).astype(np.uint8), "CMYK"), b"\0" * 200
    if profile == "of RGB":
        data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cmyk.save(tmp_path / f"a.{extension}", icc_profile=data)
    with Image.open(tmp_path / f"a.{extension}") as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(read_image(tmp_path / f"a.{extension}").pixels, expected)
    assert "CMYK, converted to RGB without a colour profile" in caplog.text


def test_other_inks_than_cmyk_are_refused(tmp_path: Path) -> None:
    """Four channels could be mistaken for RGB and alpha."""
    inks = [(332, 3, 1, 2, True)]
    tifffile.imwrite(tmp_path / "a.tif", samples(8, 4).astype(np.uint8), photometric="separated", extratags=inks)
    with pytest.raises(ImageFileError, match="inks other than CMYK"):
        read_image(tmp_path / "a.tif")


def test_a_palette_of_grays_is_read(tmp_path: Path) -> None:
    """A gray palette is one channel in libvips."""
    values, grays = samples(8, 1)[..., 0], np.random.default_rng(0).permutation(256)
    colours = np.stack([grays * 257] * 3).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values.astype(np.uint8), photometric="palette", colormap=colours)
    assert np.array_equal(read_rgb(tmp_path / "a.tif"), np.repeat(grays[values][..., None], 3, 2))


def without_vips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vips, "library", lambda: None)


def test_without_libvips_8_bits_are_read_and_deeper_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = samples(8, 3).astype(np.uint8)
    for name in ("a.png", "a.tif", "a.bmp"):
        Image.fromarray(values).save(tmp_path / name)
    tifffile.imwrite(tmp_path / "deep.tif", samples(16, 3).astype(np.uint16), photometric="rgb", metadata=None)
    (tmp_path / "deep.png").write_bytes(make_png(samples(16, 1), 16, 0, False))
    (tmp_path / "key.png").write_bytes(make_png(samples(4, 1), 4, 0, False, (b"tRNS", b"\0\7")))
    without_vips(monkeypatch)
    for name in ("a.png", "a.tif", "a.bmp"):
        assert np.array_equal(read_image(tmp_path / name).pixels, values)
    for name in ("deep.tif", "deep.png", "key.png"):
        with pytest.raises(ImageFileError, match=r"only libvips reads correctly: pip install 'pyvips\[binary\]'"):
            read_image(tmp_path / name)


# In a process of its own, so that no other test has started threads.
FORKED = """
import os, sys, signal
from liif_fast.images import read_image
paths = sys.argv[1:]
before = [read_image(path).pixels.sum() for path in paths]
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit([read_image(path).pixels.sum() for path in paths] != before)
sys.exit(os.waitpid(child, 0)[1] != 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_decodes_after_its_parent_has(tmp_path: Path) -> None:
    """A forked child can read, because no libvips threads were started; it would wait for those forever."""
    values, paths = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8), []
    for name in ("a.png", "a.jpg", "a.webp", "a.tif", "a.avif", "a.gif"):
        Image.fromarray(values).save(tmp_path / name)
        paths.append(tmp_path / name)
    Image.fromarray(values).save(tmp_path / "p.jpg", progressive=True)
    tifffile.imwrite(tmp_path / "t.tif", values.astype(np.uint16), tile=(64, 64), photometric="rgb", compression="zlib")
    (tmp_path / "i.png").write_bytes(make_png(values, 8, 2, True))
    done = subprocess.run(
        [sys.executable, "-c", FORKED, *paths, *map(tmp_path.joinpath, ("p.jpg", "t.tif", "i.png"))], timeout=120
    )
    assert done.returncode == 0


def outside() -> list[Path]:
    folder = os.environ.get("LIIF_FAST_TEST_IMAGES")
    return sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder else []


@pytest.mark.skipif(not outside(), reason="LIIF_FAST_TEST_IMAGES names no folder of images")
def test_outside_files() -> None:
    """Each file is read, or refused in one line; of PngSuite's files only the damaged ones begin with x."""
    for path in outside():
        reason = None
        try:
            read_image(path)
        except ImageFileError as error:
            reason = str(error)
        assert reason is None or "\n" not in reason
        if len(path.name) == 12 and path.suffix == ".png":
            assert (reason is not None) == path.name.startswith("x"), (path, reason)
