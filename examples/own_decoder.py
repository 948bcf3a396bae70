"""Write a decoder of your own on `gather_corners`: a network that also predicts how much each corner counts.

LIIF blends the predictions of four latents by area. Here the network, with GELU for a change, returns a colour and a
logit, and a softmax over the corners' logits blends (as in JIIF, arXiv 2107.08717, for depth maps).

Importing this module registers the name `softmax-ensemble` for `liif_fast.models.make`, for model files, for
configurations with `plugins: [own_decoder]`, and for commands with `--plugin own_decoder`. Run it as a check:

    python examples/own_decoder.py
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from liif_fast import functional, make_cell, make_coord, models
from liif_fast.models.base import FeatureModel


@models.register("softmax-ensemble")
class SoftmaxEnsemble(FeatureModel):
    """Decode with learned shares of the four corners.

    Args:
        encoder_spec: spec of the encoder, as for `LIIF`.
        width: of the network's hidden layers.
    """

    def __init__(self, encoder_spec: Mapping[str, Any], width: int = 128) -> None:
        super().__init__()
        self.encoder = models.make(encoder_spec)
        inputs = self.encoder.out_dim * 9 + 4  # a latent's 3x3 neighbourhood, rel and cell
        self.network = nn.Sequential(
            nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4)
        )

    def query_rgb(self, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        x, _area = functional.gather_corners(self.features(), coord, cell, backend=self.backend)  # [B, Q, 4, inputs]
        colour, logit = self.network(x).split([3, 1], -1)
        return (logit.softmax(2) * colour).sum(2)


def main() -> None:
    """Render an image with random weights, in one piece and as single queries."""
    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"no_upsampling": True, "n_resblocks": 4, "n_feats": 32}}
    model: Any = models.make({"name": "softmax-ensemble", "args": {"encoder_spec": encoder}}).eval()
    inp, size = torch.rand(1, 3, 24, 32) * 2 - 1, (89, 118)
    with torch.inference_mode():
        image = model.render(inp, size)
        queries = model(inp, make_coord(size)[None], make_cell(size)[None])
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; {tuple(image.shape)}")
    difference = (image - queries.transpose(1, 2).unflatten(2, size)).abs().max().item()
    print(f"largest difference between the rendered image and its queries: {difference:.0e}")


if __name__ == "__main__":
    main()
