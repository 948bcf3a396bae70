"""Build LTE, a relative of LIIF, from the public functions, as an example of your own decoder.

LTE (Lee and Jin, "Local texture estimator for implicit representation function", CVPR 2022, arXiv 2111.08918) reads
the same four latents as LIIF and blends with the same weights. Only the network's input differs. Two convolutions
compute amplitudes and frequencies of each latent, and the network's input is

    amplitude * [cos, sin](pi * (frequency . rel + phase(cell)))

`gather_corners` plans the corners and gathers, `fused_mlp` runs the network; only the line above remains to be written.
(`corner_plan` returns the plan alone.) Names and shapes of the parameters are those of LTE's own code, so its
checkpoints load.

Importing this module registers the name `lte` for `liif_fast.models.make`, for model files, and for configurations
with `plugins: [lte]`. Run it as a check:

    python examples/lte.py
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liif_fast import functional, make_cell, make_coord, models
from liif_fast.layers import linear_chain
from liif_fast.models.base import FeatureModel


@models.register("lte")
class LTE(FeatureModel):
    """Decode by LTE, with the methods of LIIF: `gen_feat`, `query_rgb`, `render` and `forward`.

    Args:
        encoder_spec: spec of the encoder, as for `LIIF`.
        imnet_spec: spec of the network without its in_dim, `{'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list':
            [256] * 3}}` in the paper.
        hidden_dim: amplitudes per latent, an even number; a latent has half as many frequencies, each with a row and a
            column part.
    """

    reads_input = True  # for the interpolation added to the output

    def __init__(self, encoder_spec: Mapping[str, Any], imnet_spec: Mapping[str, Any], hidden_dim: int = 256) -> None:
        super().__init__()
        self.encoder = models.make(encoder_spec)
        self.coef = nn.Conv2d(self.encoder.out_dim, hidden_dim, 3, padding=1)
        self.freq = nn.Conv2d(self.encoder.out_dim, hidden_dim, 3, padding=1)
        self.phase = nn.Linear(2, hidden_dim // 2, bias=False)
        self.imnet = models.make(imnet_spec, args={"in_dim": hidden_dim})
        self.kept: tuple[Tensor, Tensor] | None = None

    def query_rgb(self, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        maps = self._maps()
        x, weight = functional.gather_corners(maps, coord, cell, feat_unfold=False, backend=self.backend)
        width = maps.shape[1] // 2
        amplitude, frequency, rel, cell = x.split([width, width, 2, 2], -1)  # [B, Q, 4, ...]
        angle = math.pi * ((frequency.unflatten(-1, (-1, 2)) * rel.unsqueeze(-2)).sum(-1) + self.phase(cell))
        x = amplitude * torch.cat((angle.cos(), angle.sin()), -1)
        pred = functional.fused_mlp(x, *linear_chain(self.imnet.layers), backend=self.backend)
        return (weight.unsqueeze(-1) * pred).sum(2) + self._interpolate(coord)

    def _maps(self) -> Tensor:
        """Return amplitudes and frequencies [B, 2 * hidden_dim, H, W], kept while an image is rendered in strips."""
        feat = self.features()
        if self.kept is not None and self.kept[0] is feat:
            return self.kept[1]
        maps = torch.cat((self.coef(feat), self.freq(feat)), 1)
        self.kept = None if torch.is_grad_enabled() else (feat, maps)
        return maps

    def _interpolate(self, coord: Tensor) -> Tensor:
        grid = coord.flip(-1).unsqueeze(1)  # grid_sample wants (x, y)
        out = F.grid_sample(self.inp, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return out[:, :, 0].transpose(1, 2)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"kept": None}


SPEC = {
    "name": "lte",
    "args": {
        "encoder_spec": {"name": "edsr-baseline", "args": {"no_upsampling": True}},
        "imnet_spec": {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [256, 256, 256]}},
    },
}


def main() -> None:
    """Render an image with random weights, in one piece and as single queries."""
    torch.manual_seed(0)
    model = models.make(SPEC).eval()
    inp, size = torch.rand(1, 3, 24, 32) * 2 - 1, (89, 118)
    with torch.inference_mode():
        image = model.render(inp, size)
        queries = model(inp, make_coord(size)[None], make_cell(size)[None])
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; {tuple(image.shape)}")
    difference = (image - queries.transpose(1, 2).unflatten(2, size)).abs().max().item()
    print(f"largest difference between the rendered image and its queries: {difference:.0e}")


if __name__ == "__main__":
    main()
