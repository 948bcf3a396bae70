"""Samples equal the wrapper's bit for bit, however they are made."""

import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, SequentialSampler

from liif_fast.data import device as device_module
from liif_fast.data import make, make_loader
from liif_fast.data.device import DeviceLoader
from liif_fast.data.loader import WorkerLoader
from liif_fast.data.samples import collate

from .. import warm

DOWNSAMPLED = {"name": "sr-implicit-downsampled", "args": {"inp_size": 12, "scale_max": 4, "sample_q": 50}}
PAIRED = {"name": "sr-implicit-paired", "args": {"inp_size": 7, "sample_q": 30}}
VARIED = {"name": "sr-implicit-uniform-varied", "args": {"size_min": 9, "size_max": 26, "sample_q": 40}}
AUGMENTED = {"augment": True, "color_augment": True}
DEGRADED = {"augment": True, "degrade": {"clean": 0.3}}


class Images(list):
    """Repeat few images, and count how often they are read."""

    repeat, read = 3, 0

    def __len__(self):
        return super().__len__() * self.repeat

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(self.image_id(index))

    def image_id(self, index):
        return index % super().__len__()


def single():
    rng = np.random.default_rng(0)
    return Images(rng.integers(0, 256, (50 + 9 * i, 90 - 7 * i, 3), dtype=np.uint8) for i in range(4))


def pairs():
    rng = np.random.default_rng(1)
    shapes = [((20, 22), (41, 45)), ((20, 22), (39, 43))]  # floor and ceil of a half
    return Images([tuple(rng.integers(0, 256, (*s, 3), dtype=np.uint8) for s in shape) for shape in shapes])


def wrap(spec, seed=5, **args):
    return make(
        {"name": spec["name"], "args": spec["args"] | args},
        dataset=single() if spec is DOWNSAMPLED else pairs(),
        seed=seed,
    )


def batches(wrapper, size=4):
    return BatchSampler(SequentialSampler(wrapper), size, drop_last=False)


def same(got, expected):
    return got.keys() == expected.keys() and all(
        got[key].dtype == expected[key].dtype and torch.equal(got[key], expected[key]) for key in got
    )


@pytest.mark.parametrize("way", ["here", "workers", "device", "device, kept"])
@pytest.mark.parametrize("args", [{}, AUGMENTED, DEGRADED], ids=["plain", "augmented", "degraded"])
@pytest.mark.parametrize("spec", [DOWNSAMPLED, PAIRED, VARIED, VARIED | {"resized": True}], ids=lambda s: s["name"])
def test_every_way_makes_the_same_samples(spec, args, way):
    if spec.get("resized"):
        spec, args = VARIED, {**args, "gt_resize": 18}
    wrapper = wrap(spec, **args)
    for epoch in (0, 3):
        wrapper.set_epoch(epoch)
        expected = [
            collate([wrapper[i] for i in range(start, min(start + 4, len(wrapper)))])
            for start in range(0, len(wrapper), 4)
        ]
        loader = {
            "here": lambda: make_loader(wrapper, batches(wrapper), "cpu"),
            "workers": lambda: make_loader(wrapper, batches(wrapper), "cpu", num_workers=1),
            "device": lambda: make_loader(wrapper, batches(wrapper), "cpu", data_device="cpu"),
            "device, kept": lambda: DeviceLoader(wrapper, batches(wrapper), "cpu", keep=1 << 30),
        }[way]()
        got = list(loader)
        assert len(loader) == len(got) == len(expected)
        assert all(same(a, b) for a, b in zip(got, expected, strict=True))


def test_whole_images_that_are_equally_large():
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    wrapper = make({"name": "sr-implicit-downsampled", "args": {"scale_min": 2}}, dataset=[image] * 3, seed=0)
    (batch,) = make_loader(wrapper, batches(wrapper), "cpu", data_device="cpu")
    assert same(batch, collate([wrapper[i] for i in range(3)]))
    assert batch["inp"].shape == (3, 3, 12, 15)
    turned = make(
        {"name": "sr-implicit-downsampled", "args": {"scale_min": 2, "augment": True}}, dataset=[image] * 40, seed=0
    )
    transposed = [i for i in range(40) if turned[i]["inp"].shape == (3, 15, 12)]
    loader = make_loader(turned, [transposed], "cpu", data_device="cpu")
    assert same(next(iter(loader)), collate([turned[i] for i in transposed]))
    with pytest.raises(ValueError, match=r"samples of a batch differ .*set inp_size and sample_q"):
        list(make_loader(turned, [list(range(40))], "cpu", data_device="cpu"))


