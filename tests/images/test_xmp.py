"""XMP and IPTC data are kept where the format stores them and adapted to the output; elsewhere a notice names them."""

import io
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from liif_fast import upscaling
from liif_fast.images import read_image, vips, write_strips
from liif_fast.images.xmp import iptc_of, jpeg_segments, resized_xmp

SHAPE = (6, 8, 3)
PIXELS = np.zeros(SHAPE, np.uint8)
IPTC = b"\x1c\x02\x05\x00\x05title\x1c\x02\x50\x00\x04name"  # IIM 4: object name, by-line


def packet(orientation: int, width: int, height: int, more: str = "") -> bytes:
    """Return XMP with both forms that a property may have."""
    text = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description dc:title="7" tiff:Orientation="{}" '
        "exif:PixelXDimension='{}' {}><exif:PixelYDimension>{}</exif:PixelYDimension></rdf:Description></rdf:RDF>"
        "</x:xmpmeta>"
    )
    return text.format(orientation, width, more, height).encode()


def save(path: Path, xmp: bytes, iptc: bytes) -> None:
    """Write a file with XMP and IPTC data, as far as its format stores them, without our code."""
    image = Image.fromarray(PIXELS)
    match path.suffix:
        case ".jpg":
            file = io.BytesIO()
            image.save(file, "JPEG")
            data = b"http://ns.adobe.com/xap/1.0/\0" + xmp
            name = b"\x03abc"  # resources may have names; another one stands before
            blocks = b"8BIM" + struct.pack(">H", 0x0426) + b"\0\0" + struct.pack(">I", 3) + b"abc\0"
            blocks += b"8BIM" + struct.pack(">H", 0x0404) + name + struct.pack(">I", len(iptc)) + iptc
            segments = b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data
            segments += b"\xff\xed" + struct.pack(">H", 16 + len(blocks)) + b"Photoshop 3.0\0" + blocks
            path.write_bytes(file.getvalue()[:20] + segments + file.getvalue()[20:])
        case ".tif":
            tags = [(700, 1, len(xmp), xmp, True), (33723, 7, len(iptc), iptc, True)]
            tifffile.imwrite(path, PIXELS, photometric="rgb", extratags=tags)
        case ".png":
            chunks = PngImagePlugin.PngInfo()
            chunks.add_itxt("XML:com.adobe.xmp", xmp.decode())
            image.save(path, pnginfo=chunks)
        case _:
            image.save(path, xmp=xmp)


def read_back(path: Path) -> tuple[bytes | None, bytes | None]:
    """Return XMP and IPTC data as other readers find them."""
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            tags = file.pages[0].tags
            return tags.valueof(700), tags.valueof(33723)
    with Image.open(path) as image:
        image.load()
        return image.info.get("xmp"), image.info.get("photoshop", {}).get(0x0404)


@pytest.mark.parametrize("without", ["", "without libvips"])
@pytest.mark.parametrize("output", ["jpg", "tif", "png", "webp", "avif"])
@pytest.mark.parametrize("source", ["jpg", "tif", "png", "webp", "avif"])
def test_kept(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    output: str,
    without: str,
) -> None:
    """Convert from every format to every format; if the output has no IPTC data, a notice says so."""
    if without:
        monkeypatch.setattr(vips, "library", lambda: None)
    save(tmp_path / f"in.{source}", packet(1, 8, 6), IPTC)  # Pillow turns an image by its XMP data
    picture = read_image(tmp_path / f"in.{source}")
    target = tmp_path / f"out.{output}"
    write_strips(target, [PIXELS], SHAPE, 8, picture.info)
    xmp, iptc = read_back(target)
    assert xmp == packet(1, 8, 6)
    had, has = source in ("jpg", "tif"), output in ("jpg", "tif")
    assert iptc == (IPTC if had and has else None)
    assert [record.message for record in caplog.records] == (
        [f"{target}: the IPTC data is lost in {output.upper()}"] if had and not has else []
    )


