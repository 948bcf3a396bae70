"""JIIF (Tang et al., arXiv 2107.08717): a depth map enlarged by a photograph, with learned weights of the corners."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liif_fast import functional
from liif_fast.checks import check_feat, check_queries
from liif_fast.coord import centres_at
from liif_fast.layers import MLP, fusable
from liif_fast.models.registry import make, register

CHUNK_QUERIES = 1 << 10  # of each image in inference; their first layer takes 16 MiB
MAPS = ("feat", "hr_guide", "lr_guide")


@register("jiif")
class JIIF(nn.Module):
    """JIIF with the parameter names of the authors' code.

    A corner's network reads the latent of the depth map, the guide at the query, its difference from the guide at the
    latent, and rel. It returns a value and a logit; a softmax of the logits blends the corners' values.

    Args:
        feat_dim, guide_dim: channels of the features of depth and of images.
        mlp_dim: widths of the network's hidden layers.
        n_resblocks: residual blocks of both encoders, which are EDSR-baselines.

    Attributes:
        backend: the backend of the network, initially "auto". All but `reference` split the first layer: its parts for
            latents and for queries are computed once each, not once for every corner.
        feat, hr_guide, lr_guide: features of the last depth map, image and reduced image; None before `gen_feat`.
    """

    backend = "auto"
    feat: Tensor | None = None
    hr_guide: Tensor | None = None
    lr_guide: Tensor | None = None

    def __init__(
        self,
        feat_dim: int = 128,
        guide_dim: int = 128,
        mlp_dim: Sequence[int] = (1024, 512, 256, 128),
        n_resblocks: int = 16,
    ) -> None:
        super().__init__()
        options = {"n_resblocks": n_resblocks, "no_upsampling": True}
        spec = {"name": "edsr-baseline", "args": options}
        self.image_encoder = make(spec, args={"n_feats": guide_dim, "n_colors": 3})
        self.depth_encoder = make(spec, args={"n_feats": feat_dim, "n_colors": 1})
        self.imnet = MLP(feat_dim + 2 * guide_dim + 2, 2, list(mlp_dim))
        args = {"feat_dim": feat_dim, "guide_dim": guide_dim, "mlp_dim": list(mlp_dim), "n_resblocks": n_resblocks}
        self.spec = {"name": "jiif", "args": args}

    def gen_feat(self, depth: Tensor, image: Tensor, lr_image: Tensor) -> Tensor:
        """Encode a depth map and its image, and keep their features.

        Args:
            depth: `[B, 1, h, w]`, normalised as in training.
            image: `[B, 3, H, W]`, of the size to enlarge to.
            lr_image: `[B, 3, h, w]`, the image reduced to the depth map's size.

        Returns:
            The features of the depth map, `[B, feat_dim, h, w]`.

        Raises:
            TypeError, ValueError: a shape or dtype is wrong.
        """
        for name, maps, channels in (("depth", depth, 1), ("image", image, 3), ("lr_image", lr_image, 3)):
            check_feat(maps)
            size = depth.shape[2:] if name == "lr_image" else maps.shape[2:]
            if maps.shape != (len(depth), channels, *size):
                expected = f"[{len(depth)}, {channels}, {'h, w] of depth' if name == 'lr_image' else 'height, width]'}"
                raise ValueError(f"{name} must have shape {expected}, got {list(maps.shape)}")
        self.feat = self.depth_encoder(depth)
        self.hr_guide, self.lr_guide = self.image_encoder(image), self.image_encoder(lr_image)
        return self.feat

    def query(self, coord: Tensor) -> Tensor:
        """Return what is added to the enlarged depth map at `coord`.

        Args:
            coord: float32 `[B, Q, 2]`, (row, column) in [-1, 1]; corners outside of the map are zeros.

        Returns:
            `[B, Q, 1]`.

        Raises:
            TypeError, ValueError: coord has a wrong shape or dtype.
            RuntimeError: no features are kept yet.
        """
        if self.feat is None or self.hr_guide is None or self.lr_guide is None:
            raise RuntimeError("no features to query: call gen_feat(depth, image, lr_image) first")
        check_queries(self.feat, coord, None, cell_decode=False)
        chain = fusable(self.imnet)
        form: _Plain | _Split
        if chain is None:
            form = _Plain(self, self.imnet)
        elif self.backend == "reference" or len(chain[0]) < 2:
            form = _Plain(self, self.imnet.layers)
        else:
            form = _Split(self, *chain)
        step = max(coord.shape[1], 1) if torch.is_grad_enabled() else CHUNK_QUERIES
        preds = torch.cat([form(part) for part in coord.split(step, 1)], 1)
        return (preds[..., 1:].softmax(2) * preds[..., :1]).sum(2)

    def forward(self, depth: Tensor, image: Tensor, lr_image: Tensor, coord: Tensor, base: Tensor) -> Tensor:
        """Return depths at `coord`.

        Args:
            depth, image, lr_image: as for `gen_feat`.
            coord: as for `query`.
            base: `[B, Q, 1]`, the depth map enlarged bicubically, at `coord`.

        Returns:
            `[B, Q, 1]`, normalised as in training.

        Raises:
            TypeError, ValueError: a shape or dtype is wrong.
        """
        self.gen_feat(depth, image, lr_image)
        if base.shape != (*coord.shape[:2], 1):
            raise ValueError(f"base must have shape {[*coord.shape[:2], 1]}, got {list(base.shape)}")
        return base + self.query(coord)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in MAPS:  # results, not state
            state.pop(name, None)
        return state


class _Rows:
    """The rows [B, H W + 1, C] of a map, a last one of zeros for queries outside."""

    def __init__(self, maps: Tensor) -> None:
        self.shape = maps.shape[2:]
        self.rows = F.pad(maps.flatten(2).mT, (0, 0, 0, 1))

    def nearest(self, coord: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows nearest to coord [B, ..., 2], and their centres, zero outside."""
        n = coord.new_tensor(self.shape)
        place = (((coord + 1) * n - 1) / 2).round()  # half to even, as grid_sample
        inside = ((place >= 0) & (place < n)).all(-1)
        row, column = torch.where(inside.unsqueeze(-1), place, 0).long().unbind(-1)
        centre = torch.stack(
            [centres_at(at, size, coord.dtype) for at, size in zip((row, column), self.shape, strict=True)], -1
        )
        at = torch.where(inside, row * self.shape[1] + column, self.shape[0] * self.shape[1])
        return at, torch.where(inside.unsqueeze(-1), centre, 0)

    def __getitem__(self, at: Tensor) -> Tensor:
        """Return the rows [B, ..., C] at positions [B, ...]."""
        image = torch.arange(len(at), device=at.device).view(-1, *(1,) * (at.ndim - 1))
        return self.rows[image, at]


