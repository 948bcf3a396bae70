"""The `mlp` of specs, and the recognition of a plain Linear-ReLU chain in any module."""

from torch import Tensor, nn

from liif_fast import functional, layers
from liif_fast.models.registry import register


@register("mlp")
class MLP(layers.MLP):
    """`liif_fast.layers.MLP` that stays right when a user changes its layers or puts hooks on them."""

    def forward(self, x: Tensor) -> Tensor:
        chain = linear_chain(self)
        return self.layers(x) if chain is None else functional.fused_mlp(x, *chain)


def fusable(imnet: nn.Module) -> tuple[list[Tensor], list[Tensor]] | None:
    """`linear_chain` of an `MLP` whose call is nothing but that chain, else None."""
    plain = isinstance(imnet, MLP) and type(imnet).forward is MLP.forward and "forward" not in vars(imnet)
    return linear_chain(imnet) if plain else None


def linear_chain(module: nn.Module) -> tuple[list[Tensor], list[Tensor]] | None:
    """Weights and biases of `module.layers` if it is Linear, ReLU, ..., Linear and nothing else.

    Returns:
        (weights, biases), or None for another layer, a Linear without bias, or a hook.
    """
    chain = getattr(module, "layers", None)
    if not isinstance(chain, nn.Sequential) or len(chain) % 2 == 0:
        return None
    if any(type(layer) is not (nn.ReLU if i % 2 else nn.Linear) for i, layer in enumerate(chain)):
        return None
    if any(_hooked(part) for part in (module, chain, *chain)):
        return None
    linears = [layer for layer in chain if isinstance(layer, nn.Linear)]
    if any(linear.bias is None for linear in linears):
        return None
    return [linear.weight for linear in linears], [linear.bias for linear in linears]


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
