import contextlib
import os
import pickle
import sys
import time

import numpy as np
import pytest
from PIL import Image

from liif_fast.data import make
from liif_fast.data.datasets import read_image
from liif_fast.data.pack import Pack

from .. import warm


@pytest.fixture
def images(tmp_path):
    """Write three image files of different sizes."""
    (tmp_path / "hr").mkdir()
    for i in range(3):
        array = np.random.default_rng(i).integers(0, 256, (5 + i, 9 - i, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / "hr" / f"{i}.png")
    return sorted((tmp_path / "hr").iterdir())


def packed(images, read=None):
    """Return the images' pack; the list `read` collects the names of decoded files."""

    def note(path):
        if read is not None:
            read.append(path.name)
        return read_image(path)

    root = images[0].parent
    return Pack(root.parent / "pack", root, [path.name for path in images], note)


def check(pack, images):
    assert len(pack) == len(images)
    for number, path in enumerate(images):
        assert np.array_equal(pack[number], read_image(path))


def test_built_once_and_mapped(images):
    read = []
    check(packed(images, read), images)
    again = packed(images, read)
    check(again, images)
    assert sorted(read) == [path.name for path in images]
    assert isinstance(again[1], np.memmap)
    copied = pickle.dumps(again)
    assert len(copied) < 1000  # the paths, not the pixels
    check(pickle.loads(copied), images)


def test_nothing_reaches_the_file(images):
    before = packed(images)
    content = before.files[0].read_bytes()
    array = before[0]
    array[:] = 0
    del array
    assert before.files[0].read_bytes() == content


def test_a_changed_folder(images):
    old = packed(images)
    mapped = old[0]
    first = mapped.copy()
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(images[0])
    read = []
    check(packed(images, read), images)
    assert read == ["0.png"]
    assert np.array_equal(mapped, first)  # existing mappings of the old file stay valid
    for changed in (images[:2], images[::-1]):
        check(packed(changed, read), changed)
    assert read == ["0.png"]
    os.utime(images[1], ns=(1, 1))
    check(packed(images, read), images)
    check(packed(images, read), images)
    assert read == ["0.png", "1.png"]
    assert len(list((images[0].parent.parent / "pack").glob("*.npy"))) == 3  # the outdated are gone


def test_a_copy_is_of_the_same_images_or_none(images):
    """A worker that starts after an image has changed must not read its old pixels."""
    copied = pickle.dumps(packed(images))
    Image.fromarray(np.full((5, 9, 3), 9, np.uint8)).save(images[0])
    packed(images)
    with pytest.raises(OSError, match=r"0\.png"):
        pickle.loads(copied)[0]


@pytest.mark.parametrize("damage", ["cut", "mark", "shape", "empty", "longer"])
def test_a_damaged_file_is_made_anew(images, damage):
    pack = packed(images)
    content = pack.files[0].read_bytes()
    spoilt = {
        "cut": content[:-7],
        "mark": b"x" + content[1:],
        "shape": content.replace(b"(5, 9, 3)", b"(9, 9, 3)"),
        "empty": b"",
        "longer": b"x" + content,
    }[damage]
    assert spoilt != content
    pack.files[0].write_bytes(spoilt)
    read = []
    check(packed(images, read), images)
    assert read == ["0.png"]
    assert pack.files[0].read_bytes() == content


SLOW = """
import sys, time
from pathlib import Path
from liif_fast.data.datasets import read_image
from liif_fast.data.pack import Pack

folder = Path(sys.argv[1])
images = sorted((folder / "hr").iterdir())

def read(path):
    if path == images[-1]:
        (folder / "reading").touch()
        time.sleep(float(sys.argv[2]))
    return read_image(path)

print(len(Pack(folder / "pack", folder / "hr", [path.name for path in images], read)))
"""


@contextlib.contextmanager
def building(tmp_path, seconds):
    """Build a pack in another process, up to the last image."""
    with open(tmp_path / "said", "w") as said, warm.Process("-c", SLOW, tmp_path, seconds, stdout=said) as process:
        limit = time.monotonic() + 60
        while not (tmp_path / "reading").exists():
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.02)
        yield process


def test_a_build_that_is_killed(tmp_path, images):
    with building(tmp_path, 60) as process:
        process.kill()
    assert list(tmp_path.glob("pack/.*.part"))
    check(packed(images), images)
    assert not list(tmp_path.glob("pack/.*.part"))


@pytest.mark.skipif(sys.platform == "win32", reason="no lock there")
def test_others_wait_for_the_one_that_builds(tmp_path, images):
    read = []
    with building(tmp_path, 0.5) as process:
        check(packed(images, read), images)
        assert read == []
        assert process.wait() == 0
    assert (tmp_path / "said").read_text() == "3\n"


def test_parts_of_a_folder_share_its_files(tmp_path, images):
    def folder(**args):
        root = str(images[0].parent)
        return make({"name": "image-folder", "args": {"root_path": root, "cache": "bin", **args}})

    assert [len(folder(first_k=1)), len(folder()), len(folder(first_k=2))] == [1, 3, 2]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("_npy_hr/*.npy")}
    assert len(times) == 3
    assert [len(folder()), len(folder(first_k=2)), len(folder(first_k=1))] == [3, 2, 1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("_npy_hr/*.npy")} == times