def _corners(coord: Tensor, maps: _Rows) -> tuple[Tensor, Tensor]:
    """Return position [B, Q, 4] and rel [B, Q, 4, 2] of a query's corners: LIIF's without its 1e-6 and its clamp."""
    h, w = maps.shape
    offset = coord.new_tensor([(i / h, j / w) for i in (-1, 1) for j in (-1, 1)])
    at, centre = maps.nearest(coord.unsqueeze(2) + offset)
    return at, (coord.unsqueeze(2) - centre) * coord.new_tensor(maps.shape)


class _Plain:
    """The network on every corner's input, as the formula reads."""

    def __init__(self, model: JIIF, network: nn.Module) -> None:
        assert model.feat is not None and model.hr_guide is not None and model.lr_guide is not None
        self.network = network
        self.feat, self.high, self.low = (_Rows(maps) for maps in (model.feat, model.hr_guide, model.lr_guide))

    def __call__(self, coord: Tensor) -> Tensor:
        """Return value and logit of the corners, [B, Q, 4, 2]."""
        at, rel = _corners(coord, self.feat)
        high = self.high[self.high.nearest(coord)[0]].unsqueeze(2)
        guide = high.expand(*at.shape, -1)
        x = torch.cat((self.feat[at], guide, guide - self.low[at], rel.to(high.dtype)), -1)
        return self.network(x.flatten(0, 2)).unflatten(0, at.shape)


class _Split:
    """The same, with the first layer split into a part of the latent, one of the query and one of rel."""

    def __init__(self, model: JIIF, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        assert model.feat is not None and model.hr_guide is not None and model.lr_guide is not None
        feat, low = model.feat, model.lr_guide
        sizes = [feat.shape[1], low.shape[1], low.shape[1], 2]
        by_feat, by_guide, by_difference, self.by_rel = weights[0].split(sizes, 1)
        self.backend, self.rest = model.backend, (weights[1:], biases[1:])
        self.feat, self.high = _Rows(torch.cat((feat, low), 1)), _Rows(model.hr_guide)
        by_latent = torch.cat((by_feat, -by_difference), 1)
        self.feat.rows = functional.fused_mlp(self.feat.rows, [by_latent], biases[:1], backend=self.backend)
        self.by_query = by_guide + by_difference

    def __call__(self, coord: Tensor) -> Tensor:
        """Return value and logit of the corners, [B, Q, 4, 2]."""
        at, rel = _corners(coord, self.feat)
        of_query = self.high[self.high.nearest(coord)[0]]
        none = self.by_query.new_zeros(len(self.by_query))
        first = functional.fused_mlp(of_query, [self.by_query], [none], backend=self.backend).unsqueeze(2)
        first = first + self.feat[at] + F.linear(rel.to(self.by_rel.dtype), self.by_rel)
        return functional.fused_mlp(F.relu(first), *self.rest, backend=self.backend)


def described(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a checkpoint of JIIF's authors, whose model is its state alone, with name and arguments; others as is.

    Raises:
        ValueError: it looks like a JIIF's, but has no weight that the arguments could be read off.
    """
    state = content.get("model")
    if not isinstance(state, Mapping) or "name" in state or not any(_depth(key) for key in state):
        return content
    sizes = {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
    numbers = [int(found[1]) for key in sizes if (found := re.fullmatch(r"imnet\.layers\.(\d+)\.weight", key))]
    needed = [f"{part}_encoder.head.0.weight" for part in ("depth", "image")]
    needed += [f"imnet.layers.{number}.weight" for number in range(0, max(numbers, default=0), 2)]
    missing = next((key for key in needed if len(sizes.get(key, ())) < 2), None)
    if missing:
        raise ValueError(f"a file of JIIF's without {missing}")
    feats, guides, *hidden = (sizes[key][0] for key in needed)
    blocks = {int(found[1]) for key in sizes if (found := re.match(r"depth_encoder\.body\.(\d+)\.", key))}
    args = {"feat_dim": feats, "guide_dim": guides, "mlp_dim": hidden, "n_resblocks": max(blocks, default=0)}
    return {"model": {"name": "jiif", "args": args, "sd": state}}


def _depth(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("depth_encoder.")