def test_samples_without_a_common_number_of_queries():
    wrapper = wrap(DOWNSAMPLED, sample_q=None)
    for data_device in (None, "cpu"):
        with pytest.raises(ValueError, match=r"differ .*set inp_size and sample_q"):
            list(make_loader(wrapper, batches(wrapper), "cpu", data_device=data_device))


@pytest.mark.parametrize("sample_q", ["all", None, 50])
@pytest.mark.parametrize("data_device", [None, "cpu"])
def test_groups_are_the_samples_by_size(sample_q, data_device):
    wrapper = wrap(DOWNSAMPLED, sample_q=sample_q, scale_max=1.5, augment=True)
    sizes = set()
    for batch, loaded in zip(
        batches(wrapper, 5),
        make_loader(wrapper, batches(wrapper, 5), "cpu", data_device=data_device, grouped=True),
        strict=True,
    ):
        assert sorted(place for group in loaded for place in group["place"].tolist()) == list(range(len(batch)))
        for group in loaded:
            for i, place in enumerate(group["place"].tolist()):
                sample, got = wrapper[batch[place]], {key: value[i] for key, value in group.items() if key != "place"}
                if sample_q == 50:
                    assert same(got, sample)
                    continue
                assert got.keys() == {"inp", "gt"}
                assert torch.equal(got["inp"], sample["inp"])
                assert torch.equal(got["gt"].flatten(0, 1), sample["gt"])
                height, width = got["gt"].shape[:2]
                assert torch.equal(sample["cell"][0], torch.tensor([2 / height, 2 / width]))
                sizes.add(height)
        assert len(loaded) == (1 if sample_q == 50 else len({group["gt"].shape[1] for group in loaded}))
    assert len(sizes) > 2 or sample_q == 50


def test_all_pixels_in_another_order_are_no_image():
    """At scale 1, a sample with as many queries as pixels keeps them in the order of the draw."""
    wrapper = wrap(DOWNSAMPLED, scale_max=1, sample_q=144)
    for data_device in (None, "cpu"):
        ((group,),) = make_loader(wrapper, [[0, 1]], "cpu", data_device=data_device, grouped=True)
        assert same({key: group[key][1] for key in ("inp", "coord", "cell", "gt")}, wrapper[1])


def test_without_a_seed_the_global_generator_decides():
    wrapper = wrap(DOWNSAMPLED, seed=None, augment=True)
    drawn = []
    for seed in (3, 4, 3):
        torch.manual_seed(seed)
        drawn.append(next(iter(make_loader(wrapper, batches(wrapper), "cpu", data_device="cpu"))))
    assert same(drawn[0], drawn[2])
    assert not same(drawn[0], drawn[1])


def test_images_are_kept_once_as_far_as_there_is_room(caplog):
    wrapper = wrap(DOWNSAMPLED)
    sizes = [image.size for image in list.__iter__(wrapper.dataset)]
    wrapper.dataset.read = 0
    loader = DeviceLoader(wrapper, batches(wrapper), "cpu", keep=sum(sizes))
    first = list(loader)
    assert wrapper.dataset.read == 4
    assert len(loader.kept) == 4 and loader.room == 0
    small = DeviceLoader(wrapper, batches(wrapper), "cpu", keep=sizes[0] + sizes[1] + 1)
    with caplog.at_level("INFO", device_module.__name__):
        assert all(same(a, b) for a, b in zip(small, first, strict=True))
    assert len(small.kept) == 2
    assert [record.message for record in caplog.records] == ["2 images stay on cpu; of the others, crops are sent"]


def test_samples_of_ones_own():
    class Own(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"inp": torch.full((3, 2, 2), float(index)), "gt": torch.zeros(1, 3)}

    got = list(make_loader(Own(), [[0, 1], [3, 2]], "cpu"))
    assert got[1]["inp"][:, 0, 0, 0].tolist() == [3, 2]
    with pytest.raises(ValueError, match="data_device: Own makes samples only on the CPU"):
        make_loader(Own(), [[0, 1]], "cpu", data_device="cpu")


