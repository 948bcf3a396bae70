import json

import numpy as np
import pytest
from PIL import Image

from liif_fast.data import datasets, make
from liif_fast.data.datasets import NATURAL_IMAGES


def write(folder, names, side=8):
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for i, name in enumerate(names):
        images[name] = np.random.default_rng(i).integers(0, 256, (side, side + i, 3), dtype=np.uint8)
        Image.fromarray(images[name]).save(folder / name)
    return images


def folder(path, **args):
    return make({"name": "image-folder", "args": {"root_path": str(path), **args}})


@pytest.mark.parametrize("cache", ["none", "bin", "in_memory"])
def test_image_folder_is_sorted_cut_and_repeated(tmp_path, cache):
    images = write(tmp_path / "hr", ["b.png", "a.png", "c.png"])
    dataset = folder(tmp_path / "hr", first_k=2, repeat=3, cache=cache)
    assert len(dataset) == 6
    for index, name in enumerate(["a.png", "b.png"] * 3):
        assert dataset[index].dtype == np.uint8
        assert np.array_equal(dataset[index], images[name])
    if cache == "bin":
        assert isinstance(dataset[0], np.memmap)
        assert len(list(tmp_path.glob("_npy_hr/*.npy"))) == 2  # of the requested part


def test_split_file_gives_the_order(tmp_path):
    images = write(tmp_path / "hr", ["a.png", "b.png", "c.png"])
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["c.png", "a.png"], "test": ["b.png"]}))
    dataset = folder(tmp_path / "hr", split_file=str(split), split_key="train")
    assert [np.array_equal(dataset[i], images[n]) for i, n in enumerate(["c.png", "a.png"])] == [True, True]
    with pytest.raises(ValueError, match="split_key 'val'"):
        folder(tmp_path / "hr", split_file=str(split), split_key="val")


def test_gray_and_alpha_become_rgb(tmp_path):
    (tmp_path / "hr").mkdir()
    Image.fromarray(np.full((4, 5), 7, np.uint8)).save(tmp_path / "hr" / "gray.png")
    Image.fromarray(np.full((4, 5, 4), 9, np.uint8)).save(tmp_path / "hr" / "alpha.png")
    dataset = folder(tmp_path / "hr")
    assert [image.shape for image in (dataset[0], dataset[1])] == [(4, 5, 3)] * 2


def test_wrong_image_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        folder(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image"):
        folder(tmp_path / "empty")
    write(tmp_path / "hr", ["a.png"])
    with pytest.raises(ValueError, match="repeat must be"):
        folder(tmp_path / "hr", repeat=0)
    with pytest.raises(ValueError, match="cache must be"):
        folder(tmp_path / "hr", cache="disk")
    with pytest.raises(ValueError, match=r"unknown key 'root' \(image-folder takes root_path"):
        make({"name": "image-folder", "args": {"root": "x"}})
    with pytest.raises(ValueError, match="'root_path' is missing"):
        make({"name": "image-folder"})


@pytest.mark.parametrize("cache", ["none", "bin", "in_memory"])
def test_a_file_that_is_no_image_is_named(tmp_path, cache):
    (tmp_path / "hr").mkdir()
    (tmp_path / "hr" / "notes.txt").write_text("words")
    with pytest.raises(ValueError, match=r"notes\.txt: not an image"):
        folder(tmp_path / "hr", cache=cache)[0]
    assert {path.name for path in tmp_path.rglob("*")} <= {"hr", "notes.txt", "_npy_hr", ".lock"}  # no unfinished file


def test_what_systems_leave_in_a_folder_is_passed_over(tmp_path):
    write(tmp_path / "hr", ["a.png", "b.png"])
    for name in (".hidden.png", "._a.png", "Thumbs.db", "desktop.ini"):
        (tmp_path / "hr" / name).write_bytes(b"no image")
    for name in ("@eaDir", "more", "c.png"):
        (tmp_path / "hr" / name).mkdir()
    dataset = folder(tmp_path / "hr")
    assert [path.name for path in dataset.paths] == ["a.png", "b.png"]
    assert folder(tmp_path / "hr", first_k=1).image_name(0) == "a"
    pairs = {"root_path_1": str(tmp_path / "hr"), "root_path_2": str(tmp_path / "hr" / "more")}
    write(tmp_path / "hr" / "more", ["x.png", "y.png"])
    assert len(make({"name": "paired-image-folders", "args": pairs})) == 2


def test_a_file_that_is_no_image_is_named_before_any_is_read(tmp_path, monkeypatch):
    write(tmp_path / "hr", ["a.png", "c.png"])
    (tmp_path / "hr" / "b.png").write_text("words")
    monkeypatch.setattr(datasets, "read_image", lambda path: pytest.fail("read"))
    for cache in ("none", "bin", "in_memory"):
        with pytest.raises(ValueError, match=r"b\.png: not an image"):
            folder(tmp_path / "hr", cache=cache)


@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "webp", "bmp"])
def test_the_size_in_the_header_is_that_of_the_pixels(tmp_path, extension):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(tmp_path / f"a.{extension}", exif=exif)
    path = tmp_path / f"a.{extension}"
    assert datasets.image_size(path) == datasets.read_image(path).shape[:2]


