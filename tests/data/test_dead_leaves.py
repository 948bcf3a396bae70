import importlib
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from liif_fast.data import dead_leaves, make

from .. import warm


def test_same_seed_same_image():
    image = dead_leaves(48, seed=5, index=2)
    assert image.shape == (48, 48, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, dead_leaves(48, seed=5, index=2))
    assert not np.array_equal(image, dead_leaves(48, seed=5, index=3))
    assert not np.array_equal(image, dead_leaves(48, seed=6, index=2))


def test_images_have_detail():
    for index in range(6):
        image = dead_leaves(64, seed=1, index=index).astype(float)
        assert image.std() > 4
        assert np.abs(np.diff(image, axis=1)).mean() > 0.5


@pytest.mark.parametrize(("size", "seed", "index"), [(8, 0, 0), (32, -1, 0), (32, 0, -1)])
def test_arguments_out_of_range(size, seed, index):
    with pytest.raises(ValueError, match="must"):
        dead_leaves(size, seed, index)


def test_dataset_and_its_cache(tmp_path):
    cache = tmp_path / "cache" / "leaves.npy"
    args = {"count": 3, "size": 32, "seed": 4, "repeat": 2}
    drawn = make({"name": "dead-leaves", "args": args | {"cache_file": str(cache)}})
    assert len(drawn) == 6
    assert np.array_equal(drawn[4], dead_leaves(32, seed=4, index=1))
    kept = make({"name": "dead-leaves", "args": args | {"cache_file": str(cache)}})
    assert np.array_equal(kept.images, drawn.images)
    other = make({"name": "dead-leaves", "args": args | {"seed": 5, "cache_file": str(cache)}})  # not the cached set
    assert np.array_equal(other[0], dead_leaves(32, seed=5))
    assert np.array_equal(np.load(cache)[0], other[0])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one process draws")
def test_a_set_drawn_by_several_processes(monkeypatch):
    """A large set is drawn by several processes, because a GPU would wait for minutes."""
    module = importlib.import_module("liif_fast.data.dead_leaves")  # the package exports a function of that name
    alone = [dead_leaves(16, 3, index) for index in range(5)]
    drawn_by = []
    monkeypatch.setattr(module, "SHARE", 2)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: range(2))
    real = module.DataLoader
    monkeypatch.setattr(
        module, "DataLoader", lambda *args, **more: drawn_by.append(more["num_workers"]) or real(*args, **more)
    )
    assert np.array_equal(module.dead_leaves_set(5, 16, 3), alone)
    assert drawn_by == [2]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one process draws")
def test_drawing_processes_end_with_a_killed_one():
    script = "from liif_fast.data.dead_leaves import dead_leaves_set, os\nos.sched_getaffinity = lambda _: {0, 1}\n"
    with warm.Process("-c", script + "dead_leaves_set(100_000, 64, 0)") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(children.read_text().split()) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)  # until they have begun to draw
        process.kill()
        assert process.wait_for_all() == -signal.SIGKILL
