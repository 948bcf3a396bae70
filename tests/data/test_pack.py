import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from liif_fast.data import make
from liif_fast.data.datasets import read_image
from liif_fast.data.pack import open_pack


@pytest.fixture
def images(tmp_path):
    """Three image files of different sizes."""
    (tmp_path / "hr").mkdir()
    for i in range(3):
        array = np.random.default_rng(i).integers(0, 256, (5 + i, 9 - i, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / "hr" / f"{i}.png")
    return sorted((tmp_path / "hr").iterdir())


def counted(paths):
    """A reader that notes what it reads."""
    return lambda path: paths.append(path.name) or read_image(path)


def check(pack, images):
    assert len(pack) == len(images)
    for array, path in zip(pack, images, strict=True):
        assert np.array_equal(array, read_image(path))


def test_built_once_and_mapped(tmp_path, images):
    read = []
    check(open_pack(tmp_path / "pack", images, counted(read)), images)
    again = open_pack(tmp_path / "pack", images, counted(read))
    check(again, images)
    assert read == [path.name for path in images]
    assert isinstance(again[1], np.memmap)
    copied = pickle.dumps(again)
    assert len(copied) < 1000  # the path and the index, not the pixels
    check(pickle.loads(copied), images)


def test_nothing_reaches_the_file(tmp_path, images):
    before = open_pack(tmp_path / "pack", images, read_image)
    content = (tmp_path / "pack").read_bytes()
    before[0][:] = 0
    del before
    assert (tmp_path / "pack").read_bytes() == content


def test_a_changed_folder(tmp_path, images):
    pack = tmp_path / "pack"
    old = open_pack(pack, images, read_image)
    first = old[0].copy()
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(images[0])
    new = open_pack(pack, images, read_image)
    check(new, images)
    assert np.array_equal(old[0], first)  # who has the old one mapped keeps it
    for changed in (images[:2], images[::-1]):
        check(open_pack(pack, changed, read_image), changed)
    os.utime(images[1], ns=(1, 1))
    read = []
    check(open_pack(pack, images, counted(read)), images)
    check(open_pack(pack, images, counted(read)), images)
    assert len(read) == 3


def test_a_copy_is_of_the_same_pack_or_none(tmp_path, images):
    """A worker that starts after the pack has been made anew must not read other pixels by the old index."""
    copied = pickle.dumps(open_pack(tmp_path / "pack", images, read_image))
    Image.fromarray(np.full((5, 9, 3), 9, np.uint8)).save(images[0])
    open_pack(tmp_path / "pack", images, read_image)
    with pytest.raises(OSError, match="another pack has taken its place"):
        pickle.loads(copied)


@pytest.mark.parametrize("damage", ["cut", "cut whole", "mark", "length", "index", "empty", "longer"])
def test_a_damaged_pack_is_built_anew(tmp_path, images, damage):
    pack = tmp_path / "pack"
    open_pack(pack, images, read_image)
    content = pack.read_bytes()
    spoilt = {
        "cut": content[:-7],
        "cut whole": content[:50] + content[90:],  # the end is there, pixels are missing
        "mark": content[:-1] + b"2",
        "length": content[:-24] + b"\xff" * 8 + content[-16:],
        "index": content.replace(b'"offset": 0', b'"offset": 1'),
        "empty": b"",
        "longer": b"x" + content,
    }[damage]
    assert spoilt != content
    pack.write_bytes(spoilt)
    read = []
    check(open_pack(pack, images, counted(read)), images)
    assert len(read) == 3
    assert pack.read_bytes() == content


SLOW = """
import sys, time
from pathlib import Path
from liif_fast.data.datasets import read_image
from liif_fast.data.pack import open_pack

folder = Path(sys.argv[1])
images = sorted((folder / "hr").iterdir())

def read(path):
    if path == images[-1]:
        (folder / "reading").touch()
        time.sleep(float(sys.argv[2]))
    return read_image(path)

print(len(open_pack(folder / "pack", images, read)))
"""


def start(tmp_path, seconds):
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path), str(seconds)], stdout=subprocess.PIPE)
    limit = time.monotonic() + 60
    while not (tmp_path / "reading").exists():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    return process


def test_a_build_that_is_killed(tmp_path, images):
    process = start(tmp_path, 60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "pack").exists()
    assert len(list(tmp_path.glob(".pack.*.part"))) == 1
    check(open_pack(tmp_path / "pack", images, read_image), images)
    assert not list(tmp_path.glob(".pack.*.part"))


@pytest.mark.skipif(sys.platform == "win32", reason="no lock there")
def test_others_wait_for_the_one_that_builds(tmp_path, images):
    process = start(tmp_path, 0.5)
    read = []
    check(open_pack(tmp_path / "pack", images, counted(read)), images)
    assert read == []
    assert process.communicate()[0] == b"3\n"


def test_parts_of_a_folder_have_packs_of_their_own(tmp_path, images):
    def folder(**args):
        root = str(images[0].parent)
        return make({"name": "image-folder", "args": {"root_path": root, "cache": "bin", **args}})

    assert [len(folder()), len(folder(first_k=2)), len(folder(first_k=1))] == [3, 2, 1]
    packs = {path.name for path in tmp_path.glob("_pack_hr*")}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("_pack_hr*")}
    assert len(packs) == 3
    assert "_pack_hr" in packs
    assert [len(folder()), len(folder(first_k=2)), len(folder(first_k=1))] == [3, 2, 1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("_pack_hr*")} == times
