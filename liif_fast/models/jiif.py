"""JIIF (Tang et al., arXiv 2107.08717): a depth map enlarged by a photograph, with learned weights of the corners."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
            check_feat(maps, name)
            size = depth.shape[2:] if name == "lr_image" else maps.shape[2:]
            if maps.shape != (len(depth), channels, *size):
                expected = f"[{len(depth)}, {channels}, {'h, w] of depth' if name == 'lr_image' else 'height, width]'}"
                raise ValueError(f"{name} must have shape {expected}, got {list(maps.shape)}")
        self.feat = self.depth_encoder(depth)
        self.hr_guide, self.lr_guide = self.image_encoder(image), self.image_encoder(lr_image)
        return self.feat

    def query(self, coord: Tensor) -> Tensor:
        """Return the summand for the enlarged depth map at `coord`.

        Args:
            coord: float32 `[B, Q, 2]`, (row, column) in [-1, 1]; corners outside of the map are zeros.

        Returns:
            `[B, Q, 1]`.

        Raises:
            TypeError, ValueError: coord has a wrong shape or dtype.
            RuntimeError: no features are kept yet.
        """
        maps = [each for each in (self.feat, self.hr_guide, self.lr_guide) if each is not None]
        if len(maps) < 3:
            raise RuntimeError("no features to query: call gen_feat(depth, image, lr_image) first")
        check_queries(maps[0], coord, None, cell_decode=False)
        chain = fusable(self.imnet)
        form: _Plain | _Split
        if chain is None:
            form = _Plain(maps, self.imnet)
        elif self.backend == "reference" or len(chain[0]) < 2:
            form = _Plain(maps, self.imnet.layers)
        else:
            form = _Split(maps, *chain, self.backend)
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


class _Places(NamedTuple):
    """The latents nearest to coordinates [B, ...]."""

    row: Tensor  # [B, ...] int64, 0 outside of the map
    column: Tensor
    inside: Tensor  # [B, ...] bool
    centre: Tensor  # [B, ..., 2], 0 outside

    def read(self, maps: Tensor, outside: Tensor | float = 0.0) -> Tensor:
        """Return the latents [B, ..., C] of maps [B, C, H, W], and `outside` [C] at places beyond the map."""
        image = torch.arange(len(maps), device=maps.device).view(-1, *(1,) * (self.row.ndim - 1))
        return torch.where(self.inside.unsqueeze(-1), maps.permute(0, 2, 3, 1)[image, self.row, self.column], outside)


def _nearest(coord: Tensor, shape: Sequence[int]) -> _Places:
    """Find the latents nearest to coord [B, ..., 2] in maps of `shape`, as grid_sample does."""
    n = coord.new_tensor(shape)
    at = (((coord + 1) * n - 1) / 2).round()  # half to even
    inside = ((at >= 0) & (at < n)).all(-1)
    row, column = torch.where(inside.unsqueeze(-1), at, 0).long().unbind(-1)
    centre = torch.stack([centres_at(*each, coord.dtype) for each in zip((row, column), shape, strict=True)], -1)
    return _Places(row, column, inside, torch.where(inside.unsqueeze(-1), centre, 0))


def _corners(coord: Tensor, shape: Sequence[int]) -> tuple[_Places, Tensor]:
    """Return the places [B, Q, 4] and rel [B, Q, 4, 2] of a query's corners: LIIF's without its 1e-6 and its clamp."""
    offset = coord.new_tensor([(i / shape[0], j / shape[1]) for i in (-1, 1) for j in (-1, 1)])
    places = _nearest(coord.unsqueeze(2) + offset, shape)
    return places, (coord.unsqueeze(2) - places.centre) * coord.new_tensor(shape)


class _Plain:
    """The network on every corner's input, as the formula reads."""

    def __init__(self, maps: Sequence[Tensor], network: nn.Module) -> None:
        self.maps, self.network = maps, network

    def __call__(self, coord: Tensor) -> Tensor:
        """Return value and logit of the corners, [B, Q, 4, 2]."""
        feat, high, low = self.maps
        places, rel = _corners(coord, feat.shape[2:])
        guide = _nearest(coord, high.shape[2:]).read(high).unsqueeze(2).expand(*rel.shape[:-1], -1)
        x = torch.cat((places.read(feat), guide, guide - places.read(low), rel.to(feat.dtype)), -1)
        return self.network(x.flatten(0, 2)).unflatten(0, rel.shape[:-1])


class _Split:
    """The same, with the first layer split into a part of the latent, one of the query and one of rel."""

    def __init__(
        self, maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], backend: str
    ) -> None:
        feat, self.high, low = maps
        sizes = [feat.shape[1], low.shape[1], low.shape[1], 2]
        by_feat, by_guide, by_difference, self.by_rel = weights[0].split(sizes, 1)
        self.by_query, self.bias = by_guide + by_difference, biases[0]
        self.rest, self.backend = (weights[1:], biases[1:]), backend
        latents = torch.cat((feat, low), 1).permute(0, 2, 3, 1)
        self.of_latents = self._mlp(latents, [torch.cat((by_feat, -by_difference), 1)], [self.bias]).permute(0, 3, 1, 2)

    def _mlp(self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
        return functional.fused_mlp(x, weights, biases, backend=self.backend)

    def __call__(self, coord: Tensor) -> Tensor:
        """Return value and logit of the corners, [B, Q, 4, 2]."""
        places, rel = _corners(coord, self.of_latents.shape[2:])
        guide = _nearest(coord, self.high.shape[2:]).read(self.high)
        of_query = self._mlp(guide, [self.by_query], [torch.zeros_like(self.bias)]).unsqueeze(2)
        of_rel = F.linear(rel.to(self.by_rel.dtype), self.by_rel)
        return self._mlp(F.relu(places.read(self.of_latents, self.bias) + of_query + of_rel), *self.rest)


def described(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a checkpoint of JIIF's authors, whose model is its state alone, with name and arguments; others as is.

    Raises:
        ValueError: it looks like a JIIF's, but lacks a weight whose shape gives an argument.
    """
    state = content.get("model")
    if not isinstance(state, Mapping) or "name" in state or not any(_depth(key) for key in state):
        return content
    sizes = {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
    needed = [f"{part}_encoder.head.0.weight" for part in ("depth", "image")]
    layers = [*itertools.takewhile(sizes.__contains__, map("imnet.layers.{}.weight".format, itertools.count(0, 2)))]
    needed += layers[:-1] if layers else ["imnet.layers.0.weight"]  # the last one is the output's
    missing = next((key for key in needed if len(sizes.get(key, ())) < 2), None)
    if missing:
        raise ValueError(f"a file of JIIF lacks {missing}")
    feats, guides, *hidden = (sizes[key][0] for key in needed)
    blocks = {int(found[1]) for key in sizes if (found := re.match(r"depth_encoder\.body\.(\d+)\.", key))}
    args = {"feat_dim": feats, "guide_dim": guides, "mlp_dim": hidden, "n_resblocks": max(len(blocks) - 1, 0)}
    return {"model": {"name": "jiif", "args": args, "sd": state}}


def _depth(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("depth_encoder.")
