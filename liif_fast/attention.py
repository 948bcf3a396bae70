"""The plan and the parameters of a transformer over the corners of a query, as functions and backends pass them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Corners(NamedTuple):
    """Where the corners of queries are, made once for many maps of one size (`functional.plan_attention`)."""

    at: Tensor  # [B or 1, Q, 4] int64, row * W + column
    rel: Tensor  # [B or 1, Q, 4, 2], the distance from the latent's centre in units of half a latent
    shape: tuple[int, int]  # (H, W) of the maps


class Coordinates(NamedTuple):
    """Queries whose corners each backend plans in its own way."""

    coord: Tensor  # [B, Q, 2]
    wrap: bool  # the columns are a circle


class Block(NamedTuple):
    """One pre-norm block over D channels: x + out(attention(norm x)), then x + down(gelu(up(norm x)))."""

    norm_weight: Tensor  # [D]
    norm_bias: Tensor  # [D]
    qkv: Tensor  # [3 D, D], without bias; rows in the order q, k, v, each of them head by head
    out_weight: Tensor | None  # [D, D]; None where the heads' output is used as it is
    out_bias: Tensor | None  # [D]
    mlp_norm_weight: Tensor  # [D]
    mlp_norm_bias: Tensor  # [D]
    up_weight: Tensor  # [D', D]
    up_bias: Tensor  # [D']
    down_weight: Tensor  # [D, D']
    down_bias: Tensor  # [D]


class CornerTransformer(NamedTuple):
    """Everything between the latents of a query's corners and one logit for each of them."""

    position_weight: Tensor  # [D, 2], of rel
    position_bias: Tensor  # [D]
    blocks: tuple[Block, ...]
    norm_weight: Tensor  # [D]
    norm_bias: Tensor  # [D]
    head_weight: Tensor  # [1, D]
    head_bias: Tensor  # [1]
    heads: int

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter with its name."""
        for name, value in self._asdict().items():
            if isinstance(value, Tensor):
                yield name, value
        for number, block in enumerate(self.blocks):
            for name, value in block._asdict().items():
                if value is not None:
                    yield f"blocks[{number}].{name}", value

    def to(self, dtype: torch.dtype) -> CornerTransformer:
        """Return the parameters in `dtype`."""

        def cast(part: Any) -> Any:
            return part.to(dtype) if isinstance(part, Tensor) else part

        blocks = tuple(Block(*map(cast, block)) for block in self.blocks)
        return CornerTransformer(*map(cast, self))._replace(blocks=blocks)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape that each parameter must have, given D, the heads and the hidden widths there are."""
        width = self.position_weight.shape[0]
        expected: dict[str, tuple[int, ...]] = {"position_weight": (width, 2), "head_weight": (1, width)}
        expected |= dict.fromkeys(("position_bias", "norm_weight", "norm_bias"), (width,))
        expected["head_bias"] = (1,)
        for number, block in enumerate(self.blocks):
            hidden = block.up_weight.shape[0]
            shapes: dict[str, tuple[int, ...]] = dict.fromkeys(Block._fields, (width,))
            shapes |= {"qkv": (3 * width, width), "out_weight": (width, width), "up_weight": (hidden, width)}
            shapes |= {"up_bias": (hidden,), "down_weight": (width, hidden)}
            expected |= {f"blocks[{number}].{name}": shape for name, shape in shapes.items()}
        return expected


EPSILON = 1e-5  # of every LayerNorm