def test_names_are_different_for_different_images(tmp_path):
    def names(*files):
        (tmp_path / "split.json").write_text(json.dumps({"all": files}))
        dataset = folder(tmp_path / "hr", split_file=str(tmp_path / "split.json"), split_key="all")
        return [dataset.image_name(i) for i in range(len(dataset))]

    write(tmp_path / "hr", ["a.jpg", "a.png", "b.png", "a.jpg.png"])
    write(tmp_path / "hr" / "x", ["a.png"])
    assert names("a.jpg", "b.png") == ["a", "b"]
    assert names("a.jpg", "a.png", "b.png") == ["a.jpg", "a.png", "b.png"]
    assert len(set(names("a.jpg", "a.png", "a.jpg.png"))) == 3
    assert names("a.png", "x/a.png") == ["hr-a", "x-a"]
    assert len(set(names("a.png", "a.png"))) == 2


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "hr", ["a.png", "b.png"])
    (tmp_path / "split.json").write_text('{"k": ["b.png"]}')
    assert folder("~/hr", split_file="~/split.json", split_key="k").image_name(0) == "b"
    args = {"count": 1, "size": 16, "cache_file": "~/leaves.npy"}
    make({"name": "dead-leaves", "args": args})
    assert (tmp_path / "leaves.npy").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds list"),
        ('{"a": "b.png"}', "has no list of file"),
        ('{"a": [1]}', "has no list"),
    ],
)
def test_a_split_file_that_is_none(tmp_path, content, message):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(ValueError, match=rf"split\.json {message}"):
        folder(tmp_path, split_file=str(tmp_path / "split.json"), split_key="a")


def test_pairs_by_position(tmp_path):
    low, high = write(tmp_path / "lr", ["x2.png", "y2.png"], 4), write(tmp_path / "hr", ["x.png", "y.png"], 8)
    args = {"root_path_1": str(tmp_path / "lr"), "root_path_2": str(tmp_path / "hr")}
    pair = make({"name": "paired-image-folders", "args": args})[1]
    assert np.array_equal(pair[0], low["y2.png"])
    assert np.array_equal(pair[1], high["y.png"])
    swapped = {"root_path_1": args["root_path_2"], "root_path_2": args["root_path_1"]}
    with pytest.raises(ValueError, match="swapped"):
        make({"name": "paired-image-folders", "args": swapped})[0]
    write(tmp_path / "hr", ["z.png"])
    with pytest.raises(ValueError, match="equally many images, got 2 and 3"):
        make({"name": "paired-image-folders", "args": args})


def test_natural_images_are_split_by_name():
    names = [name for split in NATURAL_IMAGES.values() for name in split]
    assert len(set(names)) == len(names)
    train = make({"name": "natural-images", "args": {"names": ["astronaut", "brick"], "repeat": 2}})
    assert len(train) == 4
    assert [image.shape for image in (train[0], train[3])] == [(512, 512, 3)] * 2
    with pytest.raises(ValueError, match="no 'chelsea'"):
        make({"name": "natural-images", "args": {"names": ["chelsea"]}})
    with pytest.raises(ValueError, match="split must be"):
        make({"name": "natural-images", "args": {"split": "test"}})
    with pytest.raises(ValueError, match="names must name at least one image"):
        make({"name": "natural-images", "args": {"names": []}})


def test_mixed_is_one_after_the_other():
    parts = [{"name": "dead-leaves", "args": {"count": n, "size": 16, "seed": n}} for n in (2, 3)]
    mixed = make({"name": "mixed", "args": {"parts": parts}})
    assert len(mixed) == 5
    separate = [image for part in parts for image in make(part)]
    assert all(np.array_equal(mixed[i], separate[i]) for i in range(5))
    with pytest.raises(IndexError):
        mixed[5]
    with pytest.raises(ValueError, match="at least one"):
        make({"name": "mixed", "args": {"parts": []}})