def test_sizes_and_orientation_are_those_of_the_output(tmp_path: Path, model: object) -> None:
    save(tmp_path / "in.jpg", packet(3, 8, 6), IPTC)
    upscaling.upscale_file(tmp_path / "in.jpg", tmp_path / "out.png", model, scale=2.5)
    assert read_back(tmp_path / "out.png")[0] == packet(1, 20, 15)
    with Image.open(tmp_path / "in.jpg") as image:
        made = upscaling.upscale(image, model, scale=2.5)
    assert resized_xmp(made.info["xmp"], (20, 15)) == made.info["xmp"]
    assert b"PixelXDimension='20'" in made.info["xmp"]
    assert b'dc:title="7"' in made.info["xmp"]


@pytest.mark.parametrize(
    "more",
    [
        'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" GCamera:MotionPhoto="1"',
        'xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"',
        'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"',
        'xmpNote:HasExtendedXMP="0123"',
    ],
)
def test_what_describes_other_parts_of_the_file_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, more: str
) -> None:
    target = tmp_path / "out.jpg"
    write_strips(target, [PIXELS], SHAPE, 8, {"xmp": packet(1, 8, 6, more)})
    assert read_back(target)[0] is None
    assert caplog.messages == [
        f"{target}: the XMP data describes other parts of the input, or is not UTF-8, and is dropped"
    ]


def test_what_is_lost_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = {"xmp": packet(1, 8, 6), "iptc": IPTC}
    write_strips(tmp_path / "out.bmp", [PIXELS], SHAPE, 8, info)
    assert [text.partition(": ")[2] for text in caplog.messages] == [
        "the XMP data is lost in BMP",
        "the IPTC data is lost in BMP",
    ]
    caplog.clear()
    long = {"xmp": packet(1, 8, 6) + b" " * 65_000, "iptc": IPTC * 4000}
    write_strips(tmp_path / "out.jpg", [PIXELS], SHAPE, 8, long)
    assert read_back(tmp_path / "out.jpg") == (None, None)
    assert [text.partition(": ")[2] for text in caplog.messages] == [
        "the XMP data is too long for JPEG and is dropped",
        "the IPTC data is too long for JPEG and is dropped",
    ]
    write_strips(tmp_path / "out.tif", [PIXELS], SHAPE, 8, long)
    assert read_back(tmp_path / "out.tif") == (long["xmp"], long["iptc"])


@pytest.mark.parametrize("cut", range(0, 60))
def test_damaged_resources_of_a_jpeg(cut: int) -> None:
    whole = jpeg_segments(None, IPTC)[4:]
    assert iptc_of(whole[: max(0, len(whole) - cut)]) == (IPTC if cut <= len(IPTC) % 2 else None)


def test_no_resources() -> None:
    for block in (None, b"", b"\x1c\x02", b"8BIM" * 20, b"Photoshop 3.0\0" + b"8BIM\x04\x05\0\0\xff\xff\xff\xff"):
        assert iptc_of(block) is None


def test_text_and_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert resized_xmp(packet(6, 1, 1).decode(), (8, 6)) == packet(1, 8, 6)
    assert resized_xmp(packet(6, 1, 1) + b"\0\0", (8, 6)) == packet(1, 8, 6)
    assert resized_xmp("<x/>".encode("utf-16"), (8, 6)) is None
    assert resized_xmp(b"\xff\xfe not XML", (8, 6)) == b"\xff\xfe not XML"
    assert not caplog.records


@pytest.fixture
def model():
    """Return a tiny model."""
    import torch

    from liif_fast.models import make

    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
    return make({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}).eval()


def test_notices_come_from_the_room_of_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_strips(tmp_path / "out.bmp", [PIXELS], SHAPE, 8, {"iptc": IPTC})
    assert caplog.record_tuples[0][:2] == ("liif_fast.images", logging.WARNING)
