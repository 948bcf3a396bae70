"""Samples made on a GPU equal the CPU's bit for bit."""

import numpy as np
import pytest
import torch

from liif_fast import make_cell, make_coord
from liif_fast.data import make
from liif_fast.data.device import DeviceLoader
from liif_fast.data.loader import WorkerLoader
from liif_fast.data.resize import bicubic_resize
from liif_fast.data.samples import collate, unpack


@pytest.mark.parametrize("seed", range(20))
def test_resize(device, seed):
    rng = np.random.default_rng(seed)
    old, new = rng.integers(1, 300, 2).tolist(), rng.integers(1, 300, 2).tolist()
    image = torch.from_numpy(rng.integers(0, 256, (3, *old), dtype=np.uint8))
    assert torch.equal(bicubic_resize(image.to(device), new).cpu(), bicubic_resize(image, new)), (old, new)


@pytest.mark.parametrize("size", [(1, 1), (48, 48), (63, 191), (192, 192), (1356, 2040)])
def test_unpacked_values_and_coordinates(device, size):
    rows, columns = size
    count = rows * columns
    packed = {
        "inp": torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16),
        "gt": torch.zeros(1, count, 3, dtype=torch.uint8),
        "pixel": torch.arange(count, dtype=torch.int32)[None],
        "size": torch.tensor([size], dtype=torch.int32),
    }
    batch = {key: value.cpu() for key, value in unpack({k: v.to(device) for k, v in packed.items()}).items()}
    assert torch.equal(batch["coord"][0], make_coord(size))
    assert torch.equal(batch["cell"][0], make_cell(size))
    assert torch.equal(batch["inp"], packed["inp"].float() / 255)


@pytest.mark.parametrize("keep", [0, 1 << 30])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("sr-implicit-downsampled", {"inp_size": 48, "scale_max": 4, "sample_q": 2304}),
        ("sr-implicit-paired", {"inp_size": 20, "sample_q": 300}),
        ("sr-implicit-uniform-varied", {"size_min": 50, "size_max": 120, "gt_resize": 96, "sample_q": 500}),
    ],
)
def test_batches(device, name, args, keep):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (200 + i, 230, 3), dtype=np.uint8) for i in range(3)]
    if name != "sr-implicit-downsampled":
        images = [(rng.integers(0, 256, (100, 115, 3), dtype=np.uint8), image) for image in images]
    wrapper = make({"name": name, "args": {**args, "augment": True, "color_augment": True}}, dataset=images * 4, seed=7)
    batches = [list(range(start, start + 6)) for start in (0, 6)]
    loader = DeviceLoader(wrapper, batches, device, keep=keep)
    for epoch in (0, 1):
        wrapper.set_epoch(epoch)
        for indices, got, sent in zip(batches, loader, WorkerLoader(wrapper, batches, device), strict=True):
            expected = collate([wrapper[index] for index in indices])
            for key, value in expected.items():
                assert got[key].device.type == sent[key].device.type == torch.device(device).type
                assert torch.equal(got[key].cpu(), value), key
                assert torch.equal(sent[key].cpu(), value), key
