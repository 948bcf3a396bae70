"""Measure the making of training samples, by batches: the original's way, our CPU workers, and on a device.

The reference is the original's way. Our workers make packed samples, which are unpacked on the model's device. A
variant includes the unpacking. The rate at which a training step consumes samples is measured beside them. All images
have one colour, so every way must give the same values wherever it crops. Times do not depend on the values. The images
exceed the cache, as a data set does.
"""

import random
import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import limits
from benchmarks.bench import Bench, rows
from benchmarks.common import OURS, REFERENCE, Raced
from liif_fast import models
from liif_fast.data import make
from liif_fast.data.device import DeviceLoader
from liif_fast.data.samples import collate, unpack

ON_DEVICE = "on the device"
UNPACKED = "liif_fast, unpacked"  # on the device that is measured, by the process that trains
COLOUR = (51, 102, 204)  # x / 255 * 255, cut to 8 bits, is x for these


@rows(UNPACKED, ON_DEVICE)
def test_data(bench: Bench) -> Raced:
    batch, inp_size, sample_q = bench.pick(16, 16, 2), bench.pick(48, 48, 6), bench.pick(2304, 2304, 20)
    height, width = bench.pick((1356, 2040), (1356, 2040), (30, 40))  # of DIV2K
    images = [np.tile(np.array(COLOUR, np.uint8), (height, width, 1)) for _ in range(bench.pick(12, 12, 2))]
    args = {"inp_size": inp_size, "scale_min": 1, "scale_max": 4, "augment": True, "sample_q": sample_q}
    wrapper = make({"name": "sr-implicit-downsampled", "args": args}, dataset=images * batch, seed=0)
    floats = [torch.from_numpy(image).permute(2, 0, 1).float().div(255).contiguous() for image in images]
    loader = DeviceLoader(wrapper, [], bench.device, keep=1 << 31)
    turn = 0

    def indices() -> list[int]:
        nonlocal turn
        turn += 1
        wrapper.set_epoch(turn)
        return [(turn * batch + i) % len(wrapper) for i in range(batch)]

    def worker() -> dict[str, Tensor]:
        return collate([wrapper.packed(index) for index in indices()])

    def lean() -> list[Tensor]:  # includes the conversion that the check needs, a hundredth of the time
        return [each.float().div_(255) for each in _values(worker())]

    def unpacked() -> list[Tensor]:
        return [each.cpu() for each in _values(unpack(_on(bench.device, worker())))]

    def on_device() -> list[Tensor]:
        return [each.cpu() for each in _values(unpack(loader.packed(indices())))]

    def original() -> list[Tensor]:
        samples = [_original(floats[i % len(floats)], inp_size, 1, 4, sample_q) for i in indices()]
        return _values({key: torch.stack([sample[key] for sample in samples]) for key in samples[0]})

    raced = bench.race(
        "data",
        f"a batch of {batch} training samples, x1 to x4 to {inp_size}x{inp_size}, {sample_q:,} queries each",
        {OURS: lean, REFERENCE: original, UNPACKED: unpacked, ON_DEVICE: on_device},
        rounds=21,
    )
    rates = {name: batch / figure["median"] for name, figure in raced.result["figures"].items()}
    rates["a training step of EDSR-baseline-LIIF takes"] = batch / _step_seconds(wrapper, batch, bench)
    names = {OURS: "a worker", REFERENCE: "the original's way"}
    figures = ", ".join(f"{names.get(each, each)} {rate:,.0f}" for each, rate in rates.items())
    raced.result["notes"] = [f"samples/s: {figures}"]
    return raced


def _values(batch: dict[str, Tensor]) -> list[Tensor]:
    return [batch["inp"], batch["gt"]]


def _on(device: torch.device, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def _original(image: Tensor, inp_size: int, scale_min: float, scale_max: float, sample_q: int) -> dict[str, Tensor]:
    """Make a sample as the original does, from an image [3, H, W] that its cache holds as floats."""
    side = round(inp_size * random.uniform(scale_min, scale_max))
    top, left = random.randint(0, image.shape[1] - side), random.randint(0, image.shape[2] - side)
    high = image[:, top : top + side, left : left + side]
    pixels = np.ascontiguousarray(high.mul(255).byte().permute(1, 2, 0).numpy())
    low = torch.from_numpy(np.array(Image.fromarray(pixels).resize((inp_size, inp_size), Image.Resampling.BICUBIC)))
    low = low.permute(2, 0, 1).contiguous().float().div(255)
    flips = [random.random() < 0.5 for _ in range(3)]
    for flipped, flip in zip(flips, (lambda x: x.flip(-2), lambda x: x.flip(-1), lambda x: x.mT), strict=True):
        if flipped:
            low, high = flip(low), flip(high)
    axes = [-1 + 1 / n + 2 / n * torch.arange(n).float() for n in high.shape[1:]]
    coord = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 2)
    rgb = high.contiguous().view(3, -1).permute(1, 0)
    chosen = np.random.choice(len(coord), sample_q, replace=False)
    coord, rgb = coord[chosen], rgb[chosen]
    cell = torch.ones_like(coord)
    cell[:, 0] *= 2 / high.shape[1]
    cell[:, 1] *= 2 / high.shape[2]
    return {"inp": low.contiguous(), "coord": coord, "cell": cell, "gt": rgb}


def _step_seconds(wrapper: Any, batch: int, bench: Bench) -> float:
    """Return the seconds that a step takes in float32, the faster of two after a warm-up."""
    device = bench.device
    encoder = {
        "name": "edsr-baseline",
        "args": {"no_upsampling": True} | bench.pick({}, {}, {"n_resblocks": 1, "n_feats": 4}),
    }
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": bench.pick([256] * 4, [256] * 4, [8])}}
    model = models.make({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    samples = unpack(_on(device, collate([wrapper.packed(index) for index in range(batch)])))
    times = []
    for _ in range(bench.pick(3, 2, 1)):
        limits.synchronize(device)
        start = time.perf_counter()
        loss = nn.functional.l1_loss(model(samples["inp"], samples["coord"], samples["cell"]), samples["gt"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        limits.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
