"""Count the hidden activations that ReLU makes 0, and the terms that are left: `python -m benchmarks.zeros`.

The cpu backend multiplies groups of six rows over the channels in which one of them is not 0 (docs/cpu.md#zeros). This
script counts these terms in float32, layer by layer, for a window of a photograph, with the rows in the order of
`render`.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from liif_fast import LIIF, load_model, make_cell, make_coord
from liif_fast.functional import gather_corners
from liif_fast.layers import fusable
from liif_fast.upscaling.choice import CHOICES

PHOTO = Path(__file__).parents[1] / "liif_fast" / "assets" / "chelsea.png"
SCALES, SIDE, TILE, GROUP = (2, 4, 16), 96, 24, 6  # pixels of the window; queries of a tile, rows of a group


def share_left(hidden: Tensor) -> float:
    """Return the share of terms that remain for a layer that reads activations [queries, corners, channels]."""
    queries, corners, channels = hidden.shape
    groups = hidden.view(queries // TILE, TILE // GROUP, GROUP, corners, channels)
    return (groups != 0).any(2).float().mean().item()


@torch.no_grad()
def activations(model: LIIF, photo: Tensor, scale: int) -> list[Tensor]:
    """Return the input of each hidden layer, [queries, corners, channels], in a window of the enlarged photograph."""
    model.gen_feat(photo)
    size = (photo.shape[2] * scale, photo.shape[3] * scale)
    coord = make_coord(size).view(*size, 2)[SIDE : 2 * SIDE, SIDE : 2 * SIDE].reshape(1, -1, 2)
    cell = make_cell(size)[None, :1].expand_as(coord)
    x = gather_corners(model.features(), coord, cell, backend="cpu")[0][0]
    chain = fusable(model.imnet)
    assert chain is not None
    found = []
    for weight, bias in list(zip(*chain, strict=True))[:-2]:
        x = torch.nn.functional.linear(x, weight, bias).relu()
        found.append(x)
    return found


def main() -> None:
    with Image.open(PHOTO) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    photo = torch.from_numpy(pixels).permute(2, 0, 1)[None] * 2 - 1
    print(f"{'':<30}of each hidden layer's input: not 0, and left")
    for choice in CHOICES:
        model = load_model(choice, device="cpu")
        for scale in SCALES:
            found = activations(model, photo, scale)
            shares = "   ".join(f"{(x != 0).float().mean():.2f} {share_left(x):.2f}" for x in found)
            print(f"{choice.stem} x{scale:<4}{shares}")


if __name__ == "__main__":
    main()
