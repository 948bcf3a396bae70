"""A part of a file is read without the rest, or a notice says what prevents that."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from liif_fast.images import open_picture, read_image

from .test_decoding import make_png, samples


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "tif", "tiled.tif", "jpg"])
def test_a_window_is_that_part_of_the_whole(tmp_path: Path, extension: str, orientation: int) -> None:
    path, values = tmp_path / f"a.{extension}", samples(8, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if extension == "tiled.tif":
        turn = [(274, 3, 1, orientation, True)]
        tifffile.imwrite(path, values, photometric="rgb", tile=(16, 16), metadata=None, extratags=turn)
    else:
        Image.fromarray(values).save(path, exif=exif)
    whole = read_image(path).pixels
    for window in ((0, 0, 5, 7), (3, 2, 9, 11), (whole.shape[0] - 4, whole.shape[1] - 5, 4, 5)):
        top, left, height, width = window
        part = open_picture(path).window(window)
        assert np.array_equal(part, whole[top : top + height, left : left + width])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("p.jpg", "a progressive JPEG"),
        ("i.png", "an interlaced PNG"),
        ("a.bmp", "BMP"),
        ("a.webp", "WEBP"),
        ("planes.tif", "a TIFF in planes"),
    ],
)
def test_what_cannot_be_read_in_parts_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, what: str
) -> None:
    values = samples(8, 3).astype(np.uint8)
    if name == "p.jpg":
        Image.fromarray(values).save(tmp_path / name, progressive=True)
    elif name == "i.png":
        (tmp_path / name).write_bytes(make_png(values, 8, 2, True))
    elif name == "planes.tif":
        planes = np.ascontiguousarray(np.moveaxis(values, -1, 0))
        tifffile.imwrite(tmp_path / name, planes, photometric="rgb", planarconfig="separate", tile=(16, 16))
    else:
        Image.fromarray(values).save(tmp_path / name)
    whole = read_image(tmp_path / name).pixels
    assert caplog.text == ""
    assert np.array_equal(open_picture(tmp_path / name).window((3, 4, 5, 6)), whole[3:8, 4:10])
    assert f"{what} is decoded as a whole" in caplog.text


# In a process of its own, which measures by how much a window raises its peak.
LARGE = """
import resource, sys
import numpy as np, tifffile
from liif_fast.images import open_picture
row = np.random.default_rng(0).integers(0, 256, (64, 8192, 3), np.uint8)
rows, path = 8192, sys.argv[1]
tile = (64, 64) if "tiled" in path else None
parts = (np.zeros((64, 64, 3), np.uint8) for _ in range(128 * 128)) if tile else (row for _ in range(0, rows, 64))
tifffile.imwrite(
    path, parts, shape=(rows, 8192, 3), dtype=np.uint8, photometric="rgb", tile=tile, rowsperstrip=None if tile else 64
)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
open_picture(path).window((8000, 8000, 100, 100))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("name", ["striped.tif", "tiled.tif"])
def test_a_window_of_a_large_file_takes_little_memory(tmp_path: Path, name: str) -> None:
    """A window takes little memory; the whole would take 192 MiB."""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", LARGE, tmp_path / name], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 60 << 10