@pytest.mark.parametrize("grouped", [False, True])
def test_what_fails_in_a_worker_is_told_as_it_is_here(grouped):
    """An error is one line, not a traceback within a traceback."""
    wrapper, others = wrap(DOWNSAMPLED, sample_q=60 * 60), set(multiprocessing.active_children())
    expected = "sample_q must be at most the "
    for num_workers in (0, 1):
        with pytest.raises(ValueError, match=f"^{expected}") as caught:
            list(make_loader(wrapper, [[0, 1]], "cpu", num_workers=num_workers, grouped=grouped))
        assert "\n" not in str(caught.value)
        assert set(multiprocessing.active_children()) <= others, "the error, which is held here, keeps its worker"
    if not grouped:
        with pytest.raises(ValueError, match=r"^gt: samples of a batch differ"):
            list(make_loader(wrap(DOWNSAMPLED, sample_q=None), [[0, 1, 2]], "cpu", num_workers=1))


class Batched(torch.utils.data.Dataset):
    """Make a whole batch at once, as a user's dataset may; index 9 is a missing file."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        raise AssertionError("one by one")

    def __getitems__(self, indices):
        if 9 in indices:
            open("none.png")
        return [{"inp": torch.tensor([float(index)])} for index in indices]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_at_once_and_a_file_that_is_not_there(num_workers):
    batches = iter(make_loader(Batched(), [[0, 3], [9]], "cpu", num_workers=num_workers))
    assert next(batches)["inp"].tolist() == [[0], [3]]
    with pytest.raises(FileNotFoundError) as caught:
        next(batches)
    assert (caught.value.filename, caught.value.strerror) == ("none.png", "No such file or directory")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="data_device: PyTorch finds no cuda"):
        make_loader(wrap(DOWNSAMPLED), [[0]], "cpu", data_device="cuda")


def test_a_device_without_float64_is_refused():
    with pytest.raises(ValueError, match="mps has no float64"):
        make_loader(wrap(DOWNSAMPLED), [[0]], "cpu", data_device="mps")


def test_the_way_through_workers_is_lean():
    """A packed sample has a byte per value and 4 bytes per query, instead of 12 + 16."""
    loader = WorkerLoader(wrap(DOWNSAMPLED), [[0, 1]], "cpu")
    (packed,) = loader.loader
    assert {key: value.dtype for key, value in packed.items()} == {
        "inp": torch.uint8,
        "gt": torch.uint8,
        "pixel": torch.int32,
        "size": torch.int32,
    }


STUCK = """
import os, signal, threading, time
from pathlib import Path
from liif_fast.data.loader import WorkerLoader

def interrupt():
    while len(list(Path().glob("working-*"))) < 2:
        time.sleep(0.01)
    signal.raise_signal(signal.SIGINT)

class Slow:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        Path(f"working-{index}").write_text(str(os.getpid()))
        time.sleep(300)

if __name__ == "__main__":
    threading.Thread(target=interrupt).start()
    for _ in WorkerLoader(Slow(), [[0, 1], [2, 3]], "cpu", num_workers=2):
        pass
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_a_signal_waits_until_the_workers_have_started():
    """PyTorch's iterator, left half made, prints a traceback when it is deleted."""
    made = []

    class Starting:
        def __iter__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)
            made.append("all workers")
            return iter([])

    loader = WorkerLoader(Images([]), [[0]], "cpu")
    loader.loader = Starting()
    with pytest.raises(KeyboardInterrupt):
        list(loader)
    assert made == ["all workers"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_a_stuck_worker_does_not_outlive_the_main_process(tmp_path):
    (tmp_path / "script.py").write_text(STUCK)
    done = warm.run(tmp_path / "script.py", cwd=tmp_path)  # which waits for the workers' ends
    assert done.returncode != 0
    assert "KeyboardInterrupt" in done.stderr
    workers = [int(path.read_text()) for path in tmp_path.glob("working-*")]
    assert len(workers) == 2
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
