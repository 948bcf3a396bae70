"""Make the transformer of `attend_corners` for a problem, and rebuild it from the list of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from liif_fast.attention import Block, CornerTransformer

SHARED = (3, 5)  # norm_bias and head_bias: they add the same to all four logits, so no weight depends on them


def make(width: int, depth: int, heads: int, hidden: int, uniform: Callable[..., Tensor]) -> CornerTransformer:
    """Return a transformer whose activations are about as large as those of a trained one.

    Args:
        width: channels of the latents.
        depth: number of blocks.
        heads: number of heads in a block.
        hidden: width of the blocks' hidden layers.
        uniform: returns a tensor of the given shape, with numbers from -`scale` to `scale`.
    """

    def norm() -> tuple[Tensor, Tensor]:
        return 1 + uniform(width, scale=0.3), uniform(width, scale=0.3)

    def linear(outs: int, ins: int) -> tuple[Tensor, Tensor]:
        return uniform(outs, ins, scale=(3 / ins) ** 0.5), uniform(outs, scale=0.3)

    blocks = [
        Block(
            *norm(), linear(3 * width, width)[0], *linear(width, width),
            *norm(), *linear(hidden, width), *linear(width, hidden),
        )
        for _ in range(depth)
    ]  # fmt: skip
    return CornerTransformer(*linear(width, 2), tuple(blocks), *norm(), *linear(1, width), heads)


def remake(parameters: Sequence[Tensor], heads: int) -> CornerTransformer:
    """Return the transformer whose `tensors()` are the parameters."""
    count = len(Block._fields)
    blocks = [Block(*parameters[at : at + count]) for at in range(6, len(parameters), count)]
    weight, bias, norm_weight, norm_bias, head_weight, head_bias = parameters[:6]
    return CornerTransformer(weight, bias, tuple(blocks), norm_weight, norm_bias, head_weight, head_bias, heads)
