"""Loader workers can decode after the main process has, as in a run with an in-memory part and a validation set."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from .. import warm

# In a process of its own, under a time-out, because a hang would stop the whole process.
SCRIPT = """
import sys
import numpy as np
from torch.utils.data import BatchSampler, SequentialSampler
from liif_fast.data import make, make_loader
from liif_fast.data.datasets import ImageFolder, read_image
folder = sys.argv[1]
kept = ImageFolder(folder, cache="in_memory")
wrapper = make(
    {"name": "sr-implicit-downsampled", "args": {"inp_size": 12, "scale_max": 2, "sample_q": 50}},
    dataset=ImageFolder(folder), seed=0,
)
def epoch(workers):
    batches = BatchSampler(SequentialSampler(wrapper), 2, drop_last=False)
    loader = make_loader(wrapper, batches, "cpu", num_workers=workers)
    return [batch["inp"].sum().item() for batch in loader]
alone = epoch(0)
for _ in range(2):
    assert epoch(2) == alone
    assert all(np.array_equal(kept[i], read_image(path)) for i, path in enumerate(kept.paths))  # as a validation does
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_workers_decode_after_the_main_process_has(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)
    for extension in ("png", "jpg", "webp", "tif", "gif", "avif", "bmp"):
        Image.fromarray(pixels).save(tmp_path / f"a.{extension}")
    tifffile.imwrite(tmp_path / "deep.tif", pixels.astype(np.uint16) * 257, photometric="rgb", tile=(16, 16))
    assert warm.run("-c", SCRIPT, tmp_path, check=True).stdout == "done\n"
